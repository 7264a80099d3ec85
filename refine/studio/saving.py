"""What the page saves: a folder that says how its picture came about, with the command that makes it again."""

import shlex
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from refine.studio.config import StudioConfig
from refine.studio.tabs import AGAIN, INPUT, MASK, Asked, command_words, config_of, parse_asked
from robust_models.checkpoints.flags import Source
from robust_models.errors import UserError
from robust_models.grids import save_trajectory
from robust_models.images.codec import encode
from robust_models.runtime.config import as_json
from robust_models.runtime.device import PrecisionDecision
from robust_models.runtime.files import whole_folder
from robust_models.runtime.version import environment

RESULT = "result.png"
_naming = threading.Lock()


@dataclass(frozen=True)
class Keeper:
    """Writes folders below config.out."""

    config: StudioConfig
    source: Source
    precision: PrecisionDecision
    class_names: tuple[str, ...]

    def save(
        self, asked: Asked, step: int, x_u8: Tensor | None, mask_u8: np.ndarray | None, result_u8: Tensor
    ) -> dict[str, Any]:
        """Writes what was asked of x_u8 [1,3,H,W] and result_u8 [3,H,W], its picture after `step` steps.

        Gives folder and command. asked states class, eps and step_size; UserError where it does not, or where there is
        no room.
        """
        if asked.label is None:
            raise UserError("class: what is saved names its class; run it once first")
        if asked.tab != "explain":
            if step < 1:
                raise UserError("step: at step 0 nothing has been done yet; choose a later one")
            for name in ("eps", "step_size"):
                if asked.options.get(name) is None:
                    raise UserError(f"{name}: what is saved states it; run it once first")
            asked = parse_asked(asdict(asked) | {"options": {**asked.options, "steps": step}})
        command = config_of(self.config, self.precision.precision, asked, self.class_names)
        words = command_words(asked.tab, command)
        with _naming:
            folder = self._free_name(asked.tab)
            with whole_folder(folder) as partial:
                if x_u8 is not None:
                    (partial / INPUT).write_bytes(_png(x_u8[0]))
                if mask_u8 is not None:
                    (partial / MASK).write_bytes(encode(np.repeat(mask_u8[..., None], 3, axis=2)))
                (partial / RESULT).write_bytes(_png(result_u8))
                settings = self._settings(asked, step, words)
                (partial / "settings.json").write_text(as_json(settings, indent=2, ensure_ascii=False) + "\n")
                script = (
                    f'#!/bin/sh\n# {RESULT} made again, as {settings["made_again"]}\ncd "$(dirname "$0")" || exit\n'
                )
                (partial / "command.sh").write_text(f"{script}{shlex.join(words)}\n")
        return {"folder": str(folder), "command": shlex.join(words)}

    def _free_name(self, tab: str) -> Path:
        """A name by the clock that nothing has yet."""
        name = f"{datetime.now():%Y-%m-%d-%H%M%S}-{tab}"
        tries = (self.config.out / (name if k == 1 else f"{name}-{k}") for k in range(1, 1000))
        return next(path for path in tries if not path.exists())

    def _settings(self, asked: Asked, step: int, words: Sequence[str]) -> dict[str, Any]:
        assert asked.label is not None
        again = {"refine": f"{AGAIN}.png", "generate": f"{AGAIN}/*/*.png"}
        return {
            "tab": asked.tab,
            "class": self.class_names[asked.label],
            "step": step,
            "options": asked.options,
            "checkpoint": self.source.name,
            "checkpoint_sha256": self.source.sha256,
            "assumptions": self.source.assumptions,
            **self.precision.summary(),
            "command": list(words),
            "made_again": again.get(asked.tab, f"{AGAIN}/*/{Path(INPUT).stem}.png"),
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "environment": environment(),
        }


def _png(x_u8: Tensor) -> bytes:
    return encode(x_u8.permute(1, 2, 0).numpy())


def gif_of(frames: Sequence[Tensor], steps: Sequence[int], caption: str) -> bytes:
    """An animation of frames x_u8 [3,H,W], each with the number of its step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.gif"
        save_trajectory(path, [frame.unsqueeze(0) for frame in frames], [caption], steps)
        return path.read_bytes()
