"""Image-text models of open_clip: open_clip:NAME:FILE, open_clip:NAME:TAG, open_clip:FOLDER, open_clip:OWNER/NAME."""

import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_models.architectures import build
from robust_models.checkpoints.hub import OPEN_CLIP
from robust_models.checkpoints.infer.clip_encoder import clip_classifier
from robust_models.checkpoints.layouts import Found, find_layout
from robust_models.checkpoints.ours import is_safetensors, read_safetensors
from robust_models.checkpoints.subtrees import State
from robust_models.checkpoints.torch_format import read_torch_file
from robust_models.classifier import Normalizer
from robust_models.errors import UserError, none_of

_CONFIG, _WEIGHTS = "open_clip_config.json", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class OpenClipModel:
    """One of open_clip's models; see TextSide."""

    model: Any
    tokenizer: Any
    name: str
    normalizer: Normalizer
    image_size: int

    @property
    def scale(self) -> float:
        """Logits are that many times the cosine."""
        return float(self.model.logit_scale.detach().exp())

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of unit length, [T,D]."""
        return F.normalize(self.model.encode_text(self.tokenizer(list(texts))).float(), dim=1)

    def found(self, path: Path) -> Found:
        """The image encoder, as what a checkpoint holds before it has a head: ours where ours computes the same."""
        visual = {f"visual.{name}": tensor for name, tensor in self.model.visual.state_dict().items()}
        about: dict[str, Any] = {"image_size": self.image_size, "layout": f"open_clip, {path.name}"}
        about |= {"variants": [visual], "normalizer": self.normalizer}
        for activation in ("quick_gelu", "gelu", "relu"):
            if (arch := self._ours(visual, activation)) is not None:
                return Found(arch=arch, activation=activation, **about)
        if self.name not in _library().list_models():
            raise UserError(
                f"ckpt: {path}: its image encoder is neither a ViT or ResNet of CLIP nor that of a model which "
                "open_clip knows by name"
            )
        return Found(arch=f"{OPEN_CLIP}{self.name}", **about)

    @torch.no_grad()
    def _ours(self, visual: State, activation: str) -> str | None:
        """The name of our network that gives the same embeddings with these tensors; None where there is none."""
        size = self.image_size
        x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        theirs = self.model.visual(x)
        if not isinstance(theirs, Tensor) or theirs.ndim != 2:
            return None
        head = {"head.weight": torch.zeros(2, theirs.shape[1]), "logit_scale": torch.tensor(1.0)}
        match = clip_classifier({**visual, **head})
        if match is None:
            return None
        network = build(match.arch, num_classes=2, activation=activation).eval()
        try:
            network.load_state_dict({**match.state, **head})
        except RuntimeError:
            return None
        ours = network.get_submodule("visual")(x)
        return match.arch if torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max())) else None


def weights_of(name: str) -> Path:
    """Where the weights of "open_clip:..." lie, downloaded if they are published and missing."""
    return _parts(name)[1]


def open_open_clip(name: str) -> OpenClipModel:
    """The model called so, in eval mode. UserError where open_clip, the model or its weights are not there."""
    config, weights = _parts(name)
    library = _library()
    settings = {"pretrained_image": False, "pretrained_text": False, "load_weights": False}
    schema = f"local-dir:{config}" if Path(config).is_dir() else config
    level = logging.getLogger().level
    try:
        logging.getLogger().setLevel(logging.ERROR)  # it warns that weights are not loaded, which happens below
        model = library.create_model(schema, **settings).eval()
        tokenizer = library.get_tokenizer(schema)
        preprocess = library.get_model_preprocess_cfg(model)
        _fill(model, _state(weights), weights)
    except UserError:
        raise
    except Exception as error:  # another library's code
        raise UserError(f"ckpt: {name} cannot be opened ({type(error).__name__}: {str(error)[:200]})") from error
    finally:
        logging.getLogger().setLevel(level)
    size = preprocess["size"]
    side = size if isinstance(size, int) else int(size[0])
    mean, std = (tuple(map(float, preprocess[one])) for one in ("mean", "std"))
    return OpenClipModel(model.requires_grad_(False), tokenizer, Path(config).name, Normalizer(mean, std), side)


def _parts(name: str) -> tuple[str, Path]:
    """The model's name, or the folder with its config, and the file of its weights."""
    rest = name.removeprefix(OPEN_CLIP)
    if Path(rest).is_dir():
        return rest, _in_folder(Path(rest), name)
    model, _, weights = rest.partition(":")
    if model.count("/") == 1 and not weights:
        folder = _from_hub(model, name)
        return str(folder), _in_folder(folder, name)
    library = _library()
    if model not in library.list_models():
        raise UserError(f"ckpt: {name}: {none_of(model, library.list_models()[:12])}")
    if Path(weights).is_file():
        return model, Path(weights)
    tags = library.list_pretrained_tags_by_model(model)
    if weights not in tags:
        published = f", or published ones: {', '.join(tags[:8])}" if tags else ""
        raise UserError(
            f"ckpt: {name}: no file {weights!r}; name a file of weights, {OPEN_CLIP}{model}:FILE{published}"
        )
    try:
        return model, Path(library.download_pretrained(library.get_pretrained_cfg(model, weights)))
    except Exception as error:  # another library's code
        raise UserError(
            f"ckpt: {name}: these weights are neither here nor to be had ({type(error).__name__}: {str(error)[:160]}); "
            f"without a network, download them elsewhere and name the file: {OPEN_CLIP}{model}:FILE"
        ) from error


