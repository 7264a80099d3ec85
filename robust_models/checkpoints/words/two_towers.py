"""This project's image-text models: an image network and a text tower in one safetensors file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from robust_models.architectures.text_tower import TextTower
from robust_models.checkpoints.layouts import Found
from robust_models.checkpoints.ours import WORDS, read_description, read_safetensors, reproducible_bytes
from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError
from robust_models.runtime.files import check_replaces, whole_file

_MOST = {"width": 4096, "layers": 64, "longest": 1024, "words": 100_000}


@dataclass(frozen=True)
class TwoTowers:
    """Images and texts in one space of embeddings; see TextSide."""

    image: RobustClassifier  # its "logits" are the embedding, [N,D]
    text: TextTower
    scale: float

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of unit length, [T,D]."""
        return F.normalize(self.text.eval()(self.text.tokens(texts)), dim=1)

    def found(self, path: Path) -> Found:
        """The image network, as what a checkpoint holds before it has a head."""
        description = self.image.description
        state = {f"visual.{name}": tensor for name, tensor in self.image.network.state_dict().items()}
        return Found(
            f"image-text model, {path.name}",
            [state],
            description.normalizer,
            arch=f"zero_shot_d{description.num_classes}_{description.arch}",
            activation=description.activation,
            image_size=description.image_size,
        )


def save_two_towers(model: TwoTowers, path: Path) -> None:
    """Writes the model, whole or not at all. UserError where a file stands at `path` that is none."""
    text = model.text
    sizes = {"width": text.places.shape[1], "layers": len(text.layers.layers), "longest": text.longest}
    described = {
        "version": 1,
        "image": {"version": 1, **asdict(model.image.description)},
        "text": {"words": text.words, **sizes},
        "scale": model.scale,
    }
    del described["image"]["generation"]
    state = {f"image.{name}": tensor for name, tensor in model.image.network.state_dict().items()}
    state |= {f"text.{name}": tensor for name, tensor in text.state_dict().items()}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    check_replaces(path, _is_one, "image-text model of this project")
    with whole_file(path) as partial:
        partial.write_bytes(reproducible_bytes(state, {WORDS: json.dumps(described), "format": "pt"}))


def open_two_towers(state: dict[str, Tensor], metadata: dict[str, str], path: Path) -> TwoTowers:
    """The model in a safetensors file that has WORDS. UserError where it is broken."""
    try:
        entries = json.loads(metadata[WORDS])
        if entries["version"] > 1:
            raise UserError(f"ckpt: {path} is of a newer version of the format; update bigroc")
        description = read_description(json.dumps(entries["image"]), path)
        text, scale = entries["text"], float(entries["scale"])
        words = [str(word) for word in text["words"]]
        sizes = {name: int(text[name]) for name in ("width", "layers", "longest")}
        for name, value in {**sizes, "words": len(words)}.items():
            if not 0 < value <= _MOST[name]:
                raise ValueError(f"{name} is {value}, not 1 to {_MOST[name]}")
        if not 0 < scale <= 1e4:
            raise ValueError(f"the scale is {scale}")
        image = RobustClassifier.from_description(description)
        tower = TextTower(words, description.num_classes, **sizes)
        for name, module in (("image", image.network), ("text", tower)):
            own = {key.removeprefix(f"{name}."): one for key, one in state.items() if key.startswith(f"{name}.")}
            if not all(one.isfinite().all() for one in own.values() if one.is_floating_point()):
                raise ValueError(f"its {name} network has NaN or infinite numbers")
            module.load_state_dict(own)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise UserError(f"ckpt: {path} is a broken image-text model ({type(error).__name__}: {error})") from error
    return TwoTowers(image.eval(), tower.eval(), scale)


def _is_one(path: Path) -> bool:
    try:
        return WORDS in read_safetensors(path)[1]
    except (UserError, SafetensorError):
        return False
