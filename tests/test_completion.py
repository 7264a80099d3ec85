"""bigroc completion: the Tab key in bash and zsh, both really run."""

import os
import pty
import select
import shutil
import subprocess
import time

import pytest

import bigroc.cli
from bigroc.completion import open_values
from robust_models import embedded_names
from robust_models.runtime.config import leaves

pytest.importorskip("shtab")  # a dependency that older environments have not

WAIT_S = 30
LINES = [  # what is typed, and one of the words that the Tab key offers
    ("bigroc tra", "train"),
    ("bigroc models insp", "inspect"),
    ("bigroc survey repo", "report"),
    ("bigroc eval qual", "quality"),
    ("bigroc --vers", "--version"),
    ("bigroc train --attack.no", "--attack.norm"),
    ("bigroc train --config cifar_l2_sm", "cifar_l2_small"),
    ("bigroc refine --ckpt cifar10-l2", "cifar10-l2-small"),
    ("bigroc refine --keep la", "last"),
    ("bigroc refine --task inpai", "inpaint"),
    ("bigroc refine --task inpaint --hol", "--hole"),
    ("bigroc study --config ablation_ep", "ablation_eps"),
    ("bigroc recipes bigroc_va", "bigroc_vae"),
    ("bigroc eval robust --precision bf", "bf16"),
    ("bigroc refine --norm four", "fourier"),
    ("bigroc train --attack.norm unc", "unconstrained"),
    ("bigroc completion zs", "zsh"),
    ("bigroc refine --input some_im", "some_images"),
    ("bigroc eval quality --metrics ki", "kid"),
    ("bigroc eval quality --metrics fid,ki", "fid,kid"),
    ("bigroc eval quality --features incept", "inception"),
    ("bigroc eval quality --features some_im", "some_images"),
    ("bigroc eval robust --attack autoat", "autoattack"),
    ("bigroc eval robust --ckpt cifar10-l2", "cifar10-l2-small"),
    ("bigroc refine --ckpt cifar10-l2-small,cifar10-standard", "cifar10-l2-small,cifar10-standard-small"),
    ("bigroc refine --targets bal", "balanced"),
    ("bigroc refine --judge dino", "dinov2"),
    ("bigroc models inspect x.pt --normalize cifar100", "cifar100"),
    ("bigroc train --activation sil", "silu"),
    ("bigroc train --arch preact_resnet18", "preact_resnet18"),
    ("bigroc models convert cifar10-l2", "cifar10-l2-small"),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A folder with both scripts, and an image set to be found by its name."""
    folder = tmp_path_factory.mktemp("scripts")
    from bigroc.completion import script

    (folder / "bigroc.bash").write_text(script("bash"))
    (folder / "_bigroc").write_text(script("zsh"))
    (folder / "some_images").mkdir()
    return folder


def offered_by_bash(folder, line: str) -> list[str]:
    program = f"""
        source bigroc.bash
        COMP_WORDS=({line}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        _shtab_bigroc 2> /dev/null
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    run = subprocess.run(
        ["bash", "-c", program], cwd=folder, capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    return run.stdout.split()


@pytest.mark.parametrize(("line", "word"), LINES)
def test_bash_completes(scripts, line, word):
    assert word in offered_by_bash(scripts, line)


def test_bash_lists_all_there_is(scripts):
    assert offered_by_bash(scripts, "bigroc ''") == list(bigroc.cli.COMMANDS)
    assert set(embedded_names()) <= set(offered_by_bash(scripts, "bigroc models inspect ci"))
    assert not offered_by_bash(scripts, "bigroc trainn --attack.no")


@pytest.mark.parametrize("field", open_values())
def test_every_known_word_of_an_open_field_is_offered_where_the_field_is(scripts, field):
    """Every flag called so, in every command, by each of the words."""
    words, found = open_values()[field], 0
    for command in (command for command in every_command() if not getattr(command, "commands", None)):
        for leaf in leaves(command.schema):
            if leaf.name.rsplit(".", 1)[-1] == field and not leaf.choices and leaf.name not in command.positionals:
                offered = offered_by_bash(scripts, f"{command.name} {leaf.flag} ''")
                assert leaf.takes_path or set(words) <= set(offered), (command.name, leaf.flag)
                found += 1
    assert found or field == "file"


def every_command():
    """All commands of the front door, those below others too."""
    waiting = [bigroc.cli.front_door()]
    while waiting:
        command = waiting.pop()
        command = command.load() if hasattr(command, "load") else command
        waiting += getattr(command, "commands", {}).values()
        if hasattr(command, "schema"):
            yield command


def completed_by_zsh(folder, lines: list[str]) -> list[str]:
    """Each line as it stands in an interactive zsh after the Tab key."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.update(TERM="dumb", HOME=str(folder))
        os.execvp("zsh", ["zsh", "-f", "-i"])

    def send(text: str) -> None:
        os.write(terminal, text.encode())

    def read(end: str) -> str:
        seen, until = "", time.monotonic() + WAIT_S
        while end not in seen and time.monotonic() < until:
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 4096).decode(errors="replace")
        assert end in seen, seen
        return seen

    try:
        send(f"PROMPT=; fpath=({folder} $fpath); autoload -U compinit; compinit -u -D; setopt no_beep; echo rea''dy\n")
        read("ready\r\n")
        found = []
        for line in lines:
            send(f"{line}\t\x01print -r -- '<\x05>'; echo do''ne\n")  # the ends of the line: Ctrl-A, Ctrl-E
            found.append(read("done\r\n").rpartition("\n<")[2].partition(">")[0])
        return found
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_completes(scripts):
    found = completed_by_zsh(scripts, [line for line, _ in LINES])
    for (line, word), completed in zip(LINES, found, strict=True):
        assert completed.split() == [*line.split()[:-1], word] or completed.rstrip("/ ").endswith(f" {word}"), line


def test_another_shell_is_one_line(capsys):
    assert bigroc.cli.main(["completion", "fishh"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
