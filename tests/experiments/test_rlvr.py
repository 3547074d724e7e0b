"""The experiment on all methods: exact reports, methods by name, one tiny run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import algorithms, exact
from alignax.models import decoder, functional
from alignax.train.supervised import SFT
from alignax.types import InputError
from experiments import rlvr, rlvr_report, sums


def small(out, **changes):
    fields = {
        "out": out,
        "seeds": 2,
        "steps": 3,
        "prompts": 4,
        "completions": 4,
        "held_out": 2,
        "hidden_size": 16,
        "learning_rate": 1e-2,
        "mistakes": 0.1,
        "sft": SFT(steps=150, batch_size=64, warmup=1, learning_rate=2e-2),
    }
    return rlvr.Config(**fields | changes)


def check_run(tmp_path, methods):
    config = small(tmp_path / "run", methods=methods, report=tmp_path / "rlvr.md")
    rlvr.main(config)
    results = json.loads((config.out / "results.json").read_text())
    assert set(results) == {"config", "reference", *config.methods}
    for name in config.methods:
        row = results[name]
        assert len(row["pass@1"]) == 2
        assert 0 <= min(row["pass@1"]) <= min(row["pass@16"]) <= 1
        assert max(row["kl"]) > 0
        assert len(row["curves"]["entropy"]) == 3
        assert np.isfinite(row["fit"]).all()
    np.testing.assert_allclose(results["reference"]["kl"], 0, atol=1e-6)
    text = config.report.read_text()
    for part in ("| reference |", f"| {methods[0]} |", "two policies", "Code: "):
        assert part in text
    return config


@pytest.mark.slow
def test_a_run(tmp_path):
    config = check_run(tmp_path, ("grpo (TRL default)",))
    with pytest.raises(InputError, match="another configuration"):
        rlvr.main(small(tmp_path / "run", steps=4, methods=config.methods))


@pytest.mark.slow
def test_a_run_of_the_samplers(tmp_path):
    """Greedy baselines, demonstrations, the reference's rows; twice, from its file."""
    config = check_run(tmp_path, ("remax", "rl_plus", "dph_rl", "hapo_history"))
    before = (config.out / "results.json").read_text()
    rlvr.main(config)
    assert (config.out / "results.json").read_text() == before


@pytest.mark.slow
def test_methods_are_named():
    names = rlvr.runnable()
    assert len(names) > 50
    assert names["dapo"] is algorithms.METHODS["dapo"].algorithm
    # Nothing that it calls runnable is refused where a run is put together.
    given = {"right", "clusters", "reward_version", "objectives", "objective_weights"}
    given |= {"token_rewards", "greedy", "history", "demonstrated", "confidence"}
    given |= {"logp_ref", "entropy", "values", "key", "moments", "initial_entropy"}
    # The last two come from the memory that a run of f-DPG keeps.
    given |= {"index", "log_z", "baseline"}
    for name, algorithm in names.items():
        assert algorithms.needs(algorithm) <= given, name
    with pytest.raises(InputError, match="nonsense"):
        rlvr.Config(methods=("nonsense",))


def test_the_report_is_exact():
    """Against every completion enumerated by ``alignax.exact``."""
    config = decoder.DecoderConfig(
        vocab_size=11,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=4,
        mlp_size=8,
        max_length=7,
        initializer_range=0.5,
    )
    apply_fn = functional.make_apply(config)
    params, reference = (functional.init(config, jax.random.key(i)) for i in (0, 1))
    problem = jnp.array([1, 2, 4])
    tokens, mask = exact.enumerate_completions(11, 4, eos_id=sums.EOS)

    @jax.jit
    def enumerated(params):
        return exact.completion_logp(
            apply_fn, params, problem, tokens, mask, chunk_size=1600
        )

    logp, logp_ref = enumerated(params), enumerated(reference)
    right = sums.value_of(tokens, mask) == 7
    assert right.sum() == 3
    law = np.exp(np.float64(logp))
    report = jax.jit(sums.make_report(apply_fn))(params, reference, problem[None])
    expected = {
        "p": law[np.asarray(right)].sum(),
        "kl": law @ (np.float64(logp) - np.float64(logp_ref)),
        "entropy": -law @ np.float64(logp),
        "length": law @ np.asarray(mask).sum(1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(report[name], [value], rtol=2e-4)


def test_the_fit_recovers_its_law():
    """R = −a e^H + b with (a, b) = (.3, .8), reference B10."""
    entropy = np.linspace(0, 0.9, 10)
    curves = {"entropy": entropy, "reward": 0.8 - 0.3 * np.exp(entropy)}
    np.testing.assert_allclose(rlvr_report.entropy_fit(curves), (0.3, 0.8, 1), 1e-6)
