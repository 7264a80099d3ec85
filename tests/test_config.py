import json
import math
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import TypeAdapter

from bigroc.recipes import recipes
from eval.certify.config import CertifyConfig
from eval.leaderboard.config import EvaluateConfig
from eval.robust.config import RobustConfig
from eval.study.augmentation.config import AugmentationConfig
from eval.study.config import StudyConfig
from refine.config import RefineConfig
from robust_models.errors import UserError
from robust_models.runtime.config import RECIPES, as_json, as_plain, leaves, read_recipe, resolve
from train.cli import main
from train.config import TrainConfig


def train_config(**flags: str) -> TrainConfig:
    return resolve(TrainConfig, {"out": "run"}, {name.replace("__", "."): text for name, text in flags.items()})


SEVERAL = [
    (schema, leaf)
    for schema in (TrainConfig, StudyConfig, AugmentationConfig, EvaluateConfig, CertifyConfig, RobustConfig)
    for leaf in leaves(schema)
    if isinstance(leaf.default, tuple) and all(isinstance(value, str | float | int) for value in leaf.default)
]


@pytest.mark.parametrize(("schema", "leaf"), SEVERAL, ids=[f"{one.__name__}.{leaf.name}" for one, leaf in SEVERAL])
def test_a_field_of_several_takes_them_with_commas(schema, leaf):
    several = leaf.default or ("a", "b")
    read = TypeAdapter(Annotated[leaf.field.annotation, *leaf.field.metadata]).validate_python
    assert read(", ".join(map(str, several))) == read(list(several)) == several
    assert read(str(several[0])) == read([several[0]])


@pytest.mark.parametrize("recipe", [f"{one.name}.yaml" for one in recipes() if one.command == "train"])
def test_every_shipped_recipe_parses_and_its_header_gives_the_command(recipe):
    config = resolve(TrainConfig, read_recipe(recipe), {"out": "run"})
    assert resolve(TrainConfig, as_plain(config)) == config
    header = [line for line in (RECIPES / recipe).read_text().splitlines() if line.startswith("#")]
    assert any(f"--config {recipe}" in line for line in header)


def test_the_papers_recipe_is_the_papers():
    config = resolve(TrainConfig, read_recipe("cifar_l2.yaml"), {"out": "run"})
    assert (config.arch, config.epochs, config.batch_size) == ("resnet50", 150, 128)
    assert (config.attack.norm, config.attack.eps, config.attack.step_size, config.attack.steps) == ("l2", 0.5, 0.1, 7)
    assert not config.attack.random_start
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.step_epochs) == (0.1, 0.9, 5e-4, 50)


def test_flags_are_typed_like_yaml():
    config = train_config(
        attack__norm="linf", attack__eps="8/255", attack__step_size="{0: 1e-2, 0.5: 2/255}", epochs="3", compile="true"
    )
    assert config.attack.eps == pytest.approx(8 / 255)
    assert config.attack.step_size == {0.0: 0.01, 0.5: pytest.approx(2 / 255)}
    assert (config.epochs, config.compile) == (3, True)


def test_text_that_looks_like_a_number_stays_text():
    assert train_config(out="2024", data__path="1e3").out == Path("2024")
    assert train_config(data__path="1e3").data.path == "1e3"
    refine_values = {"ckpt": "c", "input": "i", "out": "o", "eps": 1}
    assert resolve(RefineConfig, refine_values, {"grid": "7"}).grid == Path("7")
    assert resolve(RefineConfig, refine_values, {"grid": "null"}).grid is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"epoch": "3"}, "epoch: unknown key; did you mean epochs?"),
        ({"attack__epz": "1"}, "attack.epz: unknown key; did you mean attack.eps?"),
        ({"attack__eps": "-1"}, "attack.eps: input should be greater than or equal to 0; got -1"),
        ({"attack__norm": "l7"}, "attack.norm: 'l7' is none of l2, linf"),
        ({"attack__norm": "linf", "attack__eps": "8"}, r"attack.eps: 8 is outside \[0, 1\] for norm=linf"),
        ({"attack__steps": "{0.5: 2}"}, "attack.steps: .* does not say what holds from progress 0 on"),
        ({"epochs": "many"}, "epochs: .*; got 'many'"),
        ({"normalize": "mnist"}, "normalize.*'mnist' is none of none, cifar10, imagenet"),
        ({"attack": "3"}, "attack: .*; got 3"),
    ],
)
def test_a_bad_field_is_named_with_what_came(flags, message):
    with pytest.raises(UserError, match=message) as caught:
        train_config(**flags)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named():
    with pytest.raises(UserError, match="ckpt: is required"):
        resolve(RefineConfig, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a", "holds list, expected a mapping"), ("a: [", "is not YAML"), ("x: 1", "x: unknown key")],
)
def test_a_bad_recipe_is_named(tmp_path, capsys, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["--config", str(path), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "cifar_l2_smal.yaml"], "did you mean cifar_l2_small.yaml?"),
        (["--config", "cifar_l2", "--attack.epz", "3"], "--attack.epz: no such flag; did you mean --attack.eps?"),
        (["--config", "cifar_l2", "surplus"], "surplus: no such argument"),
        ([], "--config"),
    ],
)
def test_command_line_mistakes_end_in_one_line_and_status_2(capsys, argv, message):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_dashes_and_underscores_are_alike_and_dry_run_prints_the_config(capsys):
    printed = []
    for flag in ("--batch-size", "--batch_size"):
        assert (
            main(["--config", "cifar_l2", "--out", "run", "--dry_run", flag, "7", "--optimizer.weight-decay=0.5"]) == 0
        )
        printed.append(yaml.safe_load(capsys.readouterr().out))
    assert printed[0] == printed[1]
    assert (printed[0]["batch_size"], printed[0]["optimizer"]["weight_decay"]) == (7, 0.5)
    assert not Path("run").exists()
    assert main(["--config", "cifar_l2.yaml", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["out"] == "runs/cifar_l2"


def test_debug_gives_the_traceback(capsys):
    assert main(["--config", "nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_json_for_others_has_no_numbers_that_python_alone_reads():
    text = as_json({"eps": math.inf, "rows": [(math.nan, 1.5, "inf")], "n": 3})
    assert json.loads(text, parse_constant=pytest.fail) == {"eps": None, "rows": [[None, 1.5, "inf"]], "n": 3}
