"""--dry-run refuses what the command would refuse from its config alone: one line, the field, what came; status 2."""

import pytest

from bigroc.cli import main

REFINE = "refine --ckpt cifar10-l2-small --input in.npz --out out.npz --eps 1"
GENERATE = "refine --task generate --ckpt cifar10-l2-small --out out.npz"
TRAIN = "train --config cifar_l2_small"
ROBUST = "eval robust --ckpt cifar10-l2-small --data test.npz --eps 0.5"
QUALITY = "eval quality --images a.npz --reference b.npz"
STATISTICS = "eval statistics --images a.npz --out b.npz"
STUDY = "study --config ablation_eps --quick"
INSPECT = "models inspect cifar10-l2-small"
CONVERT = "models convert cifar10-l2-small c.safetensors"
SURVEY = "survey --before a.npz --after b.npz --out answers.db"
CASES = [
    (REFINE, "--loss foo", "loss: 'foo' is none of ce"),
    (REFINE, "--loss margn", "did you mean margin?"),
    (REFINE, "--norm l3", "norm: 'l3' is none of l2"),
    (REFINE, "--norm linf --eps 8", "eps: 8 is outside [0, 1] for norm=linf"),
    (REFINE, "--center frist_step", "did you mean first_step?"),
    (REFINE, "--targets guess", "targets: 'guess' is none of given"),
    (REFINE, "--steps 0", "steps:"),
    (REFINE, "--device tpuu", "device: 'tpuu'"),
    (REFINE, "--ckpt cifar10-l2-smal", "did you mean cifar10-l2-small?"),
    (GENERATE, "--norm l3", "norm: 'l3' is none of l2"),
    (GENERATE, "--num-images 0", "num_images:"),
    (GENERATE, "--ckpt cifar10-l2-smal", "did you mean cifar10-l2-small?"),
    (TRAIN, "--attack.eps 8 --attack.norm linf", "attack.eps: 8 is outside [0, 1] for norm=linf"),
    (TRAIN, "--attack.norm l3", "attack.norm: 'l3' is none of l2"),
    (TRAIN, "--arch resnet51", "arch: 'resnet51' is not known"),
    (TRAIN, "--activation rely", "did you mean relu?"),
    (TRAIN, "--normalize cifar", "did you mean cifar10?"),
    (TRAIN, "--objective.name trade", "did you mean trades?"),
    (TRAIN, "--optimizer.schedule cosin", "did you mean cosine?"),
    (TRAIN, "--init cifar10-l2-smal", "did you mean cifar10-l2-small?"),
    (TRAIN, "--device tpuu", "device: 'tpuu'"),
    (ROBUST, "--norm l3", "norm: 'l3' is none of l2"),
    (ROBUST, "--norm linf --eps 8", "eps: 8 is outside [0, 1] for norm=linf"),
    (ROBUST, "--attack pdg", "did you mean pgd?"),
    (ROBUST, "--ckpt cifar10-l2-smal", "did you mean cifar10-l2-small?"),
    (ROBUST, "--normalize cifar", "normalize: 'cifar'"),
    (QUALITY, "--metrics fidd", "did you mean fid?"),
    (QUALITY, "--features incepton", "did you mean inception?"),
    (QUALITY, "--features classifier:cifar10-l2-smal", "did you mean cifar10-l2-small?"),
    (QUALITY, "--features classifier:x.pt,normalize=cifar", "normalize: 'cifar'"),
    (QUALITY, "--protocol tff", "did you mean tf?"),
    (STATISTICS, "--features incepton", "did you mean inception?"),
    (STUDY, "--loss foo", "loss: "),
    (STUDY, "--norm l3", "norm: 'l3'"),
    (STUDY, "--vary epss", "vary: 'epss'"),
    (SURVEY, "--port 70000", "port:"),
    *(
        (command, flags, message)
        for command in (INSPECT, CONVERT)
        for flags, message in [
            ("--arch resnet51", "arch: 'resnet51' is not known"),
            ("--normalize cifar", "normalize: 'cifar'"),
            ("--activation rely", "did you mean relu?"),
            ("--device tpuu", "device: 'tpuu'"),
            ("--limit 0", "limit:"),
        ]
    ),
    ("models inspect nowhere.pt", "", "ckpt: no file nowhere.pt"),
    ("models inspect cifar10-l2-smal", "", "did you mean cifar10-l2-small?"),
    ("models convert nowhere.pt c.safetensors", "", "ckpt: no file nowhere.pt"),
    ("models convert cifar10-l2-small c.pt", "", "out: c.pt does not end in .safetensors"),
]


@pytest.mark.parametrize(("command", "flags", "message"), CASES, ids=[f"{c.split(' -')[0]} {f}" for c, f, _ in CASES])
def test_a_bad_value_is_one_line_before_any_work(command, flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), *flags.split(), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [REFINE, GENERATE, TRAIN, ROBUST, QUALITY, STATISTICS, SURVEY])
def test_a_good_one_is_printed(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--dry-run"]) == 0
    assert ": " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_yet_to_come_is_no_mistake(capsys):
    assert main([*ROBUST.replace("cifar10-l2-small", "runs/next/classifier.safetensors").split(), "--dry-run"]) == 0
