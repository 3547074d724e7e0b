"""Language models that play a cyclic game: the second part of ``experiments.nash``.

A small decoder writes up to four letters of r, p and s; a judge prefers by the letter
that leads. All 121 texts can be enumerated, so what is measured is exact.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignax import estimators, exact, games, logprobs, reduce, references
from alignax.models import decoder, functional
from alignax.pipeline import rollout as rollouts
from alignax.pipeline import update
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


class Method(NamedTuple):
    """What distinguishes the policy-gradient methods: numbers, so that one compiled
    program runs them all."""

    reward: float = 0.0  # 1: follow the reward model, not the judge
    mixture: float = 0.0  # share of the reference in the opponent
    decay: float = 0.0  # of the opponent's moving average
    anchor: float = 0.0  # 1/η of mirror prox; 0 has no inner loop


GRADIENT = {
    "reward model": Method(reward=1.0),
    "self-play": Method(),
    "Nash-MD-PG": Method(mixture=0.125),
    "Nash-EMA-PG": Method(decay=0.9),
    "Nash-MP": Method(anchor=0.1),
}
SQUARED = {"online IPO": Method(), "IPO-MD": Method(mixture=0.125)}
INNER_STEPS = 10


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


def make_runner(config: Texts, world: World, *, squared: bool):
    """``(method, key) -> measurements [evaluations + 1]``: one run, from reference to
    trained policy; meant to be vmapped over methods and keys and jitted."""
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
    loop = games.mirror_prox_loop(inner_steps=INNER_STEPS)

    def law(params):
        return exact.completion_logp(
            apply_fn, params, prompts.tokens[0], world.tokens, world.mask
        )

    def sample(params, reference, mixture, key):
        mixed = games.mixture_policy(apply_fn, apply_fn, mixture=mixture)
        rollout = rollouts.generate(
            mixed,
            (params, reference),
            key,
            prompts,
            completions=config.batch,
            max_tokens=LENGTH,
            eos_id=EOS,
        )
        return rollout, leading_letter(rollout.tokens, rollout.trained)

    def token_logp(params, rollout):
        logits = rollouts.completion_logits(apply_fn, params, rollout)
        return reduce.masked(
            logprobs.token_logp(logits, rollout.tokens), rollout.trained
        )

    def run(method, key):
        key, init_key = jax.random.split(key)
        reference = functional.init(model, init_key)
        logp_ref = law(reference)
        average = references.moving_average(decay=method.decay)
        mass_ref = style_masses(logp_ref, world)
        scores = fit_reward_model(jnp.log(mass_ref))
        star = games.regularised_equilibrium(
            games.Game(world.preference, logp_ref, config.beta)
        )

        def measure(params):
            logp = law(params)
            return {
                "masses": style_masses(logp, world),
                "exploitability": games.exploitability(world.preference, logp),
                "kl": exact.kl(star, logp),
                "target": games.exploitability(world.preference, star),
            }

        def gradient_loss(params, opponent, anchor, keys):
            rollout, styles = sample(params, reference, 0.0, keys[0])
            _, others = sample(opponent, reference, method.mixture, keys[1])
            wins = jnp.mean(judge[styles][:, others], axis=-1)
            gain = jnp.where(method.reward > 0, scores[styles], wins)
            # Any constant is a baseline: this batch's own mean, and the half again.
            gain = gain - jnp.mean(gain) + 0.5
            logp = token_logp(params, rollout)
            logp_ref = token_logp(reference, rollout)
            losses = games.nash_pg_surrogate(
                logp, logp_ref, gain, rollout.trained, beta=config.beta
            )
            # nash_mp_surrogate's second KL, which may have the weight 0 here.
            losses = losses + method.anchor * estimators.sequence_kl_surrogate(
                logp, token_logp(anchor, rollout), rollout.trained
            )
            return jnp.mean(jnp.sum(losses, axis=-1))

        def squared_loss(params, opponent, anchor, keys):
            del opponent, anchor
            logp, ref, styles = [], [], []
            for pair_key in keys:
                rollout, style = sample(params, reference, method.mixture, pair_key)
                logp.append(jnp.sum(token_logp(params, rollout), axis=-1))
                ref.append(jnp.sum(token_logp(reference, rollout), axis=-1))
                styles.append(style)
            shape = (config.batch, config.batch)
            first = [jnp.broadcast_to(x[0][:, None], shape) for x in (logp, ref)]
            second = [jnp.broadcast_to(x[1][None], shape) for x in (logp, ref)]
            losses = games.online_ipo_loss(
                first[0],
                second[0],
                first[1],
                second[1],
                judge[styles[0]][:, styles[1]],
                beta=config.beta,
            )
            # β/4 of the loss has the size of the preference's own gradient.
            return config.beta / 4 * jnp.mean(losses)

        loss = squared_loss if squared else gradient_loss

        def step(carry, number):
            params, opt_state, mean, prox = carry
            keys = jax.random.split(jax.random.fold_in(key, number))
            opponent = jax.tree.map(
                lambda x, y: jnp.where(method.anchor > 0, x, y), prox.opponent, mean
            )
            gradient = jax.grad(loss)(params, opponent, prox.anchor, keys)
            updates, opt_state = tx.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            carry = (
                params,
                opt_state,
                average.update(mean, params, number + 1),
                loop.update(prox, params),
            )
            return carry, None

        def stretch(carry, numbers):
            carry, _ = jax.lax.scan(step, carry, numbers)
            return carry, measure(carry[0])

        carry = (
            reference,
            tx.init(reference),
            average.init(reference),
            loop.init(reference),
        )
        numbers = jnp.arange(config.steps).reshape(config.evaluations, -1)
        start = measure(reference)
        _, values = jax.lax.scan(stretch, carry, numbers)
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), start, values)

    return run


def style_masses(logp, world: World):
    """``[4]``: the probability of each style."""
    return jnp.zeros(4).at[world.styles].add(jnp.exp(logp))


def train(config: Texts, *, seed: int) -> dict[str, dict[str, Any]]:
    """``{method: {name: [seeds, evaluations + 1, ...]}}``."""
    world = make_world()
    keys = jax.random.split(jax.random.key(seed), config.seeds)
    results: dict[str, dict[str, Any]] = {}
    for methods, squared in ((GRADIENT, False), (SQUARED, True)):
        run = make_runner(config, world, squared=squared)
        stacked = jax.tree.map(lambda *x: jnp.array(x), *methods.values())
        values = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(stacked, keys)
        for i, name in enumerate(methods):
            results[name] = {key: np.asarray(x[i]) for key, x in values.items()}
    return results
