"""Command lines: exit codes, one-paragraph errors, help, the `alignax` command."""

import dataclasses
import importlib
import subprocess
import sys

import jax
import pytest

import alignax
from alignax import cli
from alignax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    steps: int = 3
    """Steps to take."""
    to: tuple[float, ...] = ()

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, got {self.steps}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    beta: float = 0.5
    """Strength of it all."""
    inner: Inner = Inner()

    def __post_init__(self):
        if self.beta < 0:
            raise InputError(f"beta must not be negative, got {self.beta}")


def run(main, *args):
    cli.run(main, Config, args=args, description="An experiment.")


def test_options_become_the_configuration():
    seen = []
    run(seen.append, "--beta", "0.25", "--inner.steps", "7")
    assert seen == [Config(beta=0.25, inner=Inner(steps=7))]
    run(seen.append)
    assert seen[1] == Config()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--beta", "-1"], "error: beta must not be negative, got -1.0\n"),
        (["--inner.steps", "0"], "error: steps must be at least 1, got 0\n"),
        (["--beta", "nan"], "error: beta must be a number, got nan\n"),
        (
            ["--inner.to", "1", "nan"],
            "error: inner.to must be a number, got nan\n",
        ),
    ],
)
def test_a_value_out_of_range_is_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(pytest.fail, *args)
    assert stop.value.code == 2
    assert capsys.readouterr().err == message


def test_bad_input_found_later_is_one_line_too(capsys):
    def main(config):
        raise InputError("data: no such file")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: data: no such file\n"


def test_what_the_operating_system_refuses_is_one_line_too(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")

    def stopped(main):
        with pytest.raises(SystemExit) as stop:
            run(main)
        assert stop.value.code == 2
        return capsys.readouterr().err

    said = stopped(lambda config: (file / "run").mkdir())
    assert said.startswith(f"error: {file / 'run'}: Not a directory; mend that, or")
    said = stopped(lambda config: (tmp_path / ("a" * 300)).mkdir())
    assert "File name too long; mend" in said
    # Not the operating system's.
    with pytest.raises(OSError, match="of a library"):
        run(lambda config: (_ for _ in ()).throw(OSError("of a library")))


@pytest.mark.parametrize(
    ("args", "said"),
    [(["--bta", "1"], "--beta"), (["--beta", "much"], "much")],
)
def test_misspelt_options_are_shown(args, said, capsys):
    with pytest.raises(SystemExit) as stop:
        run(pytest.fail, *args)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_help_lists_options_with_their_words(capsys):
    with pytest.raises(SystemExit) as stop:
        run(pytest.fail, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for words in ("An experiment.", "--beta", "Strength of it all.", "--inner.steps"):
        assert words in text


def test_an_interrupt_says_how_to_go_on(capsys):
    def main(config):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it_quietly():
    command = f"{sys.executable} -m experiments.grpo_arithmetic --help | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True
    )
    assert done.returncode in (0, 141)  # 0 where all was written in time
    assert done.stderr == ""
    assert done.stdout.startswith("usage")


def test_a_defect_keeps_its_traceback():
    def main(config):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)


def test_command_lists_experiments_that_exist(capsys):
    cli.main([])
    text = capsys.readouterr().out
    for name, words in cli.EXPERIMENTS.items():
        assert f"python -m experiments.{name}" in text
        assert words in text
        assert callable(importlib.import_module(f"experiments.{name}").main)


def test_commands_have_a_module_and_a_help(capsys):
    cli.main([])
    greeting = capsys.readouterr().out
    for words, (name, text) in cli.VERBS.items():
        assert f"{' '.join(words)} " in greeting
        assert text in greeting
        assert dataclasses.is_dataclass(importlib.import_module(name).Config)
        with pytest.raises(SystemExit) as stop:
            cli.main([*words, "--help"])
        assert stop.value.code == 0
        assert f"alignax {' '.join(words)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["inof"], "got 'inof'; did you mean info?"),
        (["two", "words"], "got 'two'; did you mean "),
    ],
)
def test_an_unknown_command_names_its_neighbours(args, said, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_command_of_several_words_may_be_cut_short(capsys, monkeypatch):
    home = ("alignax.cli.info", "")
    monkeypatch.setattr(cli, "VERBS", {("train", "rl"): home, ("train", "sft"): home})
    for args, got in ((["train"], "nothing"), (["train", "r"], "'r'")):
        with pytest.raises(SystemExit) as stop:
            cli.main(args)
        assert stop.value.code == 2
        assert f"must come one of rl, sft, got {got}\n" in capsys.readouterr().err
    cli.main(["train", "rl"])
    assert "devices" in capsys.readouterr().out


def test_info_is_what_a_bug_report_needs(capsys):
    cli.main(["info"])
    text = capsys.readouterr().out
    assert f"alignax {alignax.__version__}" in text
    assert f"jax {jax.__version__}" in text
    assert str(jax.devices()[0]) in text


def test_the_installed_command():
    done = subprocess.run(
        [sys.executable, "-c", "from alignax.cli import main; main(['--version'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"alignax {alignax.__version__}\n"


KEPT = """
import sys, jax
from pathlib import Path
from alignax.cli import programs
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
programs.LEAST = 0.0
programs.keep(Path(sys.argv[1]))
jax.jit(lambda x: x + 1)(1.0)
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


def test_a_run_finds_what_was_compiled_in_its_folder(tmp_path, monkeypatch):
    """Nothing the first time, the program the second; a user's own place goes first."""

    def hits(folder):
        command = [sys.executable, "-c", KEPT, str(tmp_path / folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert [hits("run"), hits("run") > 0] == [0, True]
    assert list((tmp_path / "run" / "compiled").glob("*/jit_*"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    hits("other")
    assert not (tmp_path / "other").exists()
