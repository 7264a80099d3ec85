"""Generators as input: sampled by seed and index, refined in one stream, the same on any shards, batches and ranks."""

import itertools
import pickle
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import refine.cli
import refine.pipeline
from refine.generators.sampler import Blocks, Sampling
from refine.refine_batch import BatchRefiner
from robust_models import open_images, save
from tests.test_distributed import finish, start
from tests.test_refine_shards import Killed, everything, killed_before, leftovers, manifest, threads
from tests.tiny import CLASSES, tiny_classifier

N, SHARD = 20, 8
GAN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=0):
        super().__init__()
        torch.manual_seed(1)
        self.z_shape = (8,)
        self.pixels = "symmetric"
        if num_classes:
            self.num_classes = num_classes
        self.embed = nn.Embedding(max(num_classes, 1), 8)
        layers = [nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3 * 16 * 16), nn.Tanh()]
        self.net = nn.Sequential(*layers)

    def forward(self, z, y: torch.Tensor | None = None):
        z = z if y is None else z + 3 * self.embed(y)
        return self.net(z).view(-1, 3, 16, 16)


plain, conditional = Net(), Net(3)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """The current folder has a module of the user's own."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    Path("my_gan.py").write_text(GAN)
    yield
    for name in ("my_gan", "mine"):
        sys.modules.pop(name, None)


def argv(checkpoint, spec, out, **flags) -> list[str]:
    defaults = {"num_images": N, "eps": 1, "steps": 2, "shard_size": SHARD, "device": "cpu", "precision": "fp32"}
    flags = {"ckpt": checkpoint, "generator": spec, "out": out, **defaults, "trust": "true", **flags}
    given = {name: value for name, value in flags.items() if value is not None}
    return [str(word) for word in itertools.chain(*((f"--{name}", value) for name, value in given.items()))]


def run(checkpoint, spec, out, **flags) -> int:
    return refine.cli.main(argv(checkpoint, spec, out, **flags))


def pixels(out: Path | str) -> Tensor:
    images = open_images(out)
    return images.read(0, len(images))


def complaint(capsys) -> str:
    """The one line of a command that failed."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


# One stream


def test_a_refined_stream_is_the_refined_set_of_its_raw_samples(checkpoint, tmp_path):
    """Byte for byte, and so are manifest and labels."""
    assert run(checkpoint, "python:my_gan:conditional", "a.npz", keep_raw="raw.npz") == 0
    assert run(checkpoint, None, "b.npz", input="raw.npz", num_images=None) == 0
    assert everything(tmp_path / "a.npz") == everything(tmp_path / "b.npz")
    raw = open_images("raw.npz")
    assert raw.labels is not None
    assert raw.labels.tolist() == [i % 3 for i in range(N)]
    assert raw.class_names == CLASSES
    assert all(row["label_source"] == "given" for row in manifest(tmp_path / "a.npz"))
    assert len(pixels("raw.npz").flatten(1).unique(dim=0)) == N
    assert leftovers(tmp_path) == []


def test_nothing_but_the_work_folder_holds_samples_and_each_is_made_once(checkpoint, tmp_path, monkeypatch):
    made, files = [], []
    original = Sampling.block

    def block(self, first, count, *, quick=False):
        files.extend(path.name for path in tmp_path.rglob("*samples*"))
        made.extend([] if quick else range(first, first + count))
        return original(self, first, count, quick=quick)

    monkeypatch.setattr(Sampling, "block", block)
    assert run(checkpoint, "python:my_gan:plain", "a.npz", generator_batch=4) == 0
    assert made == list(range(N))
    assert files == []
    made.clear()
    assert run(checkpoint, "python:my_gan:plain", "b.npz", generator_batch=4, grid="g.png", targets="balanced") == 0
    assert made == list(range(N))


