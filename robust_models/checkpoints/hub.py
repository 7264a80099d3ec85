"""Checkpoints on the Hugging Face hub: hf:OWNER/NAME as a name, and a classifier as a repository's files.

Only weights and JSON are fetched, into the hub's own cache. What is there is taken without asking the hub, so that
runs repeat and need no network; `bigroc models pull` asks for what is new. A folder that export() wrote, or that lies
in that cache, loads by its path as well.
"""

import json
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robust_models.checkpoints.ours import is_safetensors, read_description, read_safetensors, save
from robust_models.classifier import Description, RobustClassifier
from robust_models.errors import UserError
from robust_models.runtime.distributed import print_once

PREFIX = "hf:"
OPEN_CLIP = "open_clip:"  # before the names of its image-text models (words/open_clip_models.py)
RUN_FILE = "classifier.safetensors"  # as training writes it
OWN_FILE = "model.safetensors"  # the hub's word; this project's description is in its metadata
CARD = "README.md"
_FORM = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>[^\s]+))?", re.ASCII)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".tar")


@dataclass(frozen=True)
class HubName:
    """A repository, perhaps at a revision (branch, tag or commit), and perhaps one file of it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """ "hf:owner/name", "hf:owner/name@v1", "hf:owner/name/weights.pt". UserError for another form."""
        if (found := _FORM.fullmatch(text)) is None:
            raise UserError(f"ckpt: {text} is not hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE")
        return cls(**found.groupdict())

    def __str__(self) -> str:
        revision, file = (self.revision and f"@{self.revision}") or "", (self.file and f"/{self.file}") or ""
        return f"{PREFIX}{self.repo}{revision}{file}"


def is_hub_name(checkpoint: str | Path) -> bool:
    """Whether this is a name on the hub, and no file that is called so."""
    return str(checkpoint).startswith(PREFIX) and not Path(checkpoint).exists()


def fetch_from_hub(name: HubName, *, update: bool = False) -> Path:
    """The checkpoint's file or folder in the hub's cache, downloaded with progress where it is missing, or with update.

    UserError where the repository is not there, cannot be reached, or holds no one checkpoint.
    """
    hub = _library()
    with _reported(hub, name):
        if not update and (cached := _cached(hub, name)) is not None:
            return cached
        wanted = wanted_files(hub.HfApi().list_repo_files(name.repo, revision=name.revision), name)
        print_once([f"{name}: {', '.join(wanted)} from the Hugging Face hub, kept in its cache"])
        folder = Path(hub.snapshot_download(name.repo, revision=name.revision, allow_patterns=wanted))
    return _checkpoint_of(folder, wanted)


def wanted_files(names: Sequence[str], name: HubName) -> list[str]:
    """Which of a repository's files make its checkpoint: one file, or those of a Hugging Face folder.

    UserError where there is none, or several that could be meant.
    """
    if name.file is not None:
        if name.file not in names:
            raise UserError(f"ckpt: {name.repo} has no file {name.file}; it has {_listed(names)}")
        return [name.file]
    weights = [file for file in names if file.endswith(_WEIGHTS) and "/" not in file]
    if "config.json" in names:
        for whole in (OWN_FILE, "pytorch_model.bin"):
            shards = [file for file in weights if f"{whole}.index.json" in names and _is_shard(file, whole)]
            if whole in names or shards:
                settings = [file for file in names if file.endswith(".json") and "/" not in file]
                return [*settings, *(shards if whole not in names else [whole])]
    if len(weights) == 1:
        return weights
    if not weights:
        raise UserError(f"ckpt: {name.repo} holds no weights ({', '.join(_WEIGHTS)}); it has {_listed(names)}")
    raise UserError(
        f"ckpt: {name.repo} holds {len(weights)} files of weights; name one: "
        f"{', '.join(f'{PREFIX}{name.repo}/{file}' for file in weights[:4])}"
    )


def own_file(folder: Path) -> Path | None:
    """The file of this project's format in a folder of export() or of a training run; None where there is none."""
    for file in (folder / OWN_FILE, folder / RUN_FILE):
        if file.is_file() and is_safetensors(file) and "bigroc" in read_safetensors(file)[1]:
            return file
    return None


