"""`alignax train target` on a tiny folder: its laws, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest

from alignax.cli import main
from alignax.models import hf
from alignax.train import folders
from tests.train.test_runs import arguments, home, refused, rows_of

__all__ = ["home"]

FEATURES = """
def early(completions, records):
    return [float(text[:1] < "m") for text in completions]

def length(completions, records):
    return [len(text) / 6 for text in completions]

def never(completions, records):
    return [0.0 for text in completions]

def always(completions, records):
    return [1.0 for text in completions]
"""


def target(home, out, *more):
    (home / "features.py").write_text(FEATURES)
    args = arguments(home, "rl", "prompts", out)
    args[1] = "target"
    at = args.index("--reward")
    del args[at : at + 2]
    return [
        *args,
        *("--completions", "4", "--fit-prompts", "3", "--fit-completions", "8"),
        *more,
    ]


def feature(home, name, moment):
    return ("--feature", f"{home / 'features.py'}:{name}", "--moment", moment)


@pytest.mark.slow
def test_constraints_train_and_resume(home, tmp_path):
    """Distributional and pointwise together, with adapters."""
    out = tmp_path / "run"
    names = [f"{home / 'features.py'}:{name}" for name in ("early", "always")]
    asked = ("--target", "constraints", "--feature", *names, "--moment", "0.4", "1")
    args = target(home, out, *asked, "--divergence", "jensen_shannon")
    main([*args, "--lora.rank", "2"])
    fitted = json.loads((out / "multipliers.json").read_text())
    assert fitted["names"] == ["early", "always"]
    assert fitted["pointwise"] == [False, True]
    np.testing.assert_allclose(fitted["moments"], [0.4, 1.0], atol=1e-3)
    assert fitted["errors"][0] > 0
    rows = [row for row in rows_of(out) if "target/kl_to_target" in row]
    assert len(rows) == 3
    for name in ("early", "log_z", "log_z_error", "target_samples", "excluded"):
        assert all(np.isfinite(row[f"target/{name}"]) for row in rows)
    assert rows[0]["target/always"] == 1
    folders.open_policy(out / "adapter")
    with pytest.raises(SystemExit):
        main(args)
    # The fit is read, not made again: with other multipliers it would be another run.
    (home / "features.py").unlink()
    (home / "features.py").write_text(FEATURES.replace('< "m"', '< "a"'))
    main([*args, "--lora.rank", "2", "--resume"])
    assert json.loads((out / "multipliers.json").read_text()) == fitted


@pytest.mark.slow
def test_filter_and_posterior_train(home, tmp_path):
    reward = ("--reward", f"{home / 'features.py'}:early")
    main(target(home, tmp_path / "filter", "--target", "filter", *reward))
    rows = [row for row in rows_of(tmp_path / "filter") if "target/log_z" in row]
    assert all(0 <= row["target/excluded"] <= 1 for row in rows)
    main(target(home, tmp_path / "posterior", "--beta", "0.5", *reward))
    saved = json.loads((tmp_path / "posterior" / "run.json").read_text())
    assert saved["kind"] == "target"
    assert saved["config"]["beta"] == 0.5


@pytest.mark.slow
def test_experts_train(home, tmp_path):
    """A mixture, and a product with an anti-expert under a reward; of the model alone
    nothing is left to learn, but for the normaliser's noise."""
    other = home / "other"
    if not other.exists():
        shutil.copytree(home / "model", other)
        policy = folders.open_policy(other)
        params = jax.tree.map(lambda x: 1.5 * x, policy.params)
        hf.save(other, policy.config, params)
    both = ("--expert", str(home / "model"), str(other))
    for name, more in {
        "mixture": ("--target", "experts", *both, "--combine", "mixture"),
        "tilted": (
            *("--reward", f"{home / 'my.py'}:vowels", *both),
            *("--expert-weight", "1.5", "-0.5"),
        ),
        "same": ("--target", "experts", *both[:2], "--normaliser-decay", "0.5"),
    }.items():
        out = tmp_path / name
        main(target(home, out, *more))
        rows = [row for row in rows_of(out) if "target/kl_to_target" in row]
        assert len(rows) == 3
        assert all(np.isfinite(row["target/log_z"]) for row in rows)
        if name == "same":
            assert abs(rows[0]["target/kl_to_target"]) < 1e-4
            assert abs(rows[0]["target/log_z"]) < 1e-4
        else:
            assert abs(rows[0]["target/kl_to_target"]) > 1e-3


REFUSED = {
    "no expert": (("--target", "experts"), ["expert must be one folder or more"]),
    "expert of constraints": (
        (
            *("--target", "constraints", "--feature", "exact", "--moment", "1"),
            "--expert",
            "x",
        ),
        ["expert must be left out for constraints"],
    ),
    "weights": (
        ("--target", "experts", "--expert", "x", "y", "--expert-weight", "1"),
        ["expert_weight must be one for each of the 2"],
    ),
    "weights of a mixture": (
        (
            *("--target", "experts", "--expert", "x", "y", "--combine", "mixture"),
            "--expert-weight",
            "0.5",
            "0.6",
        ),
        ["sum to 1", "1.1"],
    ),
    "decay": (
        ("--reward", "exact", "--normaliser-decay", "1.5"),
        ["normaliser_decay must be in (0, 1]"],
    ),
    "no feature": (("--target", "constraints"), ["feature and moment"]),
    "no reward": ((), ["reward", "posterior"]),
    "method": (("--reward", "exact", "--method", "grpo"), ["method", "f_dpg"]),
    "beta of a filter": (
        ("--reward", "exact", "--target", "filter", "--beta", "0.1"),
        ["beta has nothing to act on"],
    ),
    "one completion": (
        ("--reward", "exact", "--completions", "1"),
        ["completions must be at least 2"],
    ),
    "level": (
        ("--reward", "exact", "--level", "myopic"),
        ["level has nothing to act on"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, home, tmp_path, capsys):
    more, said = REFUSED[name]
    message = refused(capsys, target(home, tmp_path / "run", *more))
    assert all(word in message for word in said)


@pytest.mark.slow
def test_a_constraint_that_cannot_be_met(home, tmp_path, capsys):
    asked = ("--target", "constraints", *feature(home, "never", "0.5"))
    message = refused(capsys, target(home, tmp_path / "run", *asked))
    assert "moment of never cannot be 0.5" in message
    assert "0.5 away" in message