@pytest.mark.parametrize("flags", [{}, {"targets": "balanced"}])
def test_neither_shards_nor_batches_nor_threads_change_a_bit(checkpoint, tmp_path, flags):
    with threads(1):
        assert run(checkpoint, "python:my_gan:plain", "a.npz", shard_size=4096, **flags) == 0
    for batch_size, shard_size, count in ((1, 7, 1), (7, 3, 2), (64, 16, 2)):
        out = tmp_path / f"{batch_size}.npz"
        with threads(count):
            assert (
                run(checkpoint, "python:my_gan:plain", out, batch_size=batch_size, shard_size=shard_size, **flags) == 0
            )
        assert everything(out) == everything(tmp_path / "a.npz")


def test_ranks_change_no_bit(checkpoint, tmp_path):
    flags = {"keep_raw": tmp_path / "raw.npz", "targets": "balanced"}
    assert run(checkpoint, "python:my_gan:conditional", tmp_path / "one.npz", **flags) == 0
    flags["keep_raw"] = tmp_path / "raw_of_two.npz"
    ended = finish(start("-m", "refine", *argv(checkpoint, "python:my_gan:conditional", tmp_path / "two.npz", **flags)))
    assert [status for status, *_ in ended] == [0, 0], ended
    assert everything(tmp_path / "one.npz") == everything(tmp_path / "two.npz")
    assert Path("raw.npz").read_bytes() == Path("raw_of_two.npz").read_bytes()


@pytest.mark.parametrize(("function", "targets"), [("plain", "balanced"), ("conditional", "given")])
def test_killed_at_a_commit_and_resumed_it_makes_the_same_bytes(checkpoint, tmp_path, function, targets):
    flags = {"num_images": 3, "shard_size": 2, "targets": targets, "steps": 1}
    spec = f"python:my_gan:{function}"
    assert run(checkpoint, spec, "undisturbed.npz", keep_raw="undisturbed_raw.npz", **flags) == 0
    for commit in itertools.count(step=3):
        out, raw = tmp_path / f"{commit}.npz", tmp_path / f"raw{commit}.npz"
        try:
            with killed_before(commit):
                run(checkpoint, spec, out, keep_raw=raw, **flags)
            break
        except Killed:
            for work in (out, raw):
                state = tmp_path / f"{work.name}.work"
                if work.exists() and state.exists() and not (state / "run.json").exists():
                    state.rmdir()  # all was done but this
            if not (out.exists() and record_stands(out)):
                assert run(checkpoint, spec, out, keep_raw=raw, **flags) == 0
        assert everything(out) == everything(tmp_path / "undisturbed.npz")
        assert raw.read_bytes() == Path("undisturbed_raw.npz").read_bytes()
        assert leftovers(tmp_path) == []
    assert commit > 20


def record_stands(out: Path) -> bool:
    return out.with_name(f"{out.name}.run.json").exists() and not out.with_name(f"{out.name}.work").exists()


def test_raw_samples_serve_several_runs_and_are_nobodys_to_replace(checkpoint, tmp_path, capsys):
    assert run(checkpoint, "python:my_gan:plain", "a.npz", keep_raw="raw.npz") == 0
    first = Path("raw.npz").stat().st_mtime_ns
    assert run(checkpoint, "python:my_gan:plain", "b.npz", keep_raw="raw.npz", eps=2) == 0
    assert Path("raw.npz").stat().st_mtime_ns == first
    capsys.readouterr()
    assert run(checkpoint, "python:my_gan:plain", "c.npz", keep_raw="raw.npz", generator_seed=1) == 2
    assert "raw.npz exists, made with another generator_seed (0 there, 1 now)" in complaint(capsys)
    assert not Path("c.npz").exists()
    assert run(checkpoint, "python:my_gan:plain", "c.npz", keep_raw="c.npz") == 2
    assert "overlaps" in complaint(capsys)


