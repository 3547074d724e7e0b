"""Writes docs/targets.md and its picture: targets, and what is exact about them.

python docs/generate_targets.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alignax import divergences as dv
from alignax import exact, preference, targets
from alignax.pipeline import plots
from alignax.types import InputError

FOLDER = Path(__file__).parent
PI = np.array([0.5, 0.25, 0.15, 0.10])
RHO = np.array([0.1, 0.2, 0.3, 0.4])
R = np.array([1.0, 0.5, 0.0, -0.5])
BETA = 0.5
LENGTHS = (1, 4, 16, 48)

TEXT = """# Targets

A reward is one way to say where a policy should go. Whatever the way, there is a law p
of completions to move to, known up to its normaliser: `log P`, and a normaliser Z for
each prompt. f-DPG (Go et al., arXiv 2302.08215) descends any divergence to any of them,

> `∇D_f(π‖p) = E_b[(π/b) f'(π/p) ∇log π]`: REINFORCE with the reward `−f'(π/p)`.

| target | `log P` | with |
|---|---|---|
| KL-RL's posterior | `tilted(logp_ref, rewards, beta=β)` | `train target --target posterior`, `train rl --method f_dpg` |
| a filter: every completion satisfies b | `filtered(logp_ref, b)` | `--target filter` |
| constraints in expectation (GDC), distributional or hybrid | `tilted(logp_ref, φ·λ, beta=1)`, λ of `fit_multipliers` | `--target constraints --feature … --moment …` |
| a product of experts | `product_of_experts` | `--target experts --expert A B --expert-weight 1 -0.5` |
| a mixture of experts | `mixture_of_experts` | `--target experts --expert A B --combine mixture` |
| experts with a reward | `tilted(product_of_experts(…), rewards, beta=β)` | `--target posterior --reward … --expert A B` |

The functions are those of `alignax.targets`, on log-probabilities of whole completions;
they take one another's results. A run keeps the normaliser of each record's prompt in
its train state (`running_log_normaliser`: the mean weight `P/b` of all its samples, or
with `--normaliser-decay` a moving average) and logs its mean error with `kl_to_target`,
`kl_from_target`, `target_samples` (the effective sample size of a prompt's
completions), `excluded` and `massless` (shares of completions and of prompts without
target mass, which are counted and are no NaN).

## What a wrong normaliser does

The reverse KL's gradient does not depend on Z: with the posterior for a target it *is*
KL-RL's, divided by β. The forward KL's only changes its length. Here Z is half too
large, in the fixture of four outcomes; |g| to the true one, and the cosine:

{sensitivity}

In the step each completion's Z is estimated by the *other* ones and those of earlier
batches (`others_log_normaliser`), so that the forward KL's expected gradient keeps its
direction exactly, from the first batch on. Its baseline, the mean of the other
completions' pseudo-rewards, takes the same Z for them; with each one's own, of which
the completion is a part, even the reverse KL's gradient would be biased: doubled, in
groups of two. The other divergences have a bias of the order of Z's relative variance,
which the log shows. `tests/train/test_target.py` has all of it in a world where every
pair of completions is listed.

## The normaliser by samples

`log Z = {log_z:.4f}`; each line is of 2000 runs. The error is what a run says of itself
(`normaliser_error`), beside the spread that there is; bounds are those of
`normaliser_bounds`, n samples each.

{normaliser}

## Constraints in expectation

φ is 1 of the first and last outcome, which the reference has half of the time; wanted
is 0.8. λ by `fit_multipliers` of n samples, the mean of 200 fits, with the standard
error that it says and the spread that there is; exact is log 4 = 1.3863.

{multipliers}

A constraint that cannot be met is refused with what can be: "{refused}"

## Rejection, with and without an end

Quasi-rejection sampling keeps a sample of π with probability `min(1, P/(κ π))`; with a
κ below the largest ratio it is cheaper, and biased by what this table has: exact
(`quasi_rejection_law`), and as 64 samples say (`quasi_rejection_quality`). RSO's sampler
(`preference.rejection_sample`) is the case of the reference for a proposal and κ at the
best reward that was sampled: no bias but for rewards that were not seen.

