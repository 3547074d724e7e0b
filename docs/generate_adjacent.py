"""Writes docs/adjacent.md: what stands beside the subject, each in an exact world.

python docs/generate_adjacent.py
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from alignax import adjacent as ad
from alignax import divergences as dv
from alignax import exact

FOLDER = Path(__file__).parent
HEAD = """# Beside the subject

Ideas that share their mathematics with divergence-regularised policies, each a function
of `alignax.adjacent`, a check in a world small enough to be exact (`tests/adjacent`), and
a paragraph here. `python docs/generate_adjacent.py` writes the page; a test compares it
with the code.
"""
LEFT_OUT = """
## Left out

Diff-Instruct*'s own gradient formula: the autodiff of `score_divergence` is exact where
it could be checked. The clamps and running means of f-distill's code: they are practice,
with no exact answer. Rules induced from preferences (inverse constitutional AI) and
edits learned from users: what they give is pairs, for `alignax.preference`; the rest is
prompts to a language model, of which nothing is exact.

Not done yet: occupancies and correlated proxies in a multi-step world, adversarial
rewards (RPO), offline regularisers (PRDC, A2PR, WSRL, AILBoost), bilevel penalties, the
collapse of a linear VAE's posterior.
"""


def table(*rows) -> str:
    head, *body = ([str(cell) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *body]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mixture(weights, means, variance) -> ad.Mixture:
    means = jnp.array(means)
    return ad.Mixture(
        jnp.log(jnp.array(weights)), means, jnp.full_like(means, variance)
    )


def distillation() -> str:
    """f-distill in one dimension, with its weights and its fixed points."""
    teacher = mixture([0.6, 0.4], [-1.5, 1.5], 0.3)
    ratios = jnp.log(jnp.array([0.25, 1.0, 4.0]))
    rows = []
    for name, div in (
        ("reverse KL", dv.reverse_kl()),
        ("twice Jensen-Shannon", dv.scale(dv.jensen_shannon(), 2.0)),
        ("Jeffreys", dv.jeffreys()),
        ("forward KL", dv.forward_kl()),
    ):

        def student(x):
            return ad.Mixture(jnp.zeros(1), x[:1], jnp.exp(x[1:]))

        def step(_, x, div=div, student=student):
            law = student(x)
            points, weights = ad.quadrature(law)
            factor = weights * ad.distribution_matching(
                div,
                ad.score(law, points),
                ad.score(teacher, points),
                ad.log_density(teacher, points) - ad.log_density(law, points),
            )
            moved = jax.grad(lambda x: jnp.sum(factor * ad.quadrature(student(x))[0]))
            return x - 0.05 * moved(x)

        end = jax.jit(
            lambda step=step: jax.lax.fori_loop(0, 1500, step, jnp.array([0.3, 0.0]))
        )()
        weight = ", ".join(f"{h:.2f}" for h in dv.score_weight(div, ratios))
        value = ad.mixture_divergence(div, student(end), teacher)
        deviation = jnp.exp(end[1] / 2)
        rows.append((name, weight, f"{end[0]:.2f}", f"{deviation:.2f}", f"{value:.3f}"))
    return (
        "\n## Score distillation\n\nf-distill (arXiv 2502.15681) moves a generator's "
        "samples by `h(r) (s_student − s_teacher)`, r = teacher/student, h = r² f'' "
        "(`divergences.score_weight`): `distribution_matching`. Its expectation is the "
        "exact divergence's gradient, for every divergence of the core, at any noise "
        "(`diffused`). A normal student of a teacher with modes of .6 at −1.5 and of .4 "
        "at 1.5: what seeks a mode, and what covers both.\n"
        + table(
            (
                "divergence",
                "h(¼), h(1), h(4)",
                "mean",
                "deviation",
                "divergence reached",
            ),
            *rows,
        )
    )


def scores() -> str:
    """De Bruijn's identity in numbers, and entropic score distillation."""
    p, q = mixture([1.0], [0.0], 1.0), mixture([0.5, 0.5], [-1.0, 1.0], 0.6)
    kl = ad.mixture_divergence(dv.reverse_kl(), p, q)
    rows = []
    for end in (0.5, 2.0, 8.0):
        times = end * ((jnp.arange(200) + 0.5) / 200)
        spent = ad.score_divergence(p, q, times, jnp.full(200, end / 200))
        robust = ad.score_divergence(
            p,
            q,
            times,
            jnp.full(200, end / 200),
            distance=functools.partial(ad.pseudo_huber, width=0.3),
        )
        rows.append((end, f"{spent:.4f}", f"{spent / kl:.1%}", f"{robust:.4f}"))
    target = mixture([0.7, 0.3], [-1.0, 1.0], 0.4)
    views = []
    for weight in (0.0, 0.5, 1.0):

        def step(_, means, weight=weight):
            law = ad.Mixture(jnp.zeros(4), means, jnp.full(4, 0.3))
            each = jax.tree.map(lambda x: x[:, None], law)
            points, weights = ad.quadrature(each)

            def of_all(mixture):
                return ad.score(mixture, points.reshape(-1)).reshape(points.shape)

            factor = ad.entropic_score(
                of_all(law),
                ad.score(each, points),
                of_all(target),
                entropy_weight=weight,
            )
            return means - 0.2 * jnp.sum(weights * factor, axis=1)

        end = jax.jit(
            lambda step=step: jax.lax.fori_loop(
                0, 600, step, jnp.linspace(-0.2, 0.6, 4)
            )
        )()
        law = ad.Mixture(jnp.zeros(4), end, jnp.full(4, 0.3))
        apart = ad.mixture_divergence(dv.reverse_kl(), law, target)
        places = ", ".join(f"{m:.2f}" for m in end + 0.0)
        objective = ad.entropic_objective(law, target, entropy_weight=weight)
        views.append((weight, places, f"{objective:.3f}", f"{apart:.3f}"))
    return (
        "\nThe squared difference of scores, integrated over the noise up to T "
        "(`score_divergence`), is what the noise has taken from the KL, "
        f"{kl:.4f} here:\n"
        + table(
            ("T", "½ ∫ E (s_p − s_q)² dt", "of the KL", "with `pseudo_huber`, c = .3"),
            *rows,
        )
        + "\nFour views of one object, each N(m, .3), and a teacher with modes of .7 at −1 and of .3 at 1. "
        "Entropic score distillation (arXiv 2401.00909, `entropic_score`) weighs the "
        "entropy of all views by λ: without it they crowd at the modes' tops, each "
        "on its own.\n"
        + table(
            ("λ", "the views' means", "`entropic_objective`", "KL(all views‖teacher)"),
            *views,
        )
    )