def test_the_same_command_again_is_done_and_another_seed_is_another_run(checkpoint, capsys):
    assert run(checkpoint, "python:my_gan:plain", "a.npz") == 0
    assert run(checkpoint, "python:my_gan:plain", "a.npz") == 0
    assert "already done" in capsys.readouterr().out
    assert run(checkpoint, "python:my_gan:plain", "a.npz", generator_seed=1) == 2
    assert "made with another generator_seed" in complaint(capsys)
    Path("my_gan.py").write_text(GAN + "# changed\n")
    assert run(checkpoint, "python:my_gan:plain", "a.npz") == 2
    assert "made with another generator files" in complaint(capsys)


def test_auto_eps_chooses_on_samples_what_it_chooses_on_their_set(checkpoint, labelled_npz, tmp_path):
    save(tiny_classifier(), tmp_path / "judge.safetensors")
    flags = {"eps": "auto", "reference": labelled_npz, "judge": tmp_path / "judge.safetensors", "auto_images": 8}
    flags |= {"auto_accept": "best", "num_images": 24}
    assert run(checkpoint, "python:my_gan:plain", "a.npz", keep_raw="raw.npz", **flags) == 0
    assert run(checkpoint, None, "b.npz", input="raw.npz", **{**flags, "num_images": None}) == 0
    assert everything(tmp_path / "a.npz") == everything(tmp_path / "b.npz")


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("out", ["out", "out.npz", "out.npy", "out.pt", "out.tar", "out.parquet"])
def test_every_kind_of_set_is_written(checkpoint, out, conditional):
    if out.endswith("parquet"):
        pytest.importorskip("pyarrow")
    spec = f"python:my_gan:{'conditional' if conditional else 'plain'}"
    assert run(checkpoint, spec, out) == 0
    assert run(checkpoint, spec, "same.npz") == 0
    written, same = open_images(out), open_images("same.npz")
    has_labels = conditional and out != "out.npy"
    assert (written.labels is not None) == has_labels
    order = range(N)
    if out == "out":  # a folder's files are read in the order of their names, class by class
        order = [int(name.rpartition("/")[2]) for name in written.names]
    assert torch.equal(written.read(0, N), same.read(0, N)[list(order)])
    if has_labels:
        assert written.labels.tolist() == same.labels[list(order)].tolist()


def test_samples_that_were_made_are_kept_when_a_run_is_stopped(checkpoint, monkeypatch, capsys):
    made, original = [], Sampling.block

    def block(self, first, count, *, quick=False):
        made.extend([] if quick else range(first, first + count))
        return original(self, first, count, quick=quick)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampling, "block", block)
    with monkeypatch.context() as patch:
        patch.setattr(BatchRefiner, "refine", stopped)
        assert run(checkpoint, "python:my_gan:plain", "a.npz", keep_raw="raw.npz") == 130
    assert "nothing of a.npz was finished; the same command goes on with the samples" in capsys.readouterr().err
    assert len(pixels("raw.npz")) == len(made) == N
    assert run(checkpoint, "python:my_gan:plain", "a.npz", keep_raw="raw.npz") == 0
    assert len(made) == N


def test_shards_of_samples_are_small(checkpoint, monkeypatch):
    """So that many ranks have something to do, and a killed run loses little."""
    counts = []
    original = refine.pipeline.assemble

    def assemble(work, images, shards, *others):
        counts.extend(map(shards.count, range(len(shards))))
        return original(work, images, shards, *others)

    monkeypatch.setattr(refine.pipeline, "assemble", assemble)
    assert run(checkpoint, "python:my_gan:plain", "a.npz", num_images=260, steps=1, shard_size=4096) == 0
    assert counts == [256, 4]


# What a sampler is called with


class Noise:
    """Images that show what was drawn for them: their own noise, and what every library shares."""

    num_classes, numbers, batch = None, {}, None

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, generators, y, *, quick=False) -> Tensor:
        self.calls += 1
        own = torch.stack([torch.rand(3, 4, 4, generator=one) for one in generators])
        shared = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return (own + shared) / 4


