"""Constraints on a real model: features, the exact toy, a tiny run."""

import json

import jax
import numpy as np
import pytest

from alignax.types import InputError
from experiments import constraints
from tests.experiments.test_real_model import folder

__all__ = ["folder"]


def test_features_of_sentences():
    texts = ["What a film!", "I liked the FILM.", "Dull."]
    found = constraints.features(texts, ["a new film"] * 3)
    assert found["exclaims"].tolist() == [1, 0, 0]
    assert found["mentions"].tolist() == [1, 1, 0]
    assert constraints.bigrams(["a b c", "a b", ""]) == 2 / 3


def test_options_are_checked():
    with pytest.raises(InputError, match="requests must be at least 4"):
        constraints.Config(requests=3)
    with pytest.raises(InputError, match="constraints must be among"):
        constraints.Config(constraints=("rhymes",))


@pytest.mark.slow
def test_toy_trades_alignment_for_diversity():
    """The forward KL's best law is the broadest and breaks the constraint most; the
    reverse KL's meets it on one hump. Each is the best by its own divergence."""
    with jax.enable_x64(True):
        rows = constraints.toy()
    np.testing.assert_allclose(rows["target"]["satisfied"], 0.9, atol=1e-6)
    laws = [rows[name] for name in constraints.TOY]
    assert rows["forward_kl"]["entropy"] == max(row["entropy"] for row in laws)
    assert rows["forward_kl"]["satisfied"] == min(row["satisfied"] for row in laws)
    assert rows["forward_kl"]["from"] == min(row["from"] for row in laws)
    assert rows["reverse_kl"]["to"] == min(row["to"] for row in laws)
    assert rows["reverse_kl"]["satisfied"] > 0.99
    # One hump of three or so: less than a nat below the target's entropy.
    assert rows["reverse_kl"]["entropy"] < rows["target"]["entropy"] - 0.5


@pytest.mark.slow
def test_tiny_constraints(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(constraints, "toy_table", lambda: "")
    seen = constraints.features

    def features(texts, things):
        # A random model says neither: every other sentence does here.
        odd = np.arange(len(texts)) % 2
        return {name: odd.astype(np.float32) for name in seen(texts, things)}

    monkeypatch.setattr(constraints, "features", features)
    config = constraints.Config(
        model=folder,
        out=tmp_path / "run",
        report=tmp_path / "constraints.md",
        divergences=("reverse_kl",),
        moment=0.7,
        lora_rank=2,
        steps=3,
        requests=2,
        prompts=2,
        completions=2,
        fit_completions=4,
        max_tokens=4,
        prompt_length=150,
        held_out=2,
    )
    constraints.main(config)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["runs"]) == {
        *("start", "exclaims/reverse_kl/0", "mentions/reverse_kl/0")
    }
    fitted = results["runs"]["start"]["fit"]
    np.testing.assert_allclose(fitted["multiplier"], np.log(7 / 3), rtol=1e-3)
    curves = results["runs"]["mentions/reverse_kl/0"]["curves"]
    assert curves["excluded"] == [0.5] * 3
    assert curves["massless"] == [0.0] * 3
    assert not any(curves["skipped"])
    text = (tmp_path / "constraints.md").read_text()
    assert "exclaims, reverse_kl" in text
    assert (tmp_path / "constraints.png").exists()
