"""What the three attack libraries have in common: classes by name, constructors with words of their own."""

import difflib
import importlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval.robust.attacks.budget import Attempt, Budget, Plan
from robust_models import UserError

Words = Mapping[str, tuple[str, ...]]  # our word -> what the library's constructors may call it
Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


def import_library(name: str, how_to_install: str) -> ModuleType:
    """The package. UserError where it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"attack: needs the package {error.name}, which is not here; {how_to_install}") from error


def check_class_name(library: str, name: str, known: Iterable[str]) -> None:
    """UserError with the near miss for a class the library does not have, or that we cannot run in a norm ball."""
    names = sorted(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {library}:{near[0]}?" if near else f"there are {', '.join(names)}"
    raise UserError(f"attack: {library} has no attack {name!r} for balls in l2 or linf; {hint}")


def check_norm(name: str, norms: Iterable[str], budget: Budget) -> None:
    """UserError where the attack belongs to another geometry."""
    if budget.norm not in norms:
        raise UserError(f"attack: {name} is an attack in {' or '.join(norms)}, but norm is {budget.norm}")


def constructor_settings(name: str, constructor: Callable, budget: Budget, words: Words) -> dict[str, Any]:
    """The keywords that carry the budget into the constructor, where it has them.

    An attack with steps and a step size walks along gradients: it gets ours (20 steps of 2.5 * eps / steps unless the
    budget says otherwise). Any other keeps its own number of steps unless the budget names one. A library's random
    start can be turned off, never on: a class is what its name says. UserError for a setting it has no use for.
    """
    accepted = inspect.signature(constructor).parameters
    word = {ours: next((w for w in theirs if w in accepted), None) for ours, theirs in words.items()}
    for ours in ("steps", "step_size"):
        if getattr(budget, ours) is not None and word.get(ours) is None:
            raise UserError(f"{ours}: {name} takes none; leave it out")
    walks = word.get("steps") is not None and word.get("step_size") is not None
    values = {
        "eps": budget.eps,
        "steps": budget.ascent_steps if walks else budget.steps,
        "step_size": budget.ascent_step_size if walks else budget.step_size,
        "random_start": None if budget.random_start else False,
        "num_classes": budget.num_classes,
    }
    return {
        theirs: value for ours, value in values.items() if (theirs := word.get(ours)) is not None and value is not None
    }


def plan_runs(library: str, constructor: Callable, given: Mapping[str, Any], budget: Budget, run: Run) -> Plan:
    """A plan of `restarts` runs; its settings are the given keywords and the constructor's defaults for the rest."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(constructor).parameters.items()}
    plain = {
        name: value for name, value in {**defaults, **given}.items() if isinstance(value, bool | int | float | str)
    }
    attempts: dict[str, Attempt] = {f"run {i + 1}": LibraryAttempt(run, budget.seed, i) for i in range(budget.restarts)}
    return Plan(attempts, {**plain, "library": f"{library} {version(library)}"})


@dataclass(frozen=True)
class LibraryAttempt:
    """One run of a library's attack on each batch; draws depend on (seed, restart, first image of the batch).

    Unlike our PGD's, a library's random start belongs to the image's place in its batch.
    """

    run: Run
    seed: int
    restart: int

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        with global_randomness((self.seed, self.restart, int(index[0])), x.device):
            return self.run(PlainLayout(model), x.clone(), y.clone()).detach()


class PlainLayout(nn.Module):
    """The model with input gradients in NCHW memory order: libraries flatten them with view().

    A network that computes in channels_last hands its gradients back in that order.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(Tensor.contiguous)
        return self.model(x)


@contextmanager
def global_randomness(seed: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """The global generators that libraries draw from, seeded inside, as found afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002  (they use the old one)
    drawn = int(np.random.SeedSequence(seed).generate_state(1)[0])
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            torch.manual_seed(drawn)
            np.random.seed(drawn)  # noqa: NPY002
            random.seed(drawn)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
