"""What fuzzing the image readers kept, and a short run of it: images or one line, in bounded memory."""

import random
from pathlib import Path

import pytest

from tests.fuzz_images import LIMITS, changed, check, repacked, seeds

CORPUS = Path(__file__).parent / "fuzz_images_corpus"
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of odd metadata


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    for name, value in LIMITS.items():
        monkeypatch.setenv(name, value)


def test_the_corpus_is_read_or_refused_in_one_line(tmp_path):
    files = sorted(CORPUS.iterdir())
    messages = [check(file.suffix, file.read_bytes(), tmp_path) for file in files]
    assert len(files) > 70
    assert {file.suffix for file in files} >= {".png", ".jpg", ".npz", ".npy", ".pt", ".tar", ".parquet"}
    assert {message is None for message in messages} == {True, False}
    assert sum(file.stat().st_size for file in files) < 300_000


def test_whole_files_are_read(tmp_path):
    for suffix, content in seeds():
        message = check(suffix, content, tmp_path)
        assert message is None or "no images here or below" in message, (suffix, message)  # in a folder: no image


@pytest.mark.parametrize("seed", range(4))
def test_files_changed_at_random_are_read_or_refused_in_one_line(tmp_path, seed):
    rng, known = random.Random(seed), [*seeds()]
    for _ in range(60):
        suffix, content = rng.choice(known)
        zipped = suffix in (".npz", ".pt") and rng.random() < 0.7
        check(suffix, repacked(content, rng) if zipped else changed(content, rng, rng.choice(known)[1]), tmp_path)
