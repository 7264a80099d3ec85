"""What the survey's two commands take: every field, with its range."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from robust_models.runtime.config import STRICT, Number

CLASS = "{class}"  # in a question: the pair's class
_PLAIN_QUESTION = "Which image looks more real?"
_CLASS_QUESTION = f"Which looks more like a real {CLASS}?"


@dataclass(frozen=True, config=STRICT)
class SurveyConfig:
    """Survey: which images people compare, what they are asked, and where their answers go."""

    before: Path = Field(description="image set, of any kind: the images as the generator made them")
    after: Path = Field(description="image set: the same images refined, in the same order and of the same size")
    out: Path = Field(description="file of the answers (SQLite); with the same sets and settings it is gone on with")
    pairs: Annotated[int, Field(ge=1)] | None = Field(100, description="so many pairs, drawn by --seed (null: all)")
    question: str | None = Field(
        None, description=f'"{_PLAIN_QUESTION}", or with --show-class "{_CLASS_QUESTION}", where null'
    )
    show_class: bool = Field(False, description=f"the question names the pair's class, where it says {CLASS}")
    labels: Path | None = Field(
        None, description="whose labels count: a .csv or .json file, or an image set (null: either set's)"
    )
    class_names: str | None = Field(None, description="with commas between them, by label, where the sets have none")
    ties: bool = Field(True, description='"no difference" is an answer')
    checks: Annotated[Number, Field(ge=0, le=0.5)] = Field(
        0.1, description="share of attention checks, an image beside its ruin, among all that a rater sees"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the pairs drawn, their order and their sides")
    host: str = Field(
        "127.0.0.1",
        description="address to serve at; 0.0.0.0: the whole network, by a token",
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8765, description="of the page; 0: any free one")
    token: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{8,64}$")] | None = Field(
        None, description="word in the address that raters of another machine need (null: a new one at each start)"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "SurveyConfig":
        if self.question is not None:
            if not self.question.strip() or len(self.question) > 200:
                raise ValueError(f"question: has {len(self.question.strip())} characters; give 1 to 200")
            if self.show_class and CLASS not in self.question:
                raise ValueError(f"question: --show-class names the class where the question says {CLASS}; put it in")
            if not self.show_class and CLASS in self.question:
                raise ValueError(f"question: says {CLASS}; add --show-class, which fills it in")
        return self

    @property
    def asked(self) -> str:
        """The question, with its {class} not yet filled in."""
        return self.question or (_CLASS_QUESTION if self.show_class else _PLAIN_QUESTION)

    @property
    def settings(self) -> dict[str, str | int | float | bool | None]:
        """What may not change between the answers of one file, by the name of its flag."""
        shared = {name: getattr(self, name) for name in ("pairs", "show_class", "ties", "checks", "seed")}
        return {"question": self.asked, **shared}


@dataclass(frozen=True, config=STRICT)
class SurveyReportConfig:
    """Report: which answers count, and how sure the preference is."""

    answers: Path = Field(description="file of answers, as the survey's --out made it")
    min_checks: Annotated[Number, Field(ge=0, le=1)] = Field(
        0.8, description="raters who pass a smaller share of their attention checks are left out"
    )
    resamples: Annotated[int, Field(ge=100)] = Field(2000, description="of the bootstrap")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the bootstrap")