def test_any_part_of_the_images_is_the_same_read_alone():
    def blocks() -> Blocks:
        return Blocks(Sampling("noise", Noise(), None, 0, torch.device("cpu")), 4, (4, 4))

    whole = blocks()(0, 11)
    assert whole.shape == (11, 3, 4, 4)
    assert whole.dtype == torch.uint8
    for first, end in ((0, 1), (10, 11), (3, 9), (4, 8)):
        assert torch.equal(blocks()(first, end), whole[first:end])
    counted = blocks()
    for i in range(11):
        counted(i, i + 1)
    assert counted.sampling.sampler.calls == 3
    assert counted(999_999_997, 999_999_999).shape == (2, 3, 4, 4)
    assert counted.sampling.sampler.calls == 4


def test_no_two_images_have_the_same_noise():
    """Of 300,000 seeds drawn among PyTorch's 2**32, ten pairs would be equal."""
    seeds = [Sampling("noise", Noise(), None, seed, torch.device("cpu")).noise_seeds(0, 300_000) for seed in (0, 1)]
    assert [len(set(one)) for one in seeds] == [300_000, 300_000]
    assert not set(seeds[0]) & set(seeds[1])
    assert Sampling("noise", Noise(), None, 0, torch.device("cpu")).noise_seeds(7, 2) == seeds[0][7:9]


def test_shared_random_numbers_are_put_back_as_they_were():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    expected = torch.rand(()), np.random.rand(), random.random()  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    Blocks(Sampling("noise", Noise(), None, 0, torch.device("cpu")), 4, (4, 4))(0, 9)
    assert (torch.rand(()), np.random.rand(), random.random()) == expected  # noqa: NPY002


# Functions and programs


def test_a_network_that_mixes_its_batch_is_reproducible_too(checkpoint, tmp_path):
    Path("mine.py").write_text("import my_gan\n\ndef training(z):\n    return my_gan.plain.train()(z)\n")
    flags = {"generator_latent": "8", "generator_pixels": "symmetric", "generator_batch": 8}
    assert run(checkpoint, "python:mine:training", "a.npz", **flags, shard_size=64) == 0
    assert run(checkpoint, "python:mine:training", "b.npz", **flags, shard_size=3) == 0
    assert everything(tmp_path / "a.npz")[""] == everything(tmp_path / "b.npz")[""]


def program(how: str, classes: int = 0, batch: int | None = None) -> Path:
    """my_gan's network as a TorchScript or torch.export file; batch: the only one that it takes."""
    import my_gan

    net, file = my_gan.Net(classes).eval(), Path(f"{how}{classes}.pt2" if "export" in how else f"{how}{classes}.pt")
    example = (torch.zeros(batch or 2, 8), *([torch.zeros(batch or 2, dtype=torch.int64)] if classes else []))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        if how == "export":
            free = {0: torch.export.Dim("batch", min=1)}
            shapes = None if batch else (free, free) if classes else (free,)
            torch.export.save(torch.export.export(net, example, dynamic_shapes=shapes), file)
        else:
            (torch.jit.script(net) if how == "script" else torch.jit.trace(net, example)).save(file)
    return file


FILES = {  # how the file is made, and what has to be said of it
    "script": ("torchscript", {}),  # its attributes say the rest
    "trace": ("torchscript", {"generator_latent": "8", "generator_pixels": "symmetric"}),
    "export": ("export", {"generator_pixels": "symmetric"}),
}


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("how", FILES)
def test_a_program_makes_the_images_of_its_network(checkpoint, how, conditional):
    kind, flags = FILES[how]
    file = program(how, 3 if conditional else 0)
    flags = flags | ({"generator_classes": 3} if conditional else {})
    assert run(checkpoint, f"{kind}:{file}", "a.npz", keep_raw="raw.npz", **flags) == 0
    assert (
        run(checkpoint, f"python:my_gan:{'conditional' if conditional else 'plain'}", "b.npz", keep_raw="own.npz") == 0
    )
    difference = (pixels("raw.npz").int() - pixels("own.npz").int()).abs()
    assert difference.max() <= 1  # a program's kernels round otherwise
    assert (difference > 0).float().mean() < 0.01


