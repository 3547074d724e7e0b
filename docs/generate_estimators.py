"""Writes docs/estimators.md and its pictures: every estimator of the package, measured.

python docs/generate_estimators.py
"""

import functools
from pathlib import Path

import jax

from alignax import divergences, estimators, exact, testing
from alignax.estimators import table as names
from alignax.pipeline import plots

FOLDER = Path(__file__).parent
# "2–3 tokens, 3–4 symbols", and two draws of each.
SHAPES = ((3, 2), (4, 2), (3, 3), (4, 3))
SCALES = (0.1, 0.25, 0.5, 1.0, 2.0)
HORIZONS = (1, 2, 3, 4, 5)
SHOWN = (
    "k1",
    "myopic_forward_k3_surrogate",
    "myopic_k2_surrogate",
    "sequence_kl_surrogate",
    "rao_blackwell_surrogate",
)


def forward_kl(logp, logp_ref):
    return exact.kl(logp_ref, logp)


def target(record):
    """The sequence divergence that the record is about, and its name."""
    if record.divergence is not None:
        label = {"pearson": "χ²(π‖ρ)"}.get(record.divergence.name, "D(π‖ρ)")
        return label, functools.partial(divergences.exact, record.divergence)
    if names.SEQUENCE_FORWARD_KL in (record.value, record.gradient):
        return "KL(ρ‖π)", forward_kl
    return "KL(π‖ρ)", exact.kl


def worlds(shapes=SHAPES, scale=1.0):
    return [
        testing.random_world(
            jax.random.key(10 * vocab_size + horizon),
            vocab_size=vocab_size,
            horizon=horizon,
            scale=scale,
        )
        for vocab_size, horizon in shapes
    ]


def report(name, problems, **options):
    record = estimators.TABLE[name]
    return testing.estimator_report(
        record, problems, target=target(record)[1], name=name, **options
    )


def span(values, digits="{:.0f}"):
    """From lowest to highest, as text; rounding errors are 0."""
    low, high = (digits.format(f(values)) for f in (min, max))
    low, high = (x.replace("-0", "0") if float(x) == 0 else x for x in (low, high))
    return low if low == high else f"{low} – {high}"


def line(name, found):
    """One estimator's line of the main table."""
    record = estimators.TABLE[name]
    rows = found.rows
    size = [abs(row.target) for row in rows]
    bias = [100 * r.value_bias / s for r, s in zip(rows, size, strict=True)]
    std = [r.value_std / s for r, s in zip(rows, size, strict=True)]
    return [
        f"`{name}`",
        record.sampled_from,
        target(record)[0],
        span(bias) + " %",
        span(std, "{:.1f}"),
        span([100 * r.gradient_miss for r in rows]) + " %",
        span([r.gradient_std for r in rows], "{:.1f}"),
        record.gradient or "nobody's",
        record.used,
    ]


def main_table(chosen=None):
    """``{name: cells}``; exact, but for what depends on its batch."""
    result = {}
    for name in chosen or estimators.TABLE:
        batched = name == "estimated_control_variate"
        found = report(
            name, worlds(), **({"samples": (64,), "replicates": 512} if batched else {})
        )
        result[name] = line(name, found)
    return result


def markdown(header, lines):
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


