"""bigroc models push and pull: a classifier as a repository of the Hugging Face hub, or as the folder of one."""

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from robust_models.checkpoints.checks import check_classifier, check_names
from robust_models.checkpoints.flags import CheckpointFlags, file_of
from robust_models.checkpoints.hub import HubName, export, fetch_from_hub, is_hub_name, upload
from robust_models.checkpoints.load import embedded_names
from robust_models.errors import UserError, about_field
from robust_models.runtime.config import STRICT
from robust_models.runtime.files import PRETRAINED, sha256_of, whole_file, whole_folder


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PushConfig(CheckpointFlags):
    """Repository: what is said of the classifier, and to whom."""

    file: str = Field(description="a checkpoint: a file, a Hugging Face folder or a name")
    to: str = Field(description="hf:OWNER/NAME, or a new folder that gets the same files")
    card: Path | None = Field(
        default=None, description="the model card in Markdown (null: the embedded classifier's, else made of the file)"
    )
    licence: str | None = Field(default=None, description="the hub's word for it: mit, apache-2.0, ...")
    private: bool = Field(default=False, description="a new repository is seen by its owner alone")
    message: str = Field(default="Classifier, config and model card", description="of the commit")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PullConfig:
    """Output: a copy outside of the hub's cache."""

    name: str = Field(description="hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE")
    out: Path | None = Field(default=None, description="the new file or folder to copy it to (null: the cache alone)")


def run_push(config: PushConfig) -> dict[str, Any]:
    """Writes the folder or commits it to the hub; gives what is there now."""
    target = _target(config)
    model = config.load(config.file, quiet=True)
    name = target.repo if isinstance(target, HubName) else target.name
    write = partial(export, model, name=name, file=file_of(config.file), card=_card(config), licence=config.licence)
    if isinstance(target, Path):
        with whole_folder(target) as folder:
            write(folder)
        return {"to": str(target), "files": _sizes(target), "commit": None}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder)
        keep_card = config.card is None
        with about_field("to"):
            commit = upload(folder, target, private=config.private, message=config.message, keep_card=keep_card)
        return {"to": str(target), "files": _sizes(folder), "commit": commit}


def run_pull(config: PullConfig) -> dict[str, Any]:
    """Fetches a checkpoint from the hub as it is now, and copies it where config.out says; gives where it lies."""
    check_pull(config)
    path = fetch_from_hub(HubName.parse(config.name), update=True)
    if config.out is not None:
        if path.is_dir():
            with whole_folder(config.out) as folder:
                shutil.copytree(path, folder, dirs_exist_ok=True)  # follows the cache's links
        else:
            with whole_file(config.out) as file:
                shutil.copyfile(path, file)
    at = config.out or path
    return {"name": config.name, "path": str(at), "sha256": sha256_of(at), "files": _sizes(at)}


def check_push(config: PushConfig) -> None:
    """UserError, as `push` would raise it, before anything is read or sent."""
    check_names(config)
    check_classifier(config.file, field="file")
    _target(config)
    _card(config)


def check_pull(config: PullConfig) -> None:
    """UserError, as `pull` would raise it, before anything is fetched."""
    if not config.name.startswith("hf:"):
        raise UserError(f"name: {config.name} is not hf:OWNER/NAME; files, and published names, need no pull")
    HubName.parse(config.name)
    if config.out is not None and config.out.exists():
        raise UserError(f"out: {config.out} exists; choose another place")


def _target(config: PushConfig) -> HubName | Path:
    """The repository, or the folder, which must be new. UserError."""
    if is_hub_name(config.to):
        with about_field("to"):
            target = HubName.parse(config.to)
        if target.file is not None:
            raise UserError(f"to: {config.to} names a file; give hf:OWNER/NAME")
        return target
    folder = Path(config.to)
    if folder.exists():
        raise UserError(f"to: {folder} exists; name a new folder, or hf:OWNER/NAME")
    return folder


def _card(config: PushConfig) -> str | None:
    file = config.card
    if file is None and config.file in embedded_names():
        file = PRETRAINED / f"{config.file}.md"
    if file is None or (config.card is None and not file.exists()):
        return None
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"card: {file} is not a readable text file ({type(error).__name__}: {error})") from error


def _sizes(path: Path) -> dict[str, int]:
    """Bytes by name."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {(file.relative_to(path).as_posix() if path.is_dir() else file.name): file.stat().st_size for file in files}