def test_a_program_of_one_batch_size_is_given_that(checkpoint, capsys):
    file = program("export", batch=8)
    assert run(checkpoint, f"export:{file}", "a.npz", keep_raw="raw.npz", generator_pixels="symmetric") == 0
    assert len(pixels("raw.npz").flatten(1).unique(dim=0)) == N
    assert run(checkpoint, f"export:{file}", "b.npz", generator_pixels="symmetric", num_images=3) == 0
    assert len(pixels("b.npz")) == 3


def test_a_pickle_is_opened_by_the_code_that_it_names(checkpoint):
    """As the page has it for StyleGAN: the network takes one-hot classes."""
    Path("mine.py").write_text(
        "import pickle\nimport torch\nimport my_gan\n\n"
        "with open('network.pkl', 'rb') as file:\n    network = pickle.load(file)['G_ema'].eval()\n\n"
        "def images(z, y):\n    one_hot = torch.nn.functional.one_hot(y, 3)\n"
        "    return network(z, one_hot.argmax(1)).clamp(-1, 1)\n\n"
        "images.z_shape, images.num_classes, images.pixels = 8, 3, 'symmetric'\n"
    )
    import my_gan

    Path("network.pkl").write_bytes(pickle.dumps({"G_ema": my_gan.conditional}))
    assert run(checkpoint, "python:mine:images", "a.npz", keep_raw="raw.npz") == 0
    assert run(checkpoint, "python:my_gan:conditional", "b.npz", keep_raw="own.npz") == 0
    assert torch.equal(pixels("raw.npz"), pixels("own.npz"))


def test_classes_are_matched_by_name_and_asked_for_in_turn(checkpoint):
    """A generator of more classes, in another order, whose names are known."""
    Path("mine.py").write_text(
        "import torch\n\ndef made(z, y):\n    return y.view(-1, 1, 1, 1).expand(-1, 1, 16, 16) / 10\n\n"
        "made.z_shape = 4\nmade.class_names = ['Bird', 'fish', 'airplane', 'automobile']\n"
    )
    assert run(checkpoint, "python:mine:made", "a.npz", keep_raw="raw.npz", num_images=6) == 0
    asked = [2, 3, 0, 2, 3, 0]
    assert (pixels("raw.npz")[:, 0, 0, 0].float() / 255 * 10).round().int().tolist() == asked
    assert open_images("raw.npz").labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert run(checkpoint, "python:mine:made", "b.npz", num_images=4, classes="bird,0") == 0
    assert open_images("b.npz").labels.tolist() == [2, 0, 2, 0]


def test_classes_that_the_classifier_does_not_know_are_made_but_are_no_targets(checkpoint, capsys):
    Path("mine.py").write_text("import my_gan\n\nnet = my_gan.Net(5)\n")
    assert run(checkpoint, "python:mine:net", "a.npz", targets="pseudo") == 0
    assert open_images("a.npz").labels.tolist() == [i % 5 for i in range(N)]
    capsys.readouterr()
    for flags in ({}, {"targets": "given"}, {"targets": "pseudo", "classes": "bird"}):
        assert run(checkpoint, "python:mine:net", "b.npz", **flags) == 2
        assert "makes 5 classes, the classifier knows 3" in complaint(capsys)


# Bad input


