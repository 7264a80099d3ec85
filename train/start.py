"""What a run starts from: its data, and its network, fresh or somebody's."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from robust_models.classifier import NORMALIZERS, Description, RobustClassifier
from robust_models.datasets import AnyDataset, Dataset, LazyDataset, load_dataset, open_dataset
from robust_models.datasets.beton import BetonStore
from robust_models.errors import UserError
from robust_models.labels import fit_labels
from robust_models.runtime.config import as_plain
from robust_models.runtime.distributed import Ranks
from robust_models.threat import ThreatModel
from train.config import TrainConfig
from train.loaders.base import (
    Loader,
    LoaderName,
    LoaderSettings,
    MixedLoader,
    ResidentLoader,
    in_memory,
    usable_cores,
)

DEFAULT_ARCH, DEFAULT_NORMALIZER = "resnet50", "cifar10"
FEW_STEPS = 20  # optimizer steps; with fewer the weights hardly move


def open_data(config: TrainConfig) -> tuple[AnyDataset, Dataset]:
    """The images to train on, and those held out: the last data.validation ones, in memory."""
    fields = config.data
    try:
        data = open_dataset(
            fields.path, "train", image_size=fields.image_size, class_names=fields.names, on_error=fields.on_error
        )
    except UserError as error:
        raise UserError(str(error).replace("--on-error", "--data.on-error")) from error
    kept = len(data) - fields.validation
    if kept <= 0:
        raise UserError(f"data.validation: {fields.validation} leaves nothing of the {len(data)} images to train on")
    if fields.limit is not None and fields.limit > kept:
        raise UserError(f"data.limit: {fields.limit} is more than the {kept} images that there are to train on")
    return data[: fields.limit or kept], in_memory(data[kept:], fields.on_error)


def warnings(config: TrainConfig, num_train: int, num_held_out: int, num_steps: int) -> list[str]:
    """What a recipe may not have meant for these images: most of them held out, hardly a step to train."""
    found = []
    if num_held_out > num_train:
        found.append(
            f"data.validation holds out {num_held_out} of the {num_train + num_held_out} images, so that {num_train} "
            "train; lower it"
        )
    if num_steps < FEW_STEPS:
        found.append(
            f"the whole run has {num_steps} steps ({num_train} images in batches of {config.batch_size}, "
            f"{config.epochs} epochs); raise --epochs or lower --batch-size"
        )
    return found


def open_loader(data: AnyDataset, config: TrainConfig, device: torch.device, ranks: Ranks) -> Loader:
    """This rank's part of every batch."""
    fields = config.data
    name = fields.loader
    if name == "auto":
        is_beton = isinstance(data, LazyDataset) and isinstance(data.store, BetonStore)
        name = "resident" if isinstance(data, Dataset) else "ffcv" if is_beton else "stream"
    made = 0 if fields.generated is None else _made_in_batch(config, ranks.world)
    settings = LoaderSettings(
        batch_size=config.batch_size - made,
        seed=config.seed,
        device=device,
        workers=_fair_share(ranks) if fields.workers is None else fields.workers,
        random_crop=fields.random_crop,
        on_error=fields.on_error,
        rank=ranks.rank,
        world=ranks.world,
    )
    loader = make_loader(name, data, settings)
    if fields.generated is None:
        return loader
    generated = open_generated(fields.generated, data, "data.generated")
    return MixedLoader(loader, ResidentLoader(generated, replace(settings, batch_size=made, seed=config.seed + 1)))


def open_generated(path: Path | str, real: AnyDataset, field: str) -> Dataset:
    """A generator's samples with their classes, as many pixels as the real images and of the same classes."""
    try:
        data = load_dataset(str(path), "train", image_size=real.image_size)
        y = fit_labels(data.y.numpy(), data.class_names, real.class_names, source=str(path))
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    return replace(data, y=torch.from_numpy(y), class_names=real.class_names)


