"""What tensors a network would have, before there is memory for any of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules import module as hooks

from robust_models.errors import UserError


def outline(build: Callable[[], nn.Module], tensors: int) -> nn.Module:
    """The network with meta tensors, where it can be built so; `tensors`: as many as the file has.

    UserError where the network would have many times more, since a file of a few bytes may ask for a million layers.
    """
    with _at_most(1000 + 20 * tensors):
        try:
            with torch.device("meta"):
                return build()
        except (UserError, NotImplementedError) as error:
            if not isinstance(error.__cause__ or error, NotImplementedError):
                raise
            return build()  # some, such as torchvision's RegNets, compute their sizes with tensors


@contextmanager
def _at_most(registrations: int) -> Iterator[None]:
    """UserError once modules built meanwhile have registered more parameters and parts than that."""
    left = registrations

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UserError("arch: the network described has many times more layers than there are tensors")

    registered = (
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_module_registration_hook(count),
    )
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