FUNCTIONS = """
import torch, itertools

def count(z, _=itertools.count()):
    return torch.full((len(z), 3, 16, 16), next(_) / 100)

def fresh(z):
    return torch.rand(len(z), 3, 16, 16, generator=torch.Generator().manual_seed(torch.Generator().seed()))

def flat(z):
    return torch.zeros(len(z), 16, 16)

def four(z):
    return torch.zeros(len(z), 4, 16, 16)

def fewer(z):
    return torch.zeros(1, 3, 16, 16)

def nan(z):
    return torch.full((len(z), 3, 16, 16), float("nan"))

def late(z):
    x = torch.zeros(len(z), 3, 16, 16)
    x[-1] = float("inf") if len(z) > 5 else 0
    return x

def growing(z):
    return torch.zeros(len(z), 3, 16 * (1 + (len(z) > 5)), 16)

def signed(z):
    return torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16).expand(len(z), -1, -1, -1)

def loud(z):
    return signed(z) * 255

def pair(z):
    return z, z

def broken(z):
    raise RuntimeError("no weights")

def odd(z):
    return signed(z)

def dark(z):
    return torch.linspace(0, 1, 768).view(1, 3, 16, 16).expand(len(z), -1, -1, -1)


odd.pixels = "symetric"
constant = 3
"""
LATENT = {"generator_latent": "8"}
BAD = {
    "unknown kind": ("difusers:x/y", {}, "'difusers' is none of diffusers, torchscript, export, python; did you mean"),
    "no kind": ("google/ddpm", {}, "'google/ddpm' is not of the form KIND:NAME; give diffusers:NAME_OR_FOLDER, tor"),
    "no name": ("python:", {}, "'python:' is not of the form KIND:NAME"),
    "both": ("python:my_gan:plain", {"input": "raw.npz"}, "input: raw.npz, but --generator makes the images"),
    "limit": ("python:my_gan:plain", {"limit": 3}, "limit: 3, but --generator makes the images (--num-images)"),
    "neither": (None, {"num_images": None}, "input: is required, or --generator"),
    "N missing": ("python:my_gan:plain", {"num_images": None}, "num_images: is required with --generator"),
    "N alone": (None, {"input": "raw.npz"}, "num_images: 20 is for --generator, which is not given"),
    "N is 0": ("python:my_gan:plain", {"num_images": 0}, "num_images: input should be greater than or equal to 1"),
    "flags of pipelines": ("python:my_gan:plain", {"generator_steps": 5}, "generator_steps: is for pipelines, not for"),
    "flags of functions": ("diffusers:x/y", LATENT, "generator_latent: is for functions and programs, not for"),
    "not trusted": ("python:my_gan:plain", {"trust": "false"}, "is code that runs with your rights; pass --trust"),
    "no module": ("python:my_gun:plain", {}, "the module my_gun cannot be imported (ModuleNotFoundError: No module"),
    "no function": ("python:my_gan:plane", {}, "'plane' is none of"),
    "near miss": ("python:my_gan:plane", {}, "did you mean plain?"),
    "no function named": ("python:my_gan", {}, "names no function; give python:PACKAGE.MODULE:FUNCTION"),
    "no function at all": ("python:mine:constant", LATENT, "is a int, which cannot be called"),
    "no latent": ("python:mine:nan", {}, "generator_latent: the shape of the noise that python:mine:nan takes is not"),
    "latent": ("python:mine:nan", {"generator_latent": "8,x"}, "generator_latent: '8,x' is no shape"),
    "own seed": ("python:mine:count", LATENT, "makes other images of the same noise (by up to 0.01)"),
    "fresh seed": ("python:mine:fresh", LATENT, "makes other images of the same noise"),
    "shape": ("python:mine:flat", LATENT, "gave [2, 16, 16] for 2 images; expected [2,3,height,width]"),
    "channels": ("python:mine:four", LATENT, "gave [2, 4, 16, 16] for 2 images; expected [2,3,height,width]"),
    "fewer images": ("python:mine:fewer", LATENT, "gave [1, 3, 16, 16] for 2 images"),
    "NaN": ("python:mine:nan", LATENT, "image 0 holds NaN or infinite numbers"),
    "late NaN": ("python:mine:late", LATENT, "image 19 holds NaN or infinite numbers"),
    "late size": ("python:mine:growing", LATENT, "gave images of 16x32 after others of 16x16"),
    "range": (
        "python:mine:signed",
        LATENT,
        "pixels run from -1 to 1, outside [0,1]; say what they are with --generator",
    ),
    "declared range": (
        "python:mine:loud",
        LATENT | {"generator_pixels": "symmetric"},
        "pixels run from -255 to 255, outside [-1,1]",
    ),
    "black": (
        "python:mine:dark",
        LATENT | {"generator_pixels": "bytes"},
        "pixels run from 0 to 1, which is black if they are bytes; leave --generator-pixels out, or say unit",
    ),
    "attribute": ("python:mine:odd", LATENT, "generator_pixels: the attribute pixels of python:mine:odd: 'symetric'"),
    "no tensor": ("python:mine:pair", LATENT, "the output is a tuple of 2, not one tensor"),
    "breaks": ("python:mine:broken", LATENT, "failed at 2 images (RuntimeError: no weights); --debug shows where"),
    "no classes": ("python:my_gan:plain", {"classes": "bird"}, "classes: 'bird', but python:my_gan:plain takes no cl"),
    "strange class": ("python:my_gan:conditional", {"classes": "fish"}, "classes: class 'fish' is none of the"),
    "no file": ("torchscript:nowhere.pt", {}, "generator: no file nowhere.pt"),
    "a pickle": ("torchscript:network.pkl", {}, "is no torchscript file; a pickle, as of StyleGAN, StudioGAN or mimic"),
    "image": ("python:my_gan:plain", {"out": "a.png"}, "out: a.png is the name of one image; name a folder or a file"),
    "save as png": ("python:my_gan:plain", {"save_as": "png"}, "save_as: png is for folders of image files, but"),
    "no folder": ("diffusers:./nowhere", {}, "no folder ./nowhere here; a pipeline of the hub is called OWNER/NAME"),
    "no pipeline": ("diffusers:empty", {}, "generator: empty is no pipeline that diffusers opens"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(checkpoint, tmp_path, capsys, case):
    spec, flags, message = BAD[case]
    if "diffusers" in message or case.startswith("no folder"):
        pytest.importorskip("diffusers")
    Path("mine.py").write_text(FUNCTIONS)
    Path("network.pkl").write_bytes(b"\x80\x04]q.")
    Path("empty").mkdir()
    assert run(checkpoint, spec, flags.pop("out", "out.npz"), **flags) == 2
    assert message in complaint(capsys)
    assert not Path("out.npz").exists()


@pytest.mark.parametrize(("prefix", "how"), [("export", "script"), ("torchscript", "export")])
def test_a_program_of_another_kind_is_told_apart(checkpoint, capsys, prefix, how):
    file, other = program(how), "torchscript" if prefix == "export" else "export"
    assert run(checkpoint, f"{prefix}:{file}", "out.npz") == 2
    assert f"give {other}:{file}" in complaint(capsys)


@pytest.mark.parametrize(("prefix", "how"), [("torchscript", "script"), ("export", "export")])
def test_no_program_is_run_without_trust(checkpoint, capsys, monkeypatch, prefix, how):
    file = program(how)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was loaded"))
    monkeypatch.setattr(torch.export, "load", lambda *_, **__: pytest.fail("it was loaded"))
    assert run(checkpoint, f"{prefix}:{file}", "out.npz", trust="false") == 2
    assert "not only tensors" in (said := complaint(capsys))
    assert "pass --trust" in said


def test_without_diffusers_one_line_says_what_to_install(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(checkpoint, "diffusers:google/ddpm-cifar10-32", "out.npz") == 2
    assert 'needs the package diffusers; pip install "bigroc[generators]"' in complaint(capsys)