{rejection}

## Best-of-n against KL-RL

The rate function `Λ*(x)`, the Legendre transform of the rewards' cumulants, is both
what a KL-constrained policy pays for a mean reward of x a symbol, and how unlikely it
is that m symbols have it by themselves: `e^{{−m Λ*(x)}}`. So best-of-n with `n = e^{{mΔ}}`
reaches what a KL of Δ a symbol buys, as m grows (Yang et al., arXiv 2404.01730). All
sequences are enumerated here, by their types:

```{{image}} targets.png
:alt: Reward against KL a symbol: best-of-n nears the optimum as sequences grow
```

{asymptotics}

This page is written by `python docs/generate_targets.py`.
"""


def table(head, rows):
    lines = [" | ".join(map(str, row)) for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(f"| {line} |" for line in lines)


def sensitivity():
    """|g| / |g₀| and cosine of f-DPG's gradient with Z × 1.5."""
    rows = []
    for div in (
        dv.reverse_kl(),
        dv.forward_kl(),
        dv.jensen_shannon(),
        dv.squared_hellinger(),
        dv.pearson(),
        dv.neyman(),
        dv.total_variation(),
    ):

        def gradient(log_z, div=div):
            def loss(logits):
                logp = jax.nn.log_softmax(logits)
                goal = jnp.log(RHO)
                return jnp.sum(PI * targets.fdpg_surrogate(div, logp, goal, log_z))

            return np.asarray(jax.grad(loss)(jnp.log(PI)))

        true, off = gradient(jnp.log(1.0)), gradient(jnp.log(1.5))
        lengths = [np.linalg.norm(x) for x in (true, off)]
        cosine = true @ off / lengths[0] / lengths[1]
        rows.append((div.name, f"{lengths[1] / lengths[0]:.4f}", f"{cosine:.5f}"))
    return table(("divergence", "length", "cosine"), rows)


def weights():
    return targets.tilted(jnp.log(RHO), jnp.array(R), beta=BETA) - jnp.log(PI)


def draws(seed, *shape):
    return jax.random.choice(jax.random.key(seed), 4, shape, p=jnp.array(PI))


def normaliser():
    rows, rule = [], targets.running_log_normaliser((2000,))
    for count in (4, 16, 64, 256):
        sampled = weights()[draws(count, 2000, count)]
        state = rule.update(rule.init(), sampled)
        said = targets.normaliser_error(state)
        bounds = targets.normaliser_bounds(sampled)
        numbers = (
            jnp.mean(state.log_z),
            jnp.mean(said.error),
            jnp.std(state.log_z),
            jnp.mean(bounds.lower),
            jnp.mean(bounds.upper),
        )
        cells = [f"{x:.4f}" for x in numbers]
        rows.append((count, *cells, f"{jnp.mean(said.effective):.1f}"))
    head = ("n", "log Ẑ", "error said", "spread", "lower", "upper", "effective n")
    return table(head, rows)


def multipliers():
    feature, rows = jnp.array([1.0, 0.0, 0.0, 1.0]), []
    wanted = jnp.array([0.8])
    for count in (50, 200, 800):
        key = jax.random.key(count)
        sampled = jax.random.choice(key, 4, (200, 1, count), p=jnp.array(RHO))
        fits = jax.jit(jax.vmap(lambda x: targets.fit_multipliers(x, wanted)))(
            feature[sampled][..., None]
        )
        numbers = jnp.mean(fits.values), jnp.mean(fits.errors), jnp.std(fits.values)
        rows.append((count, *(f"{x:.4f}" for x in numbers)))
    return table(("n", "λ", "error said", "spread"), rows)


def refused():
    features = jnp.array([[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]])
    wanted = [0.5, 0.2]
    fit = targets.fit_multipliers(features, jnp.array(wanted))
    try:
        targets.refuse_unmet(fit, wanted, ["exclaims", "rhymes"])
    except InputError as error:
        return str(error)
    raise AssertionError


