"""Sums of three digits: small enough that every completion is enumerated.

A completion is up to three digits and the end; ``7``, ``07`` and ``007`` are the same
answer, so that right answers have lengths.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alignax import logprobs
from alignax.types import ApplyFn, Prompts, Supervised

DIGITS, EOS, TOKENS = 10, 10, 4


def split(held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums to train on and held-out ones, ``[N, 3]`` digits."""
    everything = np.indices((10, 10, 10)).reshape(3, -1).T
    shuffled = np.random.default_rng(seed).permutation(everything)
    return shuffled[held_out:], shuffled[:held_out]


def written(numbers: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers with leading zeros and the end: tokens and mask ``[N, 4]``."""
    tokens, mask = np.zeros((2, len(numbers), TOKENS), int)
    for i, (number, width) in enumerate(zip(numbers, widths, strict=True)):
        answer = [int(digit) for digit in f"{number:0{width}d}"] + [EOS]
        tokens[i, : len(answer)], mask[i, : len(answer)] = answer, 1
    return tokens, mask > 0


def demonstrations(
    problems: np.ndarray, *, batch_size: int, mistakes: float, seed: int
) -> Iterator[Supervised]:
    """The batches of a teacher who is off by one or two as often as ``mistakes``."""
    rng = np.random.default_rng(seed)
    while True:
        rows = problems[rng.integers(len(problems), size=batch_size)]
        error = rng.choice([-2, -1, 1, 2], size=len(rows))
        wrong = rng.random(len(rows)) < mistakes
        numbers = np.abs(rows.sum(1) + np.where(wrong, error, 0))
        answers, mask = written(numbers, rng.integers(1, 4, len(rows)))
        prompt = np.ones(rows.shape, bool)
        yield Supervised(
            tokens=jnp.array(np.concatenate([rows, answers], 1), jnp.int32),
            mask=jnp.array(np.concatenate([prompt, mask], 1)),
            loss_mask=jnp.array(np.concatenate([~prompt, mask], 1)),
            index=jnp.arange(len(rows)),
        )


def prompts_of(digits: jax.Array, index: jax.Array) -> Prompts:
    return Prompts(tokens=digits, mask=jnp.ones(digits.shape, bool), index=index)


def value_of(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """``[B]``: the number that was written and ended, −1 for any other completion."""
    digit = mask & (tokens != EOS)

    def read(total, column):
        token, counts = column
        return jnp.where(counts, 10 * total + token, total), None

    start = jnp.zeros(len(tokens), tokens.dtype)
    value, _ = jax.lax.scan(read, start, (tokens.T, digit.T))
    ended = jnp.any(mask & (tokens == EOS), axis=-1) & jnp.any(digit, axis=-1)
    return jnp.where(ended, value, -1)


def make_report(apply_fn: ApplyFn) -> Callable[..., dict[str, jax.Array]]:
    """``(params, reference, problems) -> {name: [N]}``: exact, by enumeration."""
    digits = jnp.array(np.indices((10,) * 3).reshape(3, -1).T)  # every string
    value = digits[:, 0]
    values = [value, 10 * value + digits[:, 1]]
    values.append(10 * values[-1] + digits[:, 2])
    # A prefix of t digits stands in 10^(3 − t) of the strings.
    copies = 10.0 ** (3 - jnp.arange(4))

    def one(params, reference, problem):
        prompt = jnp.broadcast_to(problem, (len(digits), 3))
        whole = jnp.concatenate([prompt, digits], axis=1)
        logp, logp_ref = (
            logprobs.log_softmax(apply_fn(p, whole, logits_from=2).logits)
            for p in (params, reference)
        )
        taken = jnp.take_along_axis(logp[:, :3], digits[..., None], axis=-1)[..., 0]
        ahead = jnp.concatenate([jnp.zeros((len(digits), 1)), taken], axis=1)
        weight = jnp.exp(jnp.cumsum(ahead, axis=1)) / copies[None]
        law = jnp.exp(logp)
        kl = jnp.sum(law * (logp - logp_ref), axis=-1)
        entropy = -jnp.sum(law * logp, axis=-1)
        right = jnp.stack([v == jnp.sum(problem) for v in values], axis=1)
        return {
            "p": jnp.sum(weight[:, 1:] * law[:, 1:, EOS] * right),
            "kl": jnp.sum(weight * kl),
            "entropy": jnp.sum(weight * entropy),
            "length": jnp.sum(weight),
        }

    def report(params, reference, problems):
        return jax.lax.map(partial(one, params, reference), problems)

    return report