def control() -> str:
    """A classifier and a KL, over a chain of three steps."""
    keys = jax.random.split(jax.random.key(0), 2)
    initial = jax.nn.log_softmax(jax.random.normal(keys[0], (4,)))
    steps = jax.nn.log_softmax(jax.random.normal(keys[1], (3, 4, 4)))
    likelihood = jnp.log(jnp.array([0.9, 0.6, 0.1, 0.05]))
    before = ad.last_state(initial, steps)
    rows = [("pretrained", *(f"{p:.3f}" for p in jnp.exp(before)), "0.000")]
    for beta in (4.0, 1.0, 0.25):
        chain = ad.soft_optimal_chain(initial, steps, likelihood, beta=beta)
        end = ad.last_state(chain.log_initial, chain.log_steps)
        kl = exact.kl(end, before)
        rows.append((f"β = {beta}", *(f"{p:.3f}" for p in jnp.exp(end)), f"{kl:.3f}"))
    posterior = jnp.exp(jax.nn.log_softmax(before + likelihood))
    rows.append(("Bayes", *(f"{p:.3f}" for p in posterior), ""))
    return (
        "\n## Conditional control\n\nCTRL (arXiv 2406.12120) adds a condition y to a "
        "pretrained denoiser by reinforcement learning with the reward `log p(y|x)` and "
        "a KL: `soft_optimal_chain`. With β = 1 its samples have the conditional law "
        "exactly, with no classifier of noisy states; the law of the first state must "
        "be tilted as well. Four states with `p(y|x)` = .9, .6, .1, .05:\n"
        + table(("chain", *(f"x = {n}" for n in range(4)), "KL (nats)"), *rows)
    )


def text() -> str:
    return HEAD + distillation() + scores() + control() + LEFT_OUT


if __name__ == "__main__":
    (FOLDER / "adjacent.md").write_text(text(), encoding="utf-8")