def rejection():
    goal = targets.tilted(jnp.log(RHO), jnp.array(R), beta=BETA)
    target, _ = targets.posterior(jnp.array(R), jnp.log(RHO), beta=BETA)
    sampled, rows = weights()[draws(7, 64)], []
    for kappa in (0.5, 1.0, 2.0, 2.6, 4.0):
        law, log_rate = targets.quasi_rejection_law(
            goal, jnp.log(PI), log_kappa=jnp.log(kappa)
        )
        rate, distance = targets.quasi_rejection_quality(
            sampled, log_kappa=jnp.log(kappa)
        )
        exactly = jnp.exp(log_rate), exact.total_variation(law, target)
        cells = [f"{x:.4f}" for x in (*exactly, rate, distance)]
        rows.append((f"QRS, κ {kappa:g}", *cells))
    law, log_rate = preference.rejection_law(jnp.log(RHO), jnp.array(R), beta=BETA)
    ratios = jnp.array(R)[jax.random.choice(jax.random.key(8), 4, (64,), p=RHO)] / BETA
    rate, distance = targets.quasi_rejection_quality(ratios, log_kappa=jnp.max(ratios))
    exactly = jnp.exp(log_rate), exact.total_variation(law, target)
    rows.append(("RSO", *(f"{x:.4f}" for x in (*exactly, rate, distance))))
    head = ("sampler", "acceptance", "TV to target", "by samples: acceptance", "TV")
    return table(head, rows)


def reached(length, budget):
    """Best-of-e^{mΔ}: KL and reward a symbol."""
    counts, logp = exact.sequence_types(jnp.log(RHO), length=length)
    rewards = counts @ jnp.array(R)
    n = max(round(np.exp(length * budget)), 1)
    kept = exact.best_of_n(rewards, logp, n=n)
    reward = exact.expectation(kept, rewards) / length
    return float(exact.kl(kept, logp)) / length, float(reward)


def asymptotics():
    """The picture, and a table at a budget of 0.3 nats a symbol."""
    budgets = np.linspace(0.02, 0.8, 14)
    grid = jnp.linspace(float(RHO @ R), 0.8, 60)
    price = targets.rate_function(jnp.array(R), jnp.log(RHO), mean=grid[:, None][:, 0])
    series = {"KL-constrained optimum": (price.rate, grid, None, None)}
    for length in LENGTHS:
        points = np.array([reached(length, budget) for budget in budgets])
        series[f"best of $e^{{mΔ}}$, m = {length}"] = (*points.T, None, None)
    plots.curves(
        FOLDER / "targets.png",
        series,
        title="Best-of-n nears the KL-constrained optimum",
        xlabel="KL to the reference (nats per symbol)",
        ylabel="expected reward per symbol",
    )
    rows = []
    for length in LENGTHS:
        kl, reward = reached(length, 0.3)
        n = max(round(np.exp(length * 0.3)), 1)
        rows.append((length, f"{n:,}", f"{kl:.4f}", f"{reward:.4f}"))
    best, eta = targets.constrained_optimum(jnp.array(R), jnp.log(RHO), kl=0.3)
    found = targets.cumulants(jnp.array(R), jnp.log(RHO), eta=eta)
    rows.append(("∞", "", f"{found.kl:.4f}", f"{found.mean:.4f}"))
    assert np.isclose(jnp.exp(best) @ R, found.mean)
    return table(("m", "n", "KL a symbol", "reward a symbol"), rows)


def text():
    return TEXT.format(
        sensitivity=sensitivity(),
        log_z=float(targets.posterior(jnp.array(R), jnp.log(RHO), beta=BETA)[1]),
        normaliser=normaliser(),
        multipliers=multipliers(),
        refused=refused(),
        rejection=rejection(),
        asymptotics=asymptotics(),
    )


if __name__ == "__main__":
    with jax.enable_x64(True):
        (FOLDER / "targets.md").write_text(text(), encoding="utf-8")
