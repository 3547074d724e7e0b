"""The benchmarks' own parts run, on models of no size; their times are nobody's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional
from benchmarks import ahead, decode, grpo_step, precision, real, timing, tunix_peer
from tests.models.cases import CONFIGS, needs_float16, random_params, random_tokens


def test_programs_take_turns():
    calls = []
    programs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = timing.interleaved(programs, repeats=2)
    assert calls == list("ababab")
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_an_end_of_a_given_chance():
    config = CONFIGS["qwen3"]
    apply_fn = decode.ending(functional.make_apply(config), 3, 0.2)
    tokens = random_tokens(config, (2, 4))
    logits = jax.jit(apply_fn)(random_params(config), tokens).logits
    plain = jax.jit(functional.make_apply(config))(random_params(config), tokens).logits
    chances = jax.nn.softmax(logits)
    # The rest keep their odds; the old chance of the token itself is added to 4 to 1.
    others = np.delete(np.asarray(jax.nn.softmax(plain)), 3, axis=-1)
    odds = np.asarray(chances)[..., 3] / np.delete(np.asarray(chances), 3, -1).sum(-1)
    np.testing.assert_allclose(odds, 0.25 / others.sum(-1), rtol=1e-5)


@pytest.mark.slow
def test_tables_of_a_small_model():
    config = dataclasses.replace(
        decode.HALF_BILLION, hidden_size=16, num_layers=1, vocab_size=64, mlp_size=8
    )
    text = decode.absolute(config, prompt=4, new_tokens=3, batches=(1, 2), repeats=1)
    rows = [line.split(" | ") for line in text.splitlines()]
    assert [row[0] for row in rows[2:]] == ["| 1", "| 2"]
    assert all(float(row[-1].strip(" |")) > 0 for row in rows[2:])


@pytest.mark.slow
def test_a_step_and_its_limit():
    small = dataclasses.replace(CONFIGS["qwen3"], max_length=16)
    shape = {"groups": 2, "completions": 2, "prompt": 3, "tokens": 4, "config": small}
    batch = grpo_step.batch_of(**shape)
    plain, frugal = (
        grpo_step.by_alignax(batch, shared=True, frugal=frugal, config=small)()
        for frugal in (False, True)
    )
    for name in ("loss", "grad_norm", "entropy"):
        np.testing.assert_allclose(frugal[name], plain[name], rtol=1e-3)
    assert all(jnp.isfinite(x) for x in grpo_step.products(**shape)())


@pytest.mark.slow
def test_both_loops_train_on_as_many_samples():
    config = dataclasses.replace(CONFIGS["qwen3"], max_length=32)
    fixed = {"steps": 2, "repeats": 1, "tokens": 3, "prompts": 2}
    lines = ahead.main(config, sleeps=(0.01,), **fixed).splitlines()
    assert lines[2].startswith("| 0.01 s | ")
    assert float(lines[2].split(" | ")[-1].strip(" |")) > 0


@pytest.mark.slow
def test_the_table_of_precisions():
    """Of both scorers: ratios of 1 in float32, and nearly so in float16."""
    needs_float16()
    config = dataclasses.replace(CONFIGS["llama"], num_layers=1)
    names = ("float32", "float16, both")
    text = precision.main(
        config,
        spread=1.0,
        groups=2,
        completions=2,
        prompt=3,
        tokens=4,
        precisions=names,
    )
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [line[0][2:] for line in lines[2:]] == list(names)
    for line, close in zip(lines[2:], (1e-3, 1e-2), strict=True):
        for mean, outside, largest in (line[1:4], line[4:7]):
            assert abs(float(mean) - 1) < close
            assert outside == "0.00 %"
            assert float(largest) < 2 * close


def test_a_peer_that_fails_is_not_waited_for(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho other\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.delenv(tunix_peer.PYTHON, raising=False)
    assert not tunix_peer.available()
    monkeypatch.setenv(tunix_peer.PYTHON, str(python))
    child = tunix_peer.Child("step", rows=1)
    with pytest.raises((RuntimeError, BrokenPipeError), match=r"ended with 3|Broken"):
        child()
    child.close()


@pytest.mark.slow
def test_the_tables_of_a_real_model(monkeypatch):
    """On one of no size: rows, limits and parts are there."""
    config = dataclasses.replace(CONFIGS["llama"], max_length=32)
    monkeypatch.setattr(timing, "missing", lambda *names: list(names))
    monkeypatch.setattr(real, "bandwidth", lambda: 1e9)
    text = real.sampling(config, batches=(1, 2), prompt=4, tokens=3, repeats=1)
    rows = [line.split(" | ") for line in text.splitlines() if line[:2] == "| "][2:]
    assert [row[0][2:] for row in rows] == ["float32"] * 2 + ["bfloat16"] * 2
    assert all(float(row[-1].strip(" |")) > 0 for row in rows)
    sizes = {"groups": 2, "completions": 2, "prompt": 3, "tokens": 4}
    makers = real.programs_of(config, sizes)

    def measure(name):
        return timing.interleaved({name: makers[name]()}, repeats=1)[name], 1.0

    text = real.steps(measure)
    for name in ("alignax", "alignax, LoRA", "alignax, frugal", "products alone"):
        assert f"| {name} |" in text
    text = real.iterations(config, sizes, repeats=1)
    assert "Of alignax's: sampling and scores" in text
    text = real.heads(rows=4, width=8, vocabularies=(32,), repeats=1)
    assert text.count("| 32 |") == 3
