"""A recipe trained from Python."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from robust_models.checkpoints import load
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.runtime.config import overlaid, read_recipe, resolve
from train.config import TrainConfig
from train.loop import train as run


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any] = "cifar_l2_small",
    *,
    out: str | os.PathLike[str] | None = None,
    **changes: Any,
) -> RobustClassifier:
    """The classifier that a recipe trains: what `bigroc train --config RECIPE` does, as a function.

    recipe: the name of a shipped recipe (bigroc recipes), the path of a YAML file, or the fields as a mapping.
    out: the run's folder, where the same call continues a stopped run; None: a temporary one, which is deleted.
    changes: fields of the recipe, dotted or nested: `epochs=1, attack={"eps": 1.0}, **{"data.path": "train.npz"}`.
    The classifier comes in eval mode, on the CPU; progress goes to stderr. Under torchrun every rank calls this, with
    one `out`, and gets the classifier. UserError for an unknown field or a value out of range, with its name.

        model = train("cifar_l2_small", epochs=1, **{"data.path": "train.npz"})
    """
    fields = dict(recipe) if isinstance(recipe, Mapping) else read_recipe(os.fspath(recipe))
    values = overlaid(fields, changes if out is None else {**changes, "out": str(out)})
    if "out" in values:
        return _trained(values)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("out: the ranks of torchrun share a run folder; name it with out=")
    with TemporaryDirectory(prefix="bigroc-train-") as folder:
        return _trained({**values, "out": folder})


def _trained(values: dict[str, Any]) -> RobustClassifier:
    config: TrainConfig = resolve(TrainConfig, values)
    run(config)
    return load(Path(config.out) / "classifier.safetensors")