def export(
    model: RobustClassifier,
    folder: Path,
    *,
    name: str,
    file: Path | None = None,
    card: str | None = None,
    licence: str | None = None,
) -> None:
    """Writes the classifier as the files of a repository: OWN_FILE, config.json and the model card README.md.

    file: where it was read from, which is copied, byte for byte, if it says the same of the classifier. card: its text
    in Markdown, instead of one made of the description. UserError where the model is a program.
    """
    if file is not None and _says(file, model.description):
        shutil.copyfile(file, folder / OWN_FILE)
    else:
        save(model, folder / OWN_FILE)
    config = {"library_name": "bigroc", **asdict(model.description)}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    (folder / CARD).write_text(_front_matter(model, licence) + (card or describe_in_words(model, name)), "utf-8")


def _says(file: Path, description: Description) -> bool:
    """Whether this is a file of this project with that description."""
    if not file.is_file() or not is_safetensors(file):
        return False
    text = read_safetensors(file)[1].get("bigroc")
    return text is not None and read_description(text, file, any_function=True) == description


def upload(folder: Path, name: HubName, *, private: bool, message: str, keep_card: bool) -> str:
    """Makes the repository where it is missing and commits the folder's files there; gives the commit's address.

    keep_card: leave a README.md that stands there as it is. UserError where the hub refuses.
    """
    hub = _library()
    with _reported(hub, name):
        api = hub.HfApi()
        api.create_repo(name.repo, private=private, exist_ok=True)
        ignored = [CARD] if keep_card and api.file_exists(name.repo, CARD, revision=name.revision) else None
        commit = api.upload_folder(
            repo_id=name.repo,
            folder_path=folder,
            revision=name.revision,
            commit_message=message,
            ignore_patterns=ignored,
        )
    return str(commit.commit_url)


def describe_in_words(model: RobustClassifier, name: str) -> str:
    """A model card in Markdown of what the description says."""
    description = model.description
    scores = {key: value for key, value in description.scores.items() if isinstance(value, int | float)}
    rows = {
        "architecture": description.arch,
        "parameters": f"{sum(p.numel() for p in model.network.parameters()):,}",
        "input": f"RGB, {description.image_size}x{description.image_size}, in [0,1]; the normaliser is inside",
        "classes": f"{len(description.class_names)}: {', '.join(description.class_names[:10])}"
        + (", ..." if len(description.class_names) > 10 else ""),
        "trained against": str(description.threat_model or "nothing"),
        "generates by": str(description.generation or ""),
        "not stated by its source, assumed": ", ".join(f"{k} {v}" for k, v in description.assumptions.items()),
        **{key.replace("_", " "): f"{value:.4g}" for key, value in scores.items()},
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)
    return (
        f"# {name}\n\nAn image classifier for adversarial robustness, image refinement and synthesis.\n\n"
        f"| | |\n|---|---|\n{table}\n\n## Use\n\n```python\nfrom bigroc import load, refine\n\n"
        f'model = load("hf:{name}")  # logits of images in [0,1]\n```\n\n```\nbigroc refine --ckpt hf:{name} '
        "--input IMAGES --out refined.npz\n```\n"
    )


def _front_matter(model: RobustClassifier, licence: str | None) -> str:
    """The card's head, which the hub reads."""
    from huggingface_hub import ModelCardData

    robust = model.description.threat_model is not None
    data = ModelCardData(
        library_name="bigroc",
        pipeline_tag="image-classification",
        license=licence,
        tags=["adversarial-robustness", *(["robust-classifier"] if robust else [])],
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _cached(hub: Any, name: HubName) -> Path | None:
    """The checkpoint, where the cache has all of it."""
    try:
        folder = Path(hub.snapshot_download(name.repo, revision=name.revision, local_files_only=True))
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        return _checkpoint_of(folder, wanted_files(sorted(names), name))
    except (hub.errors.LocalEntryNotFoundError, UserError):  # nothing, or what another program needed of it
        return None


def _checkpoint_of(folder: Path, wanted: Sequence[str]) -> Path:
    return folder / wanted[0] if len(wanted) == 1 else own_file(folder) or folder


@contextmanager
def _reported(hub: Any, name: HubName) -> Iterator[None]:
    """One line for what the library raises."""
    try:
        yield
    except (hub.errors.HTTPError, OSError, ValueError) as error:
        reason = textwrap.shorten(" ".join(str(error).split()), 160, placeholder=" ...")
        raise UserError(
            f"ckpt: {name}: the Hugging Face hub gives nothing ({type(error).__name__}: {reason}); a private "
            "repository needs `hf auth login`; a copy in the hub's cache, or a folder given by its path, does as well"
        ) from error


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError('ckpt: hf: names need huggingface_hub; pip install "bigroc[hub]"') from error
    return huggingface_hub


def _is_shard(file: str, whole: str) -> bool:
    stem, suffix = whole.rsplit(".", 1)
    return re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}", file) is not None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") or "no files"
