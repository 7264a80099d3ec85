"""The flags of a training."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from benchmarks.generators.model import Recipe
from benchmarks.generators.models import MODELS
from robust_models.errors import UserError, none_of
from robust_models.runtime.config import STRICT, AtLeastOne, DeviceFlags, Positive
from robust_models.runtime.device import PRECISION, PrecisionChoice

ModelName = Literal["vae", "dcgan", "wgan-gp", "sngan", "ssgan", "cgan-pd", "biggan", "diff-biggan", "edm", "ddpm"]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GeneratorConfig(DeviceFlags):
    """Training: which generator learns which images, and for how long."""

    model: ModelName
    out: Path = Field(description="the run's folder; the same command goes on with it")
    data: str = Field(default="cifar10", description="cifar10, cifar10:DIR, an .npz or a folder, of 32x32 pixels")
    recipe: Literal["cpu", "published"] | None = Field(
        default=None, description="cpu: for two cores; published: in the paper's size (null: the model's first)"
    )
    steps: AtLeastOne | None = Field(default=None, description="of the generator (null: the recipe's)")
    minutes: Positive | None = Field(default=None, description="the run ends after these, at the latest (null: never)")
    width: AtLeastOne | None = Field(default=None, description="channels (null: the recipe's)")
    batch_size: AtLeastOne | None = Field(default=None, description="real images at once (null: the recipe's)")
    seed: int = Field(default=0, ge=0, description="of everything drawn")
    precision: PrecisionChoice = Field(default="auto", description=f"of convolutions. {PRECISION}")
    log_every: AtLeastOne = Field(default=100, description="steps between two lines of losses")
    save_minutes: Positive = Field(default=5, description="between two saved states")


def recipe_of(config: GeneratorConfig) -> Recipe:
    """The named recipe with what the flags change. UserError where the model has none of that name."""
    recipes = MODELS[config.model].recipes
    name = config.recipe or next(iter(recipes))
    if name not in recipes:
        raise UserError(f"recipe: {none_of(name, recipes)}, for {config.model}")
    given = {"steps": config.steps, "width": config.width, "batch_size": config.batch_size}
    return replace(recipes[name], **{field: value for field, value in given.items() if value is not None})
