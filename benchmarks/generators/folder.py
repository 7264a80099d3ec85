"""A run's folder: what the run is, the state it goes on from, and at its end the networks.

generator, discriminator = open_run(Path("runs/cgan-pd"))
logits = discriminator(generator(torch.randn(16, *generator.z_shape), y), y)
"""

import copy
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from benchmarks.generators.layers import bake_spectral_norms
from benchmarks.generators.model import Recipe, Setting
from benchmarks.generators.models import MODELS
from robust_models.errors import UserError
from robust_models.runtime.files import sweep_partials, whole_file, write_json
from robust_models.runtime.version import environment

PIPELINE = "pipeline"  # the folder of a diffusion model


@dataclass
class State:
    """All that changes in a run: tensors and plain values."""

    step: int = 0
    wall_s: float = 0.0
    passes: dict[str, int] = field(default_factory=dict)  # images that each network has seen, forwards
    totals: dict[str, Tensor] = field(default_factory=dict)  # sums of the losses since the last row of metrics
    pictured: dict[int, Tensor] = field(default_factory=dict)  # a few samples x_u8, by step
    networks: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Any] = field(default_factory=dict)
    optimizers: dict[str, Any] = field(default_factory=dict)


def claim(folder: Path, about: dict[str, Any]) -> State | None:
    """The state to go on from, None at the start; config.json then says what the run is.

    UserError where the folder holds another run. One whose learning rate stays what it is may be given more steps.
    """
    path, state = folder / "config.json", folder / "state.pt"
    about = json.loads(json.dumps(about))
    if path.exists():
        old, now = _flat(json.loads(path.read_text())), _flat(about)
        free = ("environment",) if now["decay"] else ("environment", "steps")
        for name in now:
            if name not in free and old.get(name) != now[name]:
                raise UserError(
                    f"out: {folder} holds a run with another {name} ({old.get(name)} there, {now[name]} now); choose "
                    "another --out, or repeat that run's command to continue it"
                )
    sweep_partials(folder)
    write_json(path, {**about, "environment": environment()})
    return State(**torch.load(state, map_location="cpu", weights_only=True)) if state.exists() else None


def _flat(about: dict[str, Any]) -> dict[str, Any]:
    return {**about, **about["recipe"], "recipe": None}


def save_state(folder: Path, state: State) -> None:
    """Replaces the last state."""
    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    with whole_file(folder / "state.pt") as partial:
        partial.write_bytes(buffer.getbuffer())


def save_network(path: Path, network: nn.Module) -> None:
    """Weights in half precision, spectral norms computed and gone; statistics of batch norms stay in float32."""
    network = copy.deepcopy(network)
    bake_spectral_norms(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.half()
    with whole_file(path) as partial:
        partial.write_bytes(save({name: value.contiguous().cpu() for name, value in network.state_dict().items()}))


class Opened(NamedTuple):
    """The networks of a run, in evaluation mode: samples are best from the generator, whose weights are averaged."""

    generator: Any  # z [N,*z_shape] (and y [N], where num_classes is not None) -> images in the range `pixels`
    discriminator: Any | None  # such images (and y) -> logits [N] of being real; None: a VAE has none


def open_run(folder: Path, device: torch.device | str = "cpu") -> Opened:
    """The networks of a run that has ended. UserError where there are none, or where it is a diffusion model."""
    if (folder / PIPELINE).exists():
        raise UserError(f"run: {folder} is a diffusion model; open it with diffusers:{folder / PIPELINE}")
    networks = fresh_networks(folder)
    found = [
        loaded(networks[name], folder / f"{name}.safetensors", device) for name in Opened._fields if name in networks
    ]
    return Opened(*found, *[None] * (2 - len(found)))


def fresh_networks(folder: Path, seed: int = 0) -> nn.ModuleDict:
    """The networks of a run that has ended as they are before training, drawn by the seed."""
    about = about_run(folder)
    recipe = Recipe(**{**about["recipe"], "betas": tuple(about["recipe"]["betas"])})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        setting = Setting(recipe, about["num_classes"], torch.device("cpu"), "fp32")
        return MODELS[about["model"]].build(setting).networks


def about_run(folder: Path) -> dict[str, Any]:
    """config.json of a run that has ended. UserError where there is none."""
    if read_cost(folder) is None:
        raise UserError(f"run: {folder} holds no generator; train one there, to the end: benchmarks.generators.train")
    return json.loads((folder / "config.json").read_text())


def read_cost(folder: Path) -> dict[str, Any] | None:
    """What the training took; None where it has not ended."""
    path = folder / "cost.json"
    return json.loads(path.read_text()) if path.exists() else None


def loaded(network: nn.Module, path: Path, device: torch.device | str) -> nn.Module:
    """The network with what save_network wrote, in evaluation mode."""
    bake_spectral_norms(network, steps=0)
    network.load_state_dict(load_file(path))
    return network.requires_grad_(False).eval().to(device)
