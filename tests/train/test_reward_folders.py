"""Reward models from their folders: one text at a time is the second path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional, gguf, heads, lora
from alignax.pipeline import data
from alignax.train import policy as policies
from alignax.train import reward_folders, reward_model
from alignax.types import InputError
from tests.models import gguf_file
from tests.models.cases import random_params
from tests.models.gguf_file import TINY

ASK = {"role": "user", "content": "ab?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder that ends with a reward model, and its parameters."""
    root = tmp_path_factory.mktemp("rewards")
    gguf_file.write(root / "tiny.gguf", random_params(TINY))
    gguf.convert(root / "tiny.gguf", root / "base")
    params = heads.reward_from_policy(TINY, random_params(TINY), jax.random.key(1))
    reward_folders.save(root / "run" / "model", TINY, params, source=root / "base")
    return root / "run", params


@pytest.mark.slow
def test_scores_are_those_of_single_rows(folder):
    """Padding, batches and the sum with other rewards change nothing."""
    path, params = folder
    model = reward_folders.load(path)
    tokenizer, reward_fn = model.tokenizer, heads.make_reward(TINY)
    texts = ["a", "", "bab a", "aa"]
    records = [{"prompt": "ab"}, {"prompt": "b"}, {"prompt": [ASK]}, {"prompt": "b"}]

    def alone(prompt, text):
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt) + tokenizer.encode(text)
            ids = begin + ids + [tokenizer.eos_id]
        else:
            says = {"role": "assistant", "content": text}
            whole = tokenizer.conversation([*prompt, says])
            before = tokenizer.chat(prompt)
            ids = tokenizer.encode(before) + tokenizer.encode(whole[len(before) :])
            ids = ids if ids[:1] == begin else begin + ids
        return float(reward_fn(params, jnp.array([ids]))[0, -1, 0])

    asked = zip(texts, records, strict=True)
    expected = [alone(record["prompt"], text) for text, record in asked]
    found = reward_folders.as_reward(model, batch_size=3)(texts, records)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    spelled = [f"0.5*model:{path}", "2*length,target=1"]
    with reward_folders.open_rewards(spelled) as reward:
        counts = np.array([1, 0, 2, 1])
        total = 0.5 * np.array(expected) - 2 * np.abs(counts - 1)
        np.testing.assert_allclose(reward(texts, records), total, rtol=1e-4, atol=1e-5)


def test_what_is_cut_is_said(folder, capsys):
    model = reward_folders.load(folder[0])
    reward = reward_folders.as_reward(model, batch_size=1)
    assert np.isfinite(reward(["a b " * TINY.max_length], [{"prompt": "b"}])).all()
    assert f"context of {TINY.max_length}" in capsys.readouterr().err


def test_folders_without_one_are_refused(folder, tmp_path):
    for texts, message in (
        ([f"model:{tmp_path}"], "must be a folder with reward_model/"),
        ([f"model:{folder[0]},size=3"], "no option 'size'; it has batch_size"),
        ([], "one spelling or more"),
    ):
        with (
            pytest.raises(InputError, match=message),
            reward_folders.open_rewards(texts),
        ):
            pass


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_body_with_adapters_and_less_memory_is_the_model(rank):
    """The values of ``heads.make_reward`` of the parameters merged, and gradients of
    the adapters and the head alone."""
    adapters = lora.LoRA(rank=rank) if rank else None
    policy = policies.make(
        TINY,
        random_params(TINY),
        data.byte_tokenizer(),
        adapters=adapters,
        key=jax.random.key(2),
    )
    model = reward_model.as_policy(policy, jax.random.key(1))
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape), model.params
    )
    frugal = functional.make_hidden(model.config, remat="block", scan=True)
    model = policies.with_functions(model, model.apply_fn, frugal)
    tokens = jax.random.randint(jax.random.key(4), (3, 5), 0, TINY.vocab_size)
    mask = jnp.arange(5)[None] < jnp.array([[5], [3], [4]])
    reward_fn = reward_model.by_hidden(model.hidden_fn)
    expected = heads.make_reward(TINY)(policies.whole(model, params), tokens, mask=mask)
    found = reward_fn(params, tokens, mask=mask)
    kept = mask[..., None]
    error = jnp.linalg.norm(jnp.where(kept, found - expected, 0))
    assert error < 1e-5 * jnp.linalg.norm(jnp.where(kept, expected, 0))
    slopes = jax.grad(lambda p: jnp.sum(reward_fn(p, tokens, mask=mask)))(params)
    assert jnp.any(slopes["head"] != 0)
    assert set(slopes) == (set(policy.params) | {"head"})
