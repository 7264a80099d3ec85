"""RobustBench 1.1.1 builds architectures of its zoo, saved as their authors did: python -m ... OUT"""

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.oracles.lively import lively, two_images

# Its __init__ modules import attacks, downloads and every model; only the architectures are wanted.
spec = importlib.util.find_spec("robustbench")
root = Path(next(iter(spec.submodule_search_locations)))
for name in ("robustbench", "robustbench.model_zoo"):
    package = types.ModuleType(name)
    package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = package

from robustbench.model_zoo.architectures import (  # noqa: E402
    dm_wide_resnet,
    resnet,
    resnext,
    robust_wide_resnet,
    wide_resnet,
)

X = two_images(32)


class Normalized(nn.Module):
    """With the buffers that the zoo's classes add to a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mu", torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1))
        self.register_buffer("sigma", torch.tensor([0.2471, 0.2435, 0.2616]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mu) / self.sigma)

    def saved(self) -> dict[str, Tensor]:
        return {name.removeprefix("network."): tensor for name, tensor in self.state_dict().items()}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def with_silu(network: nn.Module) -> nn.Module:
    for module in [*network.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return network


def checkpoints() -> Iterator[tuple[str, nn.Module, object]]:
    """(file, network, what is saved)."""
    wide = wide_resnet.WideResNet(16, 10, 2)
    yield "wide_resnet", wide, wide.state_dict()
    trades = wide_resnet.WideResNet(10, 10, 4, sub_block1=True)
    yield "wide_resnet_sub_block1", trades, {"state_dict": prefixed("module.", trades.state_dict())}
    narrow = Normalized(wide_resnet.WideResNet(40, 100, 1))
    yield "wide_resnet_mu_sigma", narrow, {"state_dict": prefixed("module.", narrow.saved())}
    silu = with_silu(wide_resnet.WideResNet(10, 10, 2))
    yield "wide_resnet_silu", silu, prefixed("model.", silu.state_dict())
    robust = robust_wide_resnet.RobustWideResNet(10, [16, 32, 64, 48], [1, 1, 1])
    yield "robust_wide_resnet", robust, prefixed("module.", robust.state_dict())

    dm_wide, swish = dm_wide_resnet.DMWideResNet, dm_wide_resnet.Swish
    dm = dm_wide(10, 16, 2, swish)
    yield "dm_wide_resnet", dm, dm.state_dict()
    dm = dm_wide(10, 10, 2, nn.ReLU)
    yield "dm_wide_resnet_relu", dm, {"model_state_dict": prefixed("module.", dm.state_dict())}
    dm = dm_wide(10, 10, 2, nn.Softplus)
    yield "dm_wide_resnet_softplus", dm, dm.state_dict()
    dm = dm_wide(100, 10, 1, swish, dm_wide_resnet.CIFAR100_MEAN, dm_wide_resnet.CIFAR100_STD)
    yield "dm_wide_resnet_cifar100", dm, dm.state_dict()
    dm = dm_wide_resnet.DMPreActResNet(10, 18, activation_fn=swish)
    yield "dm_preact_resnet", dm, dm.state_dict()

    for name, block, flags in (
        ("preact_resnet_wong", resnet.PreActBlock, {}),
        ("preact_resnet_kuangliu", resnet.PreActBlockV2, {}),
        ("preact_resnet_rice", resnet.PreActBlockV2, {"bn_before_fc": True}),
        ("preact_resnet_rice_cifar100", resnet.PreActBlock, {"bn_before_fc": True, "out_shortcut": True}),
        ("preact_resnet_xshortcut", resnet.PreActBlock, {"bn_before_fc": True}),
    ):
        network = Normalized(resnet.PreActResNet(block, [2, 2, 2, 2], **flags))
        yield name, network, network.saved()
    engstrom = Normalized(resnet.ResNet(resnet.BasicBlock, [3, 4, 6, 3]))
    yield "resnet", engstrom, engstrom.saved()
    augmix = resnext.CifarResNeXt(resnext.ResNeXtBottleneck, 29, 4, 32, 10)
    yield "resnext", augmix, {"state_dict": prefixed("module.", augmix.state_dict())}


if __name__ == "__main__":
    out, expected = Path(sys.argv[1]), {}
    torch.manual_seed(0)
    for name, network, content in checkpoints():
        lively(network)  # in place: what is saved shares the memory
        torch.save(content, out / f"{name}.pt")
        with torch.no_grad():
            expected[name] = network(X)
    torch.save({"x": X, **expected}, out / "expected.pt")