TEXT = """# What every estimator estimates

A KL penalty is used by differentiating it. Whether its *value* is unbiased says
nothing about that: k1, k2 and k3 have (nearly) the same value and three different
gradients, and one of those is zero. Here is what each estimator of alignax does,
measured against the exact answer.

Written by `python docs/generate_estimators.py`; a test compares it with the code. All
numbers are exact expectations over one sampled completion, as finite sums over all
completions of four random problems (3 or 4 symbols, 2 or 3 tokens; logits standard
normal, the reference and the behaviour policy one standard normal away at each
prefix), from the lowest to the highest of the four.

- **bias** and **std** of the value: relative to the true divergence.
- **miss**: `|E g − ∇target| / |∇target|`, where g is what automatic differentiation
  gives for a sampled completion. 0 % is unbiased, 100 % is what no penalty at all
  would do.
- **gradient std**: `√E|g − E g|² / |∇target|`, of one completion.
- **target**: of whole completions. *Myopic* gradients hold the law of the prefixes
  fixed: what a token does to later tokens is left out, and that part of the gradient
  is missing whatever the number of samples.

{main}
The k3 in the loss of TRL, verl, OpenRLHF and Tunix is `myopic_forward_k3_surrogate`: it
descends the *forward* KL, token by token. k2 in the loss (`myopic_k2_surrogate`), and
k3 times the importance ratio, descend the right divergence myopically. k1 in the loss
descends nothing. `sequence_kl_surrogate`, the reward-to-go form, and
`rao_blackwell_surrogate`, exact over the next token with its score term, descend the KL
between whole completions.

(`estimated_control_variate` fits its coefficient on the batch; its line is simulated,
512 batches of 64. Its standard deviations are of the batch's mean.)

## Longer completions

Expected gradient and noise at 1 to 5 tokens of 3 symbols; lines are means over three
problems, bands go from the lowest to the highest.

![Miss of the gradient against the number of tokens](estimators_horizon.png)

## Larger log-ratios

Two tokens of 3 symbols; the reference is the policy plus noise of this size.

![Miss of the gradient against the size of the log-ratios](estimators_scale.png)

{scale}
## Off-policy

Tokens from a behaviour policy this far away (normal noise on the logits), same
problems: unbiased at any distance, at a price.

{off_policy}
## Yours

```python
import jax
import alignax as ax

def my_penalty(logp, logp_ref, mask):  # [B, T] each
    return ax.estimators.k3(logp, logp_ref, mask) + 0.1 * ax.estimators.absolute_log_ratio(logp, logp_ref, mask)

print(ax.testing.estimator_report(my_penalty, [ax.testing.random_world(jax.random.key(0))]))
```

In a test, `ax.testing.assert_unbiased(report)` fails with the worst finding.
"""


def sweep(chosen, problems, x):
    return testing.series(
        [report(name, problems) for name in chosen], x=x, y="gradient_miss"
    )


def percent(found):
    return {
        name: (at, *(100 * column for column in columns))
        for name, (at, *columns) in found.items()
    }


def main():
    header = ["estimator", "tokens of", "target", "bias", "std", "miss"]
    header += ["gradient std", "descends", "used by"]
    main_text = markdown(header, main_table().values())

    by_horizon = [
        testing.random_world(jax.random.key(seed), horizon=horizon)
        for horizon in HORIZONS
        for seed in range(3)
    ]
    plots.curves(
        FOLDER / "estimators_horizon.png",
        percent(sweep(SHOWN, by_horizon, "horizon")),
        title="What the gradient misses, by length",
        xlabel="tokens",
        ylabel="miss of the sequence KL's gradient (%)",
    )
    by_scale = [
        testing.random_world(jax.random.key(seed), scale=scale)
        for scale in SCALES
        for seed in range(3)
    ]
    found = percent(sweep(SHOWN, by_scale, "scale"))
    plots.curves(
        FOLDER / "estimators_scale.png",
        found,
        title="What the gradient misses, by distance",
        xlabel="size of the log-ratios (nats)",
        ylabel="miss of the sequence KL's gradient (%)",
    )
    scale_text = markdown(
        ["miss (mean of three problems)", *(f"{s:g} nats" for s in SCALES)],
        [
            [f"`{name}`", *(f"{y:.0f} %" for y in mean)]
            for name, (_, mean, *_) in found.items()
        ],
    )
    lines = []
    distances = (0.0, 0.5, 1.0, 2.0)
    for name, record in estimators.TABLE.items():
        if record.sampled_from != names.BEHAVIOUR:
            continue
        cells = [f"`{name}`"]
        for distance in distances:
            problems = [
                testing.random_world(jax.random.key(seed), off_policy=distance)
                for seed in range(3)
            ]
            rows = report(name, problems).rows
            miss = span([100 * row.gradient_miss for row in rows])
            std = span([row.gradient_std for row in rows], "{:.1f}")
            cells.append(f"{miss} %, std {std}")
        lines.append(cells)
    off_text = markdown(
        ["miss and gradient std", *(f"{d:g} nats" for d in distances)], lines
    )
    text = TEXT.format(main=main_text, scale=scale_text, off_policy=off_text)
    (FOLDER / "estimators.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
