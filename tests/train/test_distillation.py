"""Distillation on small models: whole steps against dense autodiff, and the command."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignax import divergences as dv
from alignax.models import functional, hf, lora
from alignax.pipeline import metrics
from alignax.pipeline import rollout as rollouts
from alignax.train import distillation, folders, supervised, tasks, vocabularies
from tests.close import assert_close
from tests.pipeline.test_data_tokenizers import build_folder
from tests.train.test_every_method import EOS, MODEL, PARAMS, PROMPTS, N, T
from tests.train.test_runs import home, main, refused

__all__ = ["home"]
WIDER = dataclasses.replace(MODEL, hidden_size=24, num_layers=2, mlp_size=16)
TEACHER = functional.init(WIDER, jax.random.key(5))
APPLY, APPLY_TEACHER = functional.make_apply(MODEL), functional.make_apply(WIDER)
DIVERGENCES = (dv.reverse_kl(), dv.forward_kl(), dv.jensen_shannon(0.3), dv.alpha(0.5))


@pytest.fixture(scope="module")
def state():
    return supervised.init_state(PARAMS, optax.sgd(1.0), jax.random.key(3))


def sampled(state, share, prompts):
    sample = distillation.make_sampler(
        APPLY, APPLY_TEACHER, own_share=share, max_tokens=T, eos_id=EOS
    )
    return sample(state, TEACHER, prompts)


@pytest.mark.slow
def test_who_writes_which_rows(state):
    """Every second row is the student's; the others' law is their writer's."""
    guided = tasks.guided(PROMPTS, [[3, 4, EOS]] * N, length=T)
    given = sampled(state, 0.5, guided)
    np.testing.assert_array_equal(given.tokens[0::2, :3], [[3, 4, EOS]] * (N // 2))
    np.testing.assert_array_equal(given.prompt_tokens, PROMPTS.tokens)
    assert given.trained[0].sum() == 3
    mixed = sampled(state, 0.5, PROMPTS)
    np.testing.assert_array_equal(given.tokens[1::2], mixed.tokens[1::2])
    own, theirs = (
        jnp.where(mixed.trained, rollouts.score_by_logits(f)(p, mixed).logp, 0)
        for f, p in ((APPLY, PARAMS), (APPLY_TEACHER, TEACHER))
    )
    assert_close(mixed.logp_behaviour[1::2], own[1::2], rel=1e-5)
    assert_close(mixed.logp_behaviour[0::2], theirs[0::2], rel=1e-5)
    assert float(jnp.abs(own - theirs).max()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [2.0])
def test_a_step_descends_the_mean_divergence_of_the_tokens(state, temperature):
    """All divergences of two models of different widths in one sum, in two parts."""
    rollout = sampled(state, 1.0, PROMPTS)
    hidden = [functional.make_hidden(model) for model in (MODEL, WIDER)]
    losses = [
        distillation.by_divergence(*hidden, div, temperature=temperature)
        for div in DIVERGENCES
    ]
    step = distillation.make_step(
        lambda *args: sum(loss(*args) for loss in losses),
        optax.sgd(1.0),
        microbatches=2,
    )
    new, found = step(jax.tree.map(jnp.copy, state), TEACHER, rollout)
    teacher = rollouts.completion_logits(APPLY_TEACHER, TEACHER, rollout) / temperature

    @jax.jit
    @jax.value_and_grad
    def exact(params):
        logits = rollouts.completion_logits(APPLY, params, rollout) / temperature
        tokens = sum(dv.exact(div, logits, teacher) for div in DIVERGENCES)
        return jnp.sum(tokens * rollout.trained) / jnp.sum(rollout.trained)

    value, gradient = exact(PARAMS)
    assert_close(found["loss"], value, rel=1e-5)
    moved = jax.tree.map(lambda old, new: old - new, PARAMS, new.params)
    assert_close(moved, gradient, rel=1e-4)


@pytest.fixture(scope="module")
def teacher(home):
    """Wider than the student, with a padded head and the same tokens."""
    config = folders.open_policy(home / "model").config
    config = dataclasses.replace(config, hidden_size=16, vocab_size=264)
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad")}
    folder = build_folder(home / "teacher", **special)
    hf.save(folder, config, functional.init(config, jax.random.key(7)))
    return folder


def arguments(home, out, *more):
    return [
        *("train", "distil", "--model", str(home / "model"), "--out", str(out)),
        *("--teacher", str(home / "teacher"), "--steps", "3", "--batch-size", "2"),
        *("--data", str(home / "prompts.jsonl"), "--max-tokens", "6"),
        *("--microbatches", "1", "--held-out", "2", "--learning-rate", "1e-2"),
        *("--save-every", "1", "--evaluate-every", "2", *more),
    ]


OBJECTIVES = {
    "divergence": ("--divergence", "reverse_kl", "--microbatches", "2"),
    "top_k": ("--top-k", "5", "--support", "student", "--lora.rank", "2"),
    "balanced": ("--temperature", "2"),
    "plackett_luce": ("--own-samples", "0"),
    "tvd": ("--own-samples", "1", "--reward", "exact"),
}


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_by_the_command(home, teacher, tmp_path, objective):
    more = ("--objective", objective, *OBJECTIVES[objective])
    main(arguments(home, tmp_path / "run", *more))
    rows = metrics.read(tmp_path / "run")
    for name in ("reverse_kl", "forward_kl"):
        values = metrics.column(rows, f"distil/eval/{name}")[1]
        assert len(values) == 3
        assert min(values) > 0
        assert values[0] != values[-1]
    assert len(metrics.column(rows, "distil/loss")[1]) == 3
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["kind"] == "distil"
    opened = folders.open_policy(tmp_path / "run")
    assert opened.config.hidden_size == 8


@pytest.mark.slow
def test_a_student_comes_nearer(home, teacher, tmp_path):
    more = ("--steps", "30", "--batch-size", "4", "--divergence", "forward_kl")
    main(arguments(home, tmp_path / "run", *more, "--own-samples", "0"))
    forward = metrics.column(metrics.read(tmp_path / "run"), "distil/eval/forward_kl")[
        1
    ]
    assert forward[-1] < 0.8 * forward[0]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_padded_head_draws_no_padding(home, teacher, rank):
    """The student's embedding has no row for it."""
    adapters = lora.LoRA(rank=rank) if rank else None
    whole = folders.open_policy(teacher, adapters=adapters, key=jax.random.key(0))
    policy = vocabularies.cropped(whole, 259)
    tokens = jnp.zeros((1, 2), jnp.int32)
    fns = (policy.apply_fn, whole.apply_fn)
    cut, full = (jax.eval_shape(fn, policy.params, tokens).logits for fn in fns)
    assert (cut.shape[-1], full.shape[-1]) == (259, 264)
    assert policy.hidden_fn(policy.params, tokens).head.shape[0] == 259
    # What is compiled is made of the functions of all parameters.
    params = policy.params if policy.base is None else policy.base
    assert jax.eval_shape(policy.whole_fns[0], params, tokens).logits.shape[-1] == 259
    assert vocabularies.cropped(policy, policy.config.vocab_size) is policy


def test_bad_teachers_and_choices_are_refused(home, teacher, tmp_path, capsys):
    other = build_folder(home / "other", eos_token="<bos>", bos_token="<bos>")
    config = folders.open_policy(home / "model").config
    hf.save(other, config, functional.init(config, jax.random.key(1)))
    for more, said in (
        (("--teacher", str(other)), ["teacher must have the student's voc", "eos_id"]),
        (("--teacher", str(home / "none")), ["none"]),
        (("--objective", "tvd"), ["own_samples must be 1 with the objective tvd"]),
        (("--own-samples", "1.5"), ["own_samples must be from 0 to 1, got 1.5"]),
        (("--divergence", "kl"), ["divergence must be one of"]),
    ):
        message = refused(capsys, arguments(home, tmp_path / "x", *more))
        assert all(words in message for words in said), message
