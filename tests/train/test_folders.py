"""Folders of every kind are opened as policies."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignax.models import functional, gguf, lora
from alignax.models.lora import LoRA
from alignax.pipeline import checkpoint
from alignax.train import folders, supervised
from alignax.train import policy as policies
from alignax.types import InputError
from tests.models import gguf_file
from tests.models.cases import random_params
from tests.models.gguf_file import TINY

RANK2 = LoRA(rank=2, alpha=4.0, targets=("query", "up"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """``(folder, params)``."""
    root, params = tmp_path_factory.mktemp("folders"), random_params(TINY)
    gguf_file.write(root / "tiny.gguf", params)
    gguf.convert(root / "tiny.gguf", root / "base")
    return root / "base", params


def adapters_of(params, seed=0):
    fresh = lora.init(params, jax.random.key(seed), lora=RANK2)
    return jax.tree.map(lambda x: x + 0.05, fresh)


def write_run(out, model, saved, settings=None, **more):
    """A run's folder with checkpoints of steps 0 and 3."""
    out.mkdir()
    fields = {"kind": "rl", "model": str(model), "lora": settings, "phase": "rl"}
    (out / "run.json").write_text(json.dumps(fields | more))
    with checkpoint.open_run(out / "rl") as checkpoints:
        for step, scale in ((0, 0.5), (3, 1.0)):
            params = jax.tree.map(lambda x, s=scale: x * s, saved)
            state = supervised.init_state(params, optax.adam(0.1), jax.random.key(0))
            checkpoint.save(checkpoints, step, state, data_state={}, config={})
    return out


def same(policy, params):
    """Its merged parameters and its logits are these parameters'."""
    merged = policies.whole(policy, policy.params)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    tokens = jnp.arange(6)[None]
    np.testing.assert_array_equal(
        policy.apply_fn(policy.params, tokens).logits,
        functional.make_apply(TINY)(params, tokens).logits,
    )


def test_a_model_and_its_adapters(base, tmp_path):
    folder, params = base
    same(folders.open_policy(folder), params)
    adapters = adapters_of(params)
    lora.save(tmp_path / "lora", TINY, adapters, RANK2, base=folder)
    policy = folders.open_policy(tmp_path / "lora")
    assert policy.lora == RANK2
    merged = lora.merge(params, adapters, lora=RANK2)
    same(policy, merged)
    # Fresh ones stand upon these, merged.
    fresh = folders.open_policy(
        tmp_path / "lora", adapters=LoRA(rank=1), key=jax.random.key(0)
    )
    same(fresh, merged)
    assert fresh.lora.rank == 1


def test_a_run_is_its_newest_whole_checkpoint(base, tmp_path):
    folder, params = base
    run = write_run(tmp_path / "run", folder, params)
    same(folders.open_policy(run), params)
    half = jax.tree.map(lambda x: 0.5 * x, params)
    same(folders.open_policy(run, step=0), half)
    (run / "rl/3/state/_METADATA").write_text("{")
    same(folders.open_policy(run), half)
    assert (run / "rl/3").is_dir(), "a run at work may be looked at"
    with pytest.raises(InputError, match=r"step must be one of .*\[0, 3\].*, got 2"):
        folders.open_policy(run, step=2)
    with pytest.raises(InputError, match=r"whole checkpoint.*damaged ones \(step 3"):
        folders.open_policy(run, step=3)


def test_a_run_of_adapters_upon_a_run(base, tmp_path):
    folder, params = base
    first = write_run(tmp_path / "first", folder, params)
    adapters = adapters_of(params)
    settings = {"rank": 2, "alpha": 4.0, "targets": ["query", "up"]}
    run = write_run(tmp_path / "run", "first", adapters, settings)
    # Named from where the run is.
    with pytest.raises(InputError, match="the base of"):
        folders.open_policy(run)
    (run / "run.json").write_text(
        json.dumps({"model": "../first", "lora": settings, "phase": "rl"})
    )
    policy = folders.open_policy(run)
    assert policy.lora == RANK2
    same(policy, lora.merge(params, adapters, lora=RANK2))
    assert folders.find(run).base == folder
    assert first.is_dir()
    # And upon adapters, which are merged first.
    lora.save(tmp_path / "lora", TINY, adapters_of(params, seed=1), RANK2, base=folder)
    (run / "run.json").write_text(
        json.dumps({"model": "../lora", "lora": settings, "phase": "rl"})
    )
    below = lora.merge(params, adapters_of(params, seed=1), lora=RANK2)
    same(folders.open_policy(run), lora.merge(below, adapters, lora=RANK2))


def test_folders_that_hold_no_policy_are_refused(base, tmp_path):
    folder, params = base
    wrong = [
        (tmp_path / "none", "which is no folder"),
        (tmp_path, "which holds nothing"),
    ]
    for path, said in wrong:
        with pytest.raises(InputError, match=said):
            folders.open_policy(path)
    lora.save(tmp_path / "lora", TINY, adapters_of(params), RANK2)
    with pytest.raises(InputError, match="must name the folder of the base, got None"):
        folders.open_policy(tmp_path / "lora")
    with pytest.raises(InputError, match="which is none; give the place"):
        folders.open_policy(tmp_path / "lora", base=tmp_path / "gone")
    same_base = folders.open_policy(tmp_path / "lora", base=folder)
    assert same_base.lora == RANK2
    with pytest.raises(InputError, match=r"step must be of a run's folder, got 1"):
        folders.open_policy(folder, step=1)
    run = write_run(tmp_path / "run", folder, adapters_of(params))
    with pytest.raises(InputError, match="params must be those of this configuration"):
        folders.open_policy(run)
    (tmp_path / "empty").mkdir()
    fields = {"model": str(folder), "lora": None, "phase": "rl"}
    (tmp_path / "empty/run.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"whole checkpoint, got .*empty/rl with none"):
        folders.open_policy(tmp_path / "empty")
    (run / "run.json").write_text(json.dumps(fields | {"kind": "reward"}))
    with pytest.raises(InputError, match="the run of a reward model"):
        folders.open_policy(run)
    (run / "run.json").write_text("[]")
    with pytest.raises(InputError, match="must be a JSON object"):
        folders.open_policy(run)
