"""What can only be seen on a GPU; `pytest -m gpu` there."""

import pytest
import torch
import torch.distributed as dist

import refine
from robust_models import NORMS, PGD, load
from robust_models.datasets import open_dataset
from robust_models.datasets.beton import write_beton
from robust_models.runtime.device import place
from robust_models.runtime.distributed import Ranks, backend
from tests.test_train import tiny_config
from tests.tiny import loader_of, tiny_pixels
from train.loop import train as run
from train.parallel import average

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def test_refinement_on_the_gpu_agrees_with_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x = torch.rand(16, 3, 32, 32)
    expected = refine.refine(load("cifar10-l2-small"), x, eps=1.0)
    model = place(load("cifar10-l2-small"), torch.device("cuda"), "fp32")
    torch.testing.assert_close(refine.refine(model, x.cuda(), eps=1.0).cpu(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_bf16_attacks_stay_in_the_ball_and_raise_the_loss(norm):
    model = place(load("cifar10-l2-small"), torch.device("cuda"), "bf16")
    x = torch.rand(16, 3, 32, 32, device="cuda")
    y = model(x).argmax(1)
    x_adv = PGD(0.05, 0.02, 5, norm=norm, random_start=True)(model, x, y)
    assert (NORMS[norm].length(x_adv - x) <= 0.05 + 1e-5).all()
    assert (model(x_adv).softmax(1)[range(16), y] < model(x).softmax(1)[range(16), y]).all()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    "way", [{"compile": "false"}, {"compile": "true"}, {"compile": "true", "resize": "{0: 8, 0.25: 16}"}]
)
def test_training_learns_on_the_gpu(tmp_path, labelled_npz, way):
    fields = {"device": "cuda", "precision": "bf16", "epochs": "8", **way}
    summary = run(tiny_config(tmp_path / "run", labelled_npz, **fields))
    assert summary["validation"]["clean_accuracy"] > 0.6


def test_an_attack_is_captured_in_a_cuda_graph():
    """Nothing in the loop waits for the GPU: it can be recorded once and replayed on other images."""
    model, attack = place(load("cifar10-l2-small"), torch.device("cuda"), "fp32"), PGD(0.5, 0.1, 5)
    x, other = torch.rand(2, 16, 3, 32, 32, device="cuda")
    y = torch.arange(16, device="cuda") % 10
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        attack.unchecked(model, x, y)  # the libraries choose their kernels and memory
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x_adv = attack.unchecked(model, x, y)
    x.copy_(other)
    graph.replay()
    torch.testing.assert_close(x_adv, attack.unchecked(model, other, y), rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ffcv_brings_to_the_gpu_what_the_resident_loader_has_there(tmp_path):
    pytest.importorskip("ffcv", exc_type=ImportError)
    pixels, labels = tiny_pixels(50)
    write_beton(tmp_path / "tiny.beton", iter(pixels), labels, ("red", "green", "blue"))
    data = open_dataset(str(tmp_path / "tiny.beton"), "train")
    settings = {"batch_size": 12, "seed": 4, "device": torch.device("cuda"), "workers": 1}
    resident, ffcv = (loader_of(name, data, **settings) for name in ("resident", "ffcv"))
    kept = [ffcv.batch(step) for step in range(20)]  # more than FFCV's ring of buffers holds
    for step, (x_u8, y) in enumerate(kept):
        assert x_u8.device.type == y.device.type == "cuda"
        assert all(torch.equal(ours, theirs) for ours, theirs in zip((x_u8, y), resident.batch(step), strict=True))
    ffcv.close()


def test_gradients_travel_by_nccl_and_counts_by_gloo(tmp_path):
    dist.init_process_group(backend(), init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        gradient = torch.ones(3, device="cuda")
        average([gradient], Ranks(0, 2))  # one rank that takes itself for one of two: half of the sum
        assert gradient.tolist() == [0.5, 0.5, 0.5]
        assert Ranks(0, 2).failing(True) == [0]
    finally:
        dist.destroy_process_group()


def test_refining_more_batches_takes_no_more_memory():
    model = place(load("cifar10-l2-small"), torch.device("cuda"), "fp32")

    def peak_bytes(batches: int) -> int:
        torch.cuda.reset_peak_memory_stats()
        for x in refine.refine(model, (torch.rand(64, 3, 32, 32, device="cuda") for _ in range(batches)), eps=1.0):
            assert x.device.type == "cuda"
        return torch.cuda.max_memory_allocated()

    peak_bytes(1)  # what the libraries keep after their first use
    assert peak_bytes(20) <= 1.2 * peak_bytes(2)
