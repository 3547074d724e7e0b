"""Language models that play a cyclic game: the second part of ``experiments.nash``.

A small decoder writes up to four letters of r, p and s; a judge prefers by the letter
that leads. All 121 texts can be enumerated, so what is measured is exact.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignax import exact, games, references
from alignax.models import decoder, functional
from alignax.pipeline import rollout as rollouts
from alignax.pipeline import update
from alignax.train import game
from alignax.types import InputError, Prompts

EOS, LETTERS, LENGTH = 0, "rps", 4
EQUILIBRIUM = (0.4, 0.35, 0.25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Every method on the same references and samples' keys."""

    seeds: int = 4
    """Runs of each method, each with its own reference."""
    steps: int = 800
    """Optimiser steps of each run."""
    batch: int = 64
    """Completions in each step, and as many of the opponent's."""
    beta: float = 0.05
    """Strength of the regularisation."""
    learning_rate: float = 2e-3
    """The learning rate of Adam, which is decayed to a tenth."""
    evaluations: int = 40
    """How many exact measurements a run makes; they divide its steps."""
    hidden_size: int = 16
    """Width of the decoder."""

    def __post_init__(self):
        for name in ("seeds", "steps", "batch", "evaluations"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("beta", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if self.steps % self.evaluations:
            raise InputError(
                f"evaluations must divide the {self.steps} steps, got "
                f"{self.evaluations}"
            )
        if self.hidden_size < 8 or self.hidden_size % 8:
            raise InputError(
                f"hidden_size must be a positive multiple of 8, got {self.hidden_size}"
            )


class Variant(NamedTuple):
    """What distinguishes methods of one kind: numbers, so that one compiled program
    runs them all."""

    reward: float = 0.0  # 1: follow the reward model, not the judge
    mixture: float = 0.0  # share of the reference in the opponent
    decay: float = 0.0  # of the opponent's moving average


def averaged(variant: Variant) -> game.Method:
    rule = references.moving_average(decay=variant.decay)
    return dataclasses.replace(game.nash_md(mixture=variant.mixture), opponent=rule)


KINDS = {
    averaged: {
        "reward model": Variant(reward=1.0),
        "self-play": Variant(),
        "Nash-MD-PG": Variant(mixture=0.125),
        "Nash-EMA-PG": Variant(decay=0.9),
    },
    lambda variant: game.nash_mp(eta=10.0, inner_steps=10): {"Nash-MP": Variant()},
    lambda variant: game.ipo_md(mixture=variant.mixture): {
        "online IPO": Variant(),
        "IPO-MD": Variant(mixture=0.125),
    },
}


class World(NamedTuple):
    """All texts with their styles (the leading letter's number; 3 for the empty one),
    and the judge's matrix over them."""

    tokens: Any
    mask: Any
    styles: Any
    preference: Any


def leading_letter(tokens, mask):
    """``[N]``: the commonest letter, of equals the earliest in the alphabet; 3 for
    none."""
    present = mask[..., None] & (tokens[..., None] == jnp.arange(1, 4).reshape(1, 1, 3))
    counts = jnp.sum(present, axis=-2)
    return jnp.where(jnp.any(counts > 0, -1), jnp.argmax(counts, axis=-1), 3)


def judge_of_styles() -> jax.Array:
    """``[4, 4]``: the weighted cycle; to write nothing loses to all with 0.9."""
    cycle = games.weighted_cycle(jnp.array(EQUILIBRIUM))
    whole = jnp.full((4, 4), 0.9).at[3].set(0.1).at[3, 3].set(0.5)
    return whole.at[:3, :3].set(cycle)


def make_world() -> World:
    tokens, mask = exact.enumerate_completions(4, LENGTH, eos_id=EOS, pad_id=EOS)
    styles, matrix = leading_letter(tokens, mask), judge_of_styles()

    def judge(first, second):
        return matrix[first, second]

    return World(tokens, mask, styles, games.preference_matrix(judge, styles))


def fit_reward_model(logp_ref) -> jax.Array:
    """``[4]``: the Bradley-Terry score of each style, by maximum likelihood over all
    pairs of the reference."""
    judge = judge_of_styles()

    def loss(scores):
        margins = scores[:, None] - scores[None, :]
        weights = jnp.exp(logp_ref[:, None] + logp_ref[None, :])
        return jnp.sum(weights * judge * jax.nn.softplus(-margins))

    def step(scores, _):
        return scores - 2.0 * jax.grad(loss)(scores), None

    return jax.lax.scan(step, jnp.zeros(4), length=2000)[0]


def make_runner(config: Texts, world: World, kind: Callable[[Variant], game.Method]):
    """``(variant, key) -> measurements [evaluations + 1]``: one run, from reference to
    trained policy; meant to be vmapped over variants and keys and jitted."""
    model = decoder.DecoderConfig(
        vocab_size=4,
        hidden_size=config.hidden_size,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=config.hidden_size // 2,
        mlp_size=2 * config.hidden_size,
        max_length=LENGTH + 1,
        initializer_range=0.3,
    )
    apply_fn = functional.make_apply(model)
    prompts = Prompts(
        tokens=jnp.full((1, 1), EOS),
        mask=jnp.ones((1, 1), bool),
        index=jnp.zeros(1, jnp.int32),
    )
    tx = update.optimiser(
        learning_rate=config.learning_rate, steps=config.steps, final_fraction=0.1
    )
    judge = judge_of_styles()

    def law(params):
        return exact.completion_logp(
            apply_fn, params, prompts.tokens[0], world.tokens, world.mask
        )

    def run(variant, key):
        key, init_key = jax.random.split(key)
        reference = functional.init(model, init_key)
        logp_ref = law(reference)
        scores = fit_reward_model(jnp.log(style_masses(logp_ref, world)))
        star = games.regularised_equilibrium(
            games.Game(world.preference, logp_ref, config.beta)
        )
        method = kind(variant)
        sample = game.make_sampler(
            method,
            apply_fn,
            completions=config.batch,
            max_tokens=LENGTH,
            eos_id=EOS,
            jit=False,
        )
        step = game.make_step(method, rollouts.score_by_logits(apply_fn), tx, jit=False)

        def preferences(contest):
            styles, others = (
                leading_letter(x.tokens, x.trained)
                for x in (contest.rollout, contest.opponents)
            )
            wins = judge[styles][:, others]
            if not method.both:
                gain = jnp.where(variant.reward > 0, scores[styles][:, None], wins)
                # Any constant is a baseline: this batch's own mean, and the half again.
                wins = gain - jnp.mean(gain) + 0.5
            return wins[None]

        def measure(params):
            logp = law(params)
            return {
                "masses": style_masses(logp, world),
                "exploitability": games.exploitability(world.preference, logp),
                "kl": exact.kl(star, logp),
                "target": games.exploitability(world.preference, star),
            }

        def iteration(state, _):
            contest = sample(state, prompts)
            return step(state, contest.judged(preferences(contest)))[0], None

        def stretch(state, _):
            length = config.steps // config.evaluations
            state, _ = jax.lax.scan(iteration, state, length=length)
            return state, measure(state.params)

        state = game.init_state(method, reference, tx, key, beta=config.beta)
        _, values = jax.lax.scan(stretch, state, length=config.evaluations)
        start = measure(reference)
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), start, values)

    return run


def style_masses(logp, world: World):
    """``[4]``: the probability of each style."""
    return jnp.zeros(4).at[world.styles].add(jnp.exp(logp))


def train(
    config: Texts, *, seed: int, methods: Collection[str] | None = None
) -> dict[str, dict[str, Any]]:
    """``{method: {name: [seeds, evaluations + 1, ...]}}``, of all methods or of those
    named."""
    world = make_world()
    keys = jax.random.split(jax.random.key(seed), config.seeds)
    results: dict[str, dict[str, Any]] = {}
    for kind, every in KINDS.items():
        variants = {k: v for k, v in every.items() if methods is None or k in methods}
        if not variants:
            continue
        run = make_runner(config, world, kind)
        stacked = jax.tree.map(lambda *x: jnp.array(x), *variants.values())
        values = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(stacked, keys)
        for i, name in enumerate(variants):
            results[name] = {key: np.asarray(x[i]) for key, x in values.items()}
    return results
