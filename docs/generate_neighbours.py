"""Writes docs/neighbours.md: what stands beside the divergences of a run, in numbers.

python docs/generate_neighbours.py
"""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp

from alignax import divergences as dv
from alignax import exact, targets

FOLDER = Path(__file__).parent
LOGP, LOGP_REF = (jnp.log(jnp.array(p)) for p in ([0.6, 0.3, 0.1], [0.2, 0.3, 0.5]))
ROUNDS, ARMS, SEEDS = 400, 3, 64

HEAD = """# Beside the divergences of a run

Distances that are no f-divergence, worst cases and projections by the KL, the best law
at a KL, and bandits with a proven regret: each a function with its test, here with a
number. `python docs/generate_neighbours.py` writes the page; a test compares it with
the code.
"""


def table(*rows) -> str:
    head, *body = ([str(cell) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *body]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def distances() -> str:
    """Of two laws, and of two samples of one line."""
    rows = [
        (f"Rényi's, order {q}, `divergences.renyi`", dv.renyi(LOGP, LOGP_REF, order=q))
        for q in (0.5, 1.0, 2.0)
    ]
    rows.append(("Cauchy-Schwarz, `cauchy_schwarz`", dv.cauchy_schwarz(LOGP, LOGP_REF)))
    x, y = jnp.linspace(-1, 1, 9)[:, None], jnp.linspace(0, 2, 9)[:, None]

    def cost(a, b):
        return jnp.square(a - b.T)

    kernel = dv.cauchy_schwarz_kernel(x, y, bandwidth=0.5)
    transport = dv.sinkhorn_divergence(
        cost(x, y), cost(x, x), cost(y, y), epsilon=0.1, num_iterations=200
    )
    rows += [
        ("of nine points on [−1, 1] and on [0, 2], `cauchy_schwarz_kernel`", kernel),
        ("the same points' entropic transport, `sinkhorn_divergence`", transport),
        (
            "KL of normal laws one apart, `gaussian_kl`",
            dv.gaussian_kl(jnp.float32(1), jnp.float32(0)),
        ),
    ]
    return (
        "\n## Distances\n\nBetween (.6, .3, .1) and (.2, .3, .5), in nats. Rényi's grows "
        "with its order; order 1 is the reverse KL.\n"
        + table(("distance", "value"), *((name, f"{v:.3f}") for name, v in rows))
    )


def worst_case() -> str:
    """Losses reweighted under a KL, and the law with a given mean."""
    losses = jnp.array([0.2, 1.0, 0.5, 2.0])
    rows = []
    for strength in (0.1, 0.7, 10.0):
        value, weights = dv.kl_dro(losses, strength=strength)
        rows.append((strength, f"{value:.3f}", ", ".join(f"{w:.2f}" for w in weights)))
    values = jnp.arange(4.0)[:, None]
    projected, multiplier = dv.information_projection(
        jnp.zeros(4), values, jnp.array([2.0])
    )
    law = ", ".join(f"{p:.3f}" for p in jnp.exp(projected))
    return (
        "\n## Worst cases and projections\n\n`divergences.kl_dro` is the mean of the "
        "losses .2, 1, .5, 2 under the worst weights, which pay λ KL from uniform ones:\n"
        + table(("λ", "value", "weights"), *rows)
        + "\n`divergences.information_projection`: of all laws on 0, 1, 2, 3 with mean "
        f"2, the nearest to the uniform one is ({law}), with multiplier "
        f"{multiplier[0]:.3f}.\n"
    )


def at_a_kl() -> str:
    """Best-of-n beside the law of the largest reward at the same KL."""
    logp_ref, rewards = jnp.full(100, -math.log(100)), jnp.linspace(0, 1, 100)
    rows = []
    for n in (2, 4, 16):
        logp = exact.best_of_n(rewards, logp_ref, n=n)
        kl = exact.kl(logp, logp_ref)
        best, eta = targets.constrained_optimum(rewards, logp_ref, kl=kl)
        spent = targets.cumulants(rewards, logp_ref, eta=eta).kl
        reached, most = (exact.expectation(x, rewards) for x in (logp, best))
        rows.append((n, *(f"{v:.3f}" for v in (spent, reached, most, 1 / eta))))
    head = ("n", "KL (nats)", "reward, best of n", "the most at this KL", "its β")
    return (
        "\n## The most reward at a KL\n\n`targets.constrained_optimum` finds it, with "
        "the β that leads there; rewards are spread evenly over [0, 1]. Best of n comes "
        "near it (Yang et al., arXiv 2404.01730).\n" + table(head, *rows)
    )


def bandits() -> str:
    """Mean regret of Hedge and of EXP3 against their bounds."""
    losses = jax.random.uniform(jax.random.key(0), (ROUNDS, ARMS))
    losses = losses.at[:, 0].multiply(0.8)
    one = jnp.zeros(ROUNDS, jnp.int32)
    count = ROUNDS * math.log(ARMS)
    hedge = exact.exponential_weights(
        learning_rate=math.sqrt(8 * math.log(ARMS) / ROUNDS)
    )
    exp3 = exact.exponential_weights(
        learning_rate=math.sqrt(2 * math.log(ARMS) / (ROUNDS * ARMS))
    )
    regret = functools.partial(exact.regret, num_contexts=1)
    seen = exact.run_full_information(hedge, losses, one, num_contexts=1)

    @jax.jit
    @jax.vmap
    def played(key):
        logp, _ = exact.run_bandit(exp3, losses, one, key, num_contexts=1)
        return regret(logp, losses, one)

    mean = jnp.mean(played(jax.random.split(jax.random.key(1), SEEDS)))
    return (
        f"\n## Bandits\n\nRegret over {ROUNDS} rounds of {ARMS} arms: Hedge sees every "
        f"loss, EXP3 the played arm's (mean of {SEEDS} runs).\n"
        + table(
            ("learner", "regret", "bound"),
            (
                "Hedge",
                f"{regret(seen, losses, one):.1f}",
                f"{math.sqrt(count / 2):.1f}",
            ),
            ("EXP3", f"{mean:.0f}", f"{math.sqrt(2 * ARMS * count):.0f}"),
        )
    )


def text() -> str:
    return HEAD + distances() + worst_case() + at_a_kl() + bandits()


if __name__ == "__main__":
    (FOLDER / "neighbours.md").write_text(text(), encoding="utf-8")
