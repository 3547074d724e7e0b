"""Writes docs/off_policy_kl.md and its picture: the sequence KL off-policy.

python docs/generate_off_policy.py
"""

from pathlib import Path

import jax

from alignax import estimators, testing
from alignax.pipeline import plots

FOLDER = Path(__file__).parent
DISTANCES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
GAPS = (0.25, 1.0)
NAMES = {
    "sequence_ratio_kl_surrogate": "W · Σ k1",
    "off_policy_sequence_kl_surrogate": "w · k1 to go",
    "sequence_weighted_k3_surrogate": "w · k3 (this page)",
    "myopic_weighted_k3_surrogate": "token-weighted k3 (TRL)",
}

TEXT = """# The sequence KL, off-policy

A rollout is sampled by a behaviour policy b: the policy of a few updates ago, or the
sampler's half precision. What loss on its tokens has the gradient of the reverse KL of
whole completions, `KL(π‖ρ)`? Token-weighted k3, the default of TRL ≥ 1.16 and
DeepSeek-V3.2's eq. 7, has another one; Shah et al. (arXiv 2512.21852) leave the
unbiased, sequence-level, off-policy gradient to future work. It is this, token by
token, and `estimators.sequence_weighted_k3_surrogate` in alignax:

> `Σ_t w_t k3_t` with `w_t = Π_{n ≤ t} π_n / b_n` and `k3 = e^{−l} − 1 + l`, `l = log π/ρ`,
> **differentiated in both factors**.

## Why

`k3_t` is a function of the tokens up to t, so `w_t` turns b's expectation of it into
π's; and given a prefix, `E_π[k3_t] = E_π[l_t]`, the token's KL, because
`E_π[ρ/π] = 1`. So for *every* θ

```
Σ_t E_b[w_t k3_t] = Σ_t E_π[k3_t] = E_π[Σ_t l_t] = KL(π‖ρ)
```

and b's distribution does not move with θ: the derivative goes inside. With
`∇w_t = w_t Σ_{n ≤ t} ∇log π_n`, `∇k3_t = (1 − e^{−l_t}) ∇log π_t` and
`k3 + 1 − e^{−l} = l` it is

```
∇KL = E_b Σ_t ∇log π_t · ( w_t l_t + Σ_{n > t} w_n k3_n )
```

One sees three things. Without the sum over later tokens it is token-weighted k3's
gradient: what that leaves out is each token's responsibility for where it leads, and no
number of samples brings it back. With k1 in the place of k3 in the sum it is
`off_policy_sequence_kl_surrogate`, unbiased as well: k3 there is a control variate that
costs no bias, for it is of second order in the log-ratio where k1 is of first. And the
whole ratio `W = w_T` in the place of `w_t` weighs each term by tokens that it does not
depend on: unbiased, and noisier.

The code computes the last line, not the first: no overflow of `e^{−l}` can turn a
sign. `cap=` truncates the weights; the bias of that is yours. The support must be
covered: where b has no mass and π has, that mass is lost.

## Enumerated

Exact expectations over all completions of three random worlds (3 symbols, 3 tokens;
logits standard normal), tokens from a behaviour policy that is normal noise of the
given size away on every logit. **miss**: `|E g − ∇KL| / |∇KL|`. **std**:
`√E|g − E g|² / |∇KL|` of one completion. Means of the three. The reference is {near}
nats of noise away from the policy, then {far}.

{tables}
![Noise of the gradient against the distance of the behaviour policy](off_policy_kl.png)

In both, `w · k3` is the quietest of the three unbiased ones: on-policy its standard
deviation is 0.8 of `w · k1`'s, and 0.7 to 0.8 at two nats. The token-weighted form is
quieter still where the behaviour policy is far, because its weights are of single
tokens; what it descends is another objective, by 4 % near and by half of the gradient
far out. All that are unbiased pay for distance with the weights' variance: beyond a nat
of noise a cap, or a fresh rollout, is the better buy.

Written by `python docs/generate_off_policy.py`; the same claims are checked in
`tests/estimators/test_truth.py`: the expectation of the value and the gradient of every
row of the table of estimators, this one included, and that its stated gradient is
automatic differentiation's of `Σ_t w_t k3_t`, sample by sample.
"""


def measured(gap: float) -> dict[str, list[tuple[float, float]]]:
    """``{name: [(miss, std) by distance]}``, means of three worlds."""
    result = {name: [] for name in NAMES}
    for distance in DISTANCES:
        problems = [
            testing.random_world(
                jax.random.key(seed), horizon=3, scale=gap, off_policy=distance
            )
            for seed in range(3)
        ]
        for name in NAMES:
            found = testing.estimator_report(
                estimators.TABLE[name], problems, name=name
            )
            rows = found.rows
            result[name].append(
                (
                    sum(row.gradient_miss for row in rows) / len(rows),
                    sum(row.gradient_std for row in rows) / len(rows),
                )
            )
    return result


def table(gap: float, found: dict[str, list[tuple[float, float]]]) -> str:
    heads = [f"{d:g} nats" for d in DISTANCES]
    lines = [
        f"| reference at {gap:g} nats: miss, std | {' | '.join(heads)} |\n",
        f"|---|{'---|' * len(heads)}\n",
    ]
    for name, cells in found.items():
        texts = [f"{100 * miss:.0f} %, {std:.2f}" for miss, std in cells]
        lines.append(f"| `{name}`: {NAMES[name]} | {' | '.join(texts)} |\n")
    return "".join(lines)


def main() -> None:
    found = {gap: measured(gap) for gap in GAPS}
    tables = "\n".join(table(gap, rows) for gap, rows in found.items())
    near, far = GAPS
    series = {
        f"{NAMES[name]}, ρ at {gap:g}": (
            DISTANCES,
            [std for _, std in cells],
            None,
            None,
        )
        for gap, rows in found.items()
        for name, cells in rows.items()
        if name != "myopic_weighted_k3_surrogate"
    }
    plots.curves(
        FOLDER / "off_policy_kl.png",
        series,
        title="Noise of unbiased gradients of the sequence KL",
        xlabel="distance of the behaviour policy (nats)",
        ylabel="gradient's standard deviation / its size",
    )
    text = TEXT
    for mark, value in (("{tables}", tables), ("{near}", near), ("{far}", far)):
        text = text.replace(mark, f"{value}")
    (FOLDER / "off_policy_kl.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
