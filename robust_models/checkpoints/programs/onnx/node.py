"""One call of an ONNX operator, and how operators are registered.

An operator is a function of the node and its input values, None for an absent one; it gives a value or a tuple of
values. Integer values (shapes and indices) are on the CPU. https://onnx.ai/onnx/operators/
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Operator = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Node:
    """One call: values by name in and out ("" is an optional value that is absent), attributes, the operator set."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int
    last_used: tuple[str, ...] = ()  # values that nothing after this node needs

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; a missing one has the operator's default."""
        return self.attributes.get(name, default)


def registering(table: dict[str, Operator]) -> Callable[..., Callable[[Operator], Operator]]:
    """A decorator that puts a function into the table under each of the names it is given."""

    def operator(*names: str) -> Callable[[Operator], Operator]:
        def register(function: Operator) -> Operator:
            table.update(dict.fromkeys(names, function))
            return function

        return register

    return operator


def integers(node: Node, name: str, value: Tensor | None) -> list[int] | None:
    """A list that is an attribute in early operator sets and an input in later ones."""
    return node.get(name) if value is None else value.flatten().tolist()
