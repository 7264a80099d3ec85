"""Trains a small image-text model adversarially, from a robust classifier and captions made of labels and colours.

    python -m benchmarks.image_text --data cifar10 --out words.safetensors

    bigroc refine --ckpt words.safetensors --prompt "a red truck" --input IMAGES --out red.npz --eps 3
    bigroc refine --task generate --ckpt words.safetensors --prompt "a green frog" --out frogs/

A caption names an image's class, the colour of its middle, that of its border, or some of them: "a photo of a red ship
on blue". The image network begins as --init, with a new last layer; the text tower begins anew and reads nothing but
the captions' words. Images are attacked towards other captions' side before each update (Mao et al. 2023,
arXiv:2212.07016, do so to CLIP). The same seed and machine give the same bytes.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_models import load
from robust_models.architectures.text_tower import TextTower, words_of
from robust_models.attacks import PGD
from robust_models.checkpoints.words.two_towers import TwoTowers, save_two_towers
from robust_models.classifier import RobustClassifier
from robust_models.datasets import load_dataset
from robust_models.images import to_float
from train.batch_norm import freeze_batch_norms
from train.start import replace_head

EMBEDDING, SCALE = 64, 20.0
COLOURS = {
    "red": (0.75, 0.15, 0.15), "orange": (0.85, 0.5, 0.15), "yellow": (0.85, 0.8, 0.3), "green": (0.25, 0.55, 0.2),
    "blue": (0.35, 0.55, 0.85), "purple": (0.5, 0.3, 0.6), "pink": (0.9, 0.6, 0.65), "brown": (0.45, 0.32, 0.22),
    "black": (0.1, 0.1, 0.1), "grey": (0.5, 0.5, 0.5), "white": (0.92, 0.92, 0.92),
}  # fmt: skip
HOLES = {"thing", "middle", "border"}
ANY = -1  # what a caption does not say
FORMS = {  # whether they say class, colour of the middle, colour of the border
    "a photo": (False, False, False),
    "a photo of a {thing}": (True, False, False),
    "a {thing}": (True, False, False),
    "a photo of something {middle}": (False, True, False),
    "a photo of a {middle} {thing}": (True, True, False),
    "a {middle} {thing}": (True, True, False),
    "a {thing} on {border}": (True, False, True),
    "a photo of a {middle} {thing} on {border}": (True, True, True),
}
FREQUENT = torch.tensor([0.5, 3, 2, 2, 3, 2, 1, 2])


@dataclass(frozen=True)
class Captions:
    """What is true of each image, [N,3]: class, colour of its middle and of its border; and the words for it."""

    facts: Tensor
    things: tuple[str, ...]

    def draw(self, rows: Tensor, generator: torch.Generator) -> tuple[list[str], Tensor]:
        """A caption for each of these images, and what it says, [n,3] with ANY for what it leaves out."""
        forms = torch.multinomial(FREQUENT, len(rows), replacement=True, generator=generator)
        names = [*FORMS]
        says = torch.tensor([FORMS[name] for name in names])[forms]
        facts = self.facts[rows].where(says, torch.tensor(ANY))
        texts = []
        for form, (thing, middle, border) in zip(forms.tolist(), self.facts[rows].tolist(), strict=True):
            named = {"thing": self.things[thing], "middle": [*COLOURS][middle], "border": [*COLOURS][border]}
            texts.append(names[form].format(**named))
        return texts, facts

    @property
    def words(self) -> list[str]:
        """All that captions use."""
        texts = (*FORMS, *self.things, *COLOURS)
        return sorted({word for text in texts for word in words_of(text.replace("{", "").replace("}", ""))} - HOLES)


def nearest_colour(x: Tensor) -> Tensor:
    """The colour [N] that is nearest to each mean [N,3] in [0,1]."""
    return torch.cdist(x, torch.tensor([*COLOURS.values()])).argmin(dim=1)


def captions_of(x_u8: Tensor, y: Tensor, things: tuple[str, ...]) -> Captions:
    """Of images uint8 [N,3,H,W] of classes y [N]."""
    side = x_u8.shape[-1]
    quarter, edge = side // 4, max(1, side // 8)
    inside = torch.zeros(side, side, dtype=torch.bool)
    inside[quarter:-quarter, quarter:-quarter] = True
    border = torch.ones(side, side, dtype=torch.bool)
    border[edge:-edge, edge:-edge] = False
    colours = [
        torch.cat([nearest_colour(to_float(part)[..., mask].mean(dim=2)) for part in x_u8.split(2000)])
        for mask in (inside, border)
    ]
    return Captions(torch.stack([y, *colours], dim=1), things)


def is_true(said: Tensor, facts: Tensor) -> Tensor:
    """[N,T]: whether each of T captions, saying [T,3], is true of each image, whose facts are [N,3]."""
    return ((said == ANY) | (said == facts[:, None])).all(dim=2)


class Matching(nn.Module):
    """x -> scale times the cosine with each caption, [N,T]; other captions that are true of an image do not compete."""

    def __init__(self, image: RobustClassifier, texts: Tensor, is_other_truth: Tensor) -> None:
        super().__init__()
        self.image, self.texts, self.is_other_truth = image, texts, is_other_truth

    def forward(self, x: Tensor) -> Tensor:
        logits = SCALE * F.normalize(self.image(x), dim=1) @ self.texts.T
        return logits.masked_fill(self.is_other_truth, -torch.inf)


def main() -> None:
    args = flags().parse_args()
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    image = load(args.init)
    data = load_dataset(args.data, "train", class_names=image.class_names)
    index = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(args.seed))[: args.limit]
    x_u8, y = data.x_u8[index], data.y[index]
    captions = captions_of(x_u8, y, data.class_names)
    replace_head(image, EMBEDDING)
    image.description = replace(image.description, class_names=tuple(map(str, range(EMBEDDING))), scores={}, recipe={})
    text = TextTower(captions.words, EMBEDDING)
    attack = PGD(args.eps, args.eps / args.steps * 1.5, args.steps, random_start=True)
    rates = {image: args.lr, text: 10 * args.lr}
    adam = torch.optim.AdamW([{"params": net.parameters(), "lr": lr} for net, lr in rates.items()], weight_decay=0.01)
    batches = args.epochs * (len(y) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, [*rates.values()], total_steps=batches, pct_start=0.1)
    draws = torch.Generator().manual_seed(args.seed)
    done = 0
    for epoch in range(args.epochs):
        total = torch.zeros(2)
        for rows in torch.randperm(len(y), generator=draws).split(args.batch_size):
            if len(rows) < args.batch_size:
                continue
            said, facts = captions.draw(rows, draws)
            x = to_float(x_u8[rows])
            x = x.flip(3).where(torch.randint(2, (len(x), 1, 1, 1), generator=draws).bool(), x)
            own = torch.arange(len(rows))
            is_other = is_true(facts, captions.facts[rows]) & (own != own[:, None])
            tokens = text.tokens(said)
            with torch.no_grad():
                towards = F.normalize(text(tokens), dim=1)
            x_adv = attack.unchecked(Matching(image, towards, is_other), x, own, generator=draws)
            image.train()
            freeze_batch_norms(image)
            logits = Matching(image, F.normalize(text(tokens), dim=1), is_other)(x_adv)
            loss = F.cross_entropy(logits, own) + F.cross_entropy(logits.T.masked_fill(is_other.T, -torch.inf), own)
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
            done += 1
            total += torch.stack([loss.detach(), (logits.argmax(1) == own).float().mean()])
        loss, hits = (total / (len(y) // args.batch_size)).tolist()
        print(f"epoch {epoch + 1}/{args.epochs} loss {loss:.3f} own caption first {hits:.1%} "
              f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    model = TwoTowers(image.eval(), text.eval(), SCALE)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_two_towers(model, args.out)
    found = {"wall_s": round(time.perf_counter() - start), "images": len(y), "epochs": args.epochs, "seed": args.seed}
    print(json.dumps(found | scores(args.out, args.test or args.data, data.class_names, args.test_limit)))


def scores(file: Path, source: str, things: tuple[str, ...], limit: int) -> dict[str, float]:
    """Zero-shot accuracy on test images, of classes and of the colour in the middle; clean and under PGD-20, eps .5."""
    from eval import robust_accuracy

    test = load_dataset(source, "test")
    x_u8, y = test.x_u8[:limit], test.y[:limit]
    colours = captions_of(x_u8, y, things).facts[:, 1]
    asked = {"class": (things, "a photo of a {}", y), "colour": ([*COLOURS], "a photo of something {}", colours)}
    found: dict[str, float] = {"test_images": len(y)}
    for name, (names, template, labels) in asked.items():
        model = load(file, class_names=names, template=template)
        result = robust_accuracy(model, (x_u8, labels), eps=0.5, steps=20)
        found |= {f"{name}_clean": round(result.clean, 4), f"{name}_pgd20": round(result.robust, 4)}
    return found


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="a labelled dataset, as for train")
    parser.add_argument("--test", default=None, help="where the test images are (default: in --data)")
    parser.add_argument("--out", type=Path, required=True, help="the model's file")
    parser.add_argument("--init", default="cifar10-l2-small", help="the classifier that the image network begins as")
    parser.add_argument("--limit", type=int, default=20_000, help="train images")
    parser.add_argument("--test-limit", type=int, default=500, help="test images of the scores")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=5e-4, help="of the image network; the text tower's is ten times it")
    parser.add_argument("--eps", type=float, default=0.5, help="radius of the attack, L2, pixels in [0,1]")
    parser.add_argument("--steps", type=int, default=2, help="of the attack")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