def _in_folder(folder: Path, name: str) -> Path:
    if not (folder / _CONFIG).is_file():
        raise UserError(
            f"ckpt: {name}: {folder} has no {_CONFIG}; give the model's name and a file, {OPEN_CLIP}NAME:FILE"
        )
    try:
        json.loads((folder / _CONFIG).read_text("utf-8"))["model_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"ckpt: {folder / _CONFIG} describes no model ({type(error).__name__}: {error})") from error
    if (weights := next((folder / file for file in _WEIGHTS if (folder / file).is_file()), None)) is None:
        raise UserError(f"ckpt: {name}: {folder} has no weights; one of {', '.join(_WEIGHTS)} is expected")
    return weights


def _from_hub(repository: str, name: str) -> Path:
    """The repository's folder in the hub's cache, downloaded if it is missing."""
    import huggingface_hub

    for offline in (True, False):
        try:
            folder = huggingface_hub.snapshot_download(
                repository, allow_patterns=["*.json", "*.txt", _WEIGHTS[0]], local_files_only=offline
            )
            if (Path(folder) / _CONFIG).is_file():
                return Path(folder)
        except Exception as error:  # another library's code
            if not offline:
                raise UserError(
                    f"ckpt: {name} is no folder here, and the hub does not give it ({type(error).__name__}: "
                    f"{str(error)[:160]}); name a folder of its files: {OPEN_CLIP}FOLDER"
                ) from error
    raise UserError(f"ckpt: {name} is on the hub, but has no {_CONFIG}")


def _state(weights: Path) -> State:
    if is_safetensors(weights):
        return read_safetensors(weights)[0]
    return find_layout(read_torch_file(weights), ema=False, where=f"ckpt: {weights}").variants[-1]


def _fill(model: Any, state: State, weights: Path) -> None:
    from open_clip.model import convert_to_custom_text_state_dict

    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    expected = model.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in state and name in expected:
            state[name] = state[name].reshape(expected[name].shape)
    missing, strangers = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or strangers:
        first = f"it lacks {missing[0]}" if missing else f"it also has {strangers[0]}"
        raise UserError(
            f"ckpt: {weights} does not fit the model: {first} ({len(missing)} missing, {len(strangers)} new)"
        )
    wrong = next((name for name in expected if expected[name].shape != state[name].shape), None)
    if wrong is not None:
        raise UserError(
            f"ckpt: {weights} does not fit the model: {wrong} is {list(state[wrong].shape)}, expected "
            f"{list(expected[wrong].shape)}"
        )
    model.load_state_dict({name: state[name].to(expected[name].dtype) for name in expected})


def _library() -> Any:
    if importlib.util.find_spec("open_clip") is None:
        raise UserError('ckpt: open_clip: names need the package open_clip_torch; pip install "bigroc[words]"')
    import open_clip

    return open_clip