def _made_in_batch(config: TrainConfig, world: int) -> int:
    """Generated images in the batch of a step, over all ranks, each of which gets as many."""
    made = round(config.data.generated_share * config.batch_size / world) * world
    if not 0 < made < config.batch_size:
        raise UserError(
            f"data.generated_share: {config.data.generated_share:g} of a batch of {config.batch_size} on {world} ranks "
            f"leaves no {'generated' if made == 0 else 'real'} image in it; change it, or --batch-size"
        )
    return made


def _fair_share(ranks: Ranks) -> int | None:
    """Of the cores, where several ranks of this machine load; else None, which is all of them."""
    if ranks.world == 1:
        return None
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world)))  # torchrun sets it


def make_model(config: TrainConfig, class_names: tuple[str, ...], image_size: int) -> RobustClassifier:
    """Fresh weights, or those of config.init with as many classes as there are (new_head: with a fresh last layer).

    description.recipe is the config and, under "init_assumed", what init's file did not state of the network.
    """
    if config.init is None:
        arch = config.arch or DEFAULT_ARCH
        description = Description(
            f"noised_{arch}" if config.noised and not arch.startswith("noised_") else arch,
            class_names,
            image_size,
            activation=config.activation or "relu",
            normalizer=NORMALIZERS[config.normalize or DEFAULT_NORMALIZER],
        )
        model = RobustClassifier.from_description(description)
    else:
        model = _loaded(config.init, config)
        if config.noised and not model.description.arch.startswith("noised_"):
            raise UserError(f"init: {config.init} is no network that can be told of noise; leave one of the two out")
        if config.new_head:
            replace_head(model, len(class_names))
        elif model.description.num_classes != len(class_names):
            raise UserError(
                f"init: {config.init} has {model.description.num_classes} classes, the data has {len(class_names)}; "
                "pass --new-head to replace its last layer"
            )
    radius = config.attack.radius
    assumed = model.description.known(("class_names", "image_size")).assumptions  # the data states these two
    recipe = {name: value for name, value in as_plain(config).items() if name not in ("out", "device")}
    model.description = replace(
        model.description,
        class_names=class_names,
        image_size=image_size,
        threat_model=ThreatModel(config.attack.norm, radius) if radius > 0 else None,
        recipe=recipe | ({"init_assumed": assumed} if assumed else {}),
        scores={},
        generation=None,
    )
    return model


def replace_head(model: RobustClassifier, num_classes: int) -> None:
    """A fresh last linear layer for num_classes. UserError where the last one does not give the logits."""
    head, old = model.head, model.description.num_classes
    if head.out_features != old:
        raise UserError(
            f"new_head: the last linear layer of {model.description.arch} gives {head.out_features} values for {old} "
            "classes, so it cannot be replaced"
        )
    name = next(name for name, module in model.network.named_modules() if module is head)
    parent, _, last = name.rpartition(".")
    fresh = nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
    setattr(model.network.get_submodule(parent), last, fresh)


def _loaded(checkpoint: str, config: TrainConfig) -> RobustClassifier:
    try:
        model = config.reading.load(checkpoint, fresh_head=config.new_head, section="init_reading")
    except UserError as error:
        raise UserError(str(error).replace("ckpt:", "init:", 1)) from error
    return model.requires_grad_(True)


def make_loader(name: LoaderName, data: AnyDataset, settings: LoaderSettings) -> Loader:
    """resident: the set on the device; stream: any set, read by worker processes; ffcv: a .beton, by compiled code.

    UserError for settings that do not fit: resident has no random crops, as it keeps one square of each image.
    """
    if name == "resident":
        if settings.random_crop:
            raise UserError(
                "data.random_crop: resident keeps one square of each image; give --data.loader stream or ffcv"
            )
        return ResidentLoader(data, settings)
    if name == "stream":
        from train.loaders.stream import StreamLoader

        return StreamLoader(data, settings)
    from train.loaders.ffcv.loader import FFCVLoader

    return FFCVLoader(data, settings)
