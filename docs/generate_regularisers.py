"""Writes docs/regularisers.md and its picture: which regulariser to take.

python docs/generate_regularisers.py
"""

import itertools
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from alignax import divergences as dv
from alignax.pipeline import plots
from alignax.regularisers import Regulariser
from alignax.types import InputError

FOLDER = Path(__file__).parent
RATIOS = (-20, -5, -1, 1, 5, 20, 50)
DIVERGENCES = {
    "reverse_kl": dv.reverse_kl(),
    "forward_kl": dv.forward_kl(),
    "jensen_shannon": dv.jensen_shannon(),
    "alpha:0.5": dv.alpha(0.5),
    "squared_hellinger": dv.squared_hellinger(),
    "jeffreys": dv.jeffreys(),
    "chi2_kl": dv.chi2_kl(),
    "pearson": dv.pearson(),
    "neyman": dv.neyman(),
    "total_variation": dv.total_variation(),
}
LEVELS, FORMS = ("sequence", "myopic"), ("sampled", "exact", "top_k")
PLACES, SAMPLES = ("reward", "loss"), ("policy", "reference")

HEAD = """# Which regulariser

The objective is `E_π r − β D(π, ρ)`. A `Regulariser` is four choices, and all of them
are options of every run:

```bash
--rl.divergence jensen_shannon --rl.level myopic --rl.form exact --rl.place loss
```

In a notebook it is a field of the method:

```python
from dataclasses import replace
from alignax import algorithms, divergences
from alignax.regularisers import Regulariser

regulariser = Regulariser(divergence=divergences.alpha(0.5), level="myopic", place="loss")
method = replace(algorithms.METHODS["dapo"].algorithm, regulariser=regulariser, beta=0.05)
```

This page is written by `python docs/generate_regularisers.py`; a test compares it with
the code. That the expected change of one whole step, from the record to the optimiser,
is the gradient of the objective is enumerated in `tests/train/test_whole_step.py`: for
every row of the table of combinations, ten divergences on samples of the policy and
four on those of the reference. From the second update on a rollout, and on replayed
rows, the samples are those of an earlier policy: a divergence in the loss is then
weighted by what each term depends on, `Π π/π_old` over the tokens up to it (`sampled`,
`top_k`), before it (`exact`), or over the whole completion (a divergence of `sequence`
that does not chain). Weights are 1 at the first update, and at most `weight_cap`
(`--rl.divergence-weight-cap`, 2 by default, where long completions that have moved far
feel less of the divergence; `inf` is unbiased, which is enumerated too). `k2_in_loss` and
`k3_in_loss`, and methods that are published with them, go without, as their papers do:
from the second update on their penalty is that of the old policy's prefixes. In the
reward the ratio of the policy term does what a weight would, as exactly as it is one: a
method whose ratios are of tokens alone leaves the prefixes the old policy's.

## In short

- **Start with the reverse KL, at level `sequence`, sampled, in the reward.** Its
  optimum is `ρ e^{r/β} / Z`, its slope grows with the log-ratio and never explodes, and
  it costs one number a token.
- Take the **forward KL** where modes of the reference must not be lost; **jeffreys**
  for both. JS, Hellinger and α inside (0, 1) do not interpolate the way their names
  promise ([exact study](mode_seeking.md)).
- **A bounded divergence does not hold a policy that has left.** The slope `f'` of JS
  and of total variation saturates: twenty nats away the pull is what it was at five.
  The metric `flat` is the share of completions (or tokens) in that region; when it
  rises, raise β early or take another divergence.
- **Pearson's χ² and its kin explode.** A slope of 10⁹ at twenty nats is a
  gradient of one sample. The metric `steep` counts these; clip, or take `chi2_kl` at
  level `myopic`, where log-ratios are those of tokens.
- **`sequence` is the divergence that theorems speak of.** Its log-ratios are sums over
  a completion, tens of nats on long ones: with anything but the reverse KL that is far
  out in the table below. **`myopic`** has log-ratios of tokens, and another objective:
  a token does not answer for where it leads. For the reverse KL the two differ by the
  credit for later tokens alone.
- **β is on another scale for each divergence.** Near the reference every smooth one is
  `f''(1)/2` times Pearson's χ²: multiply a β that is known for the reverse KL by the
  last column of the next table, or wrap the divergence in `divergences.normalise`.

## The pull at a distance

The slope `f'(u)` at log-ratios `log u`, divided by the curvature `f''(1)`, so that
columns compare: what weighs a sample's score, per unit of an equally strong β. *flat*:
from 5 to 20 nats it grows by less than a tenth. *explodes*: above 10⁴ at 20 nats. Below
the reference (negative) a slope that is bounded lets probabilities go to zero at finite
cost. Exponentials beyond e^40 go on as their tangent in float32: the largest entries of
the last column are the library's, and smaller than `e^50`.

"""

COSTS = """
## What a form costs

Per token of vocabulary V and width D, beside what the policy term needs anyway:

| form | reference | in the update | noise |
|---|---|---|---|
| sampled | one forward pass, once a rollout | nothing | of the token and of what follows |
| exact | a forward pass in every update, with its head, V · D | a second forward and reverse pass of the policy, its head's products in blocks: no logits of all tokens | of what follows alone; at level `myopic` of the prefixes alone |
| top_k | as exact | both models' logits | between the two |

`exact` and `top_k` need the loss as their place, and at level `sequence` the reverse KL,
the only one whose tokens add up to the whole (the chain rule).

## Penalties by their usual names

| name | value |
|---|---|
| KL in the reward (PPO, RLOO, REINFORCE++) | `regularisers.k1_in_reward()`: reverse KL, `sequence`, sampled, in the reward |
| k2 in the loss (KDRL) | `regularisers.k2_in_loss()`: reverse KL, `myopic`, sampled, in the loss |
| k3 in the loss (GRPO) | `regularisers.k3_in_loss()`: the *forward* KL, `myopic`, sampled, in the loss, for that is what its gradient descends |
| full KL in the loss (GKD) | reverse KL, `myopic`, exact, in the loss |
| k1 in the loss | has no gradient in expectation, and no name here |
"""


def elsewhere() -> str:
    """What other papers and libraries call a divergence, by the converters."""
    lines = ["\n## Names elsewhere\n\n| there | here |\n|---|---|\n"]
    for name in ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"):
        options = {"coefficient": 0.25} if name == "alpha_divergence" else {}
        more = ", f_alpha_divergence_coef=0.25" if options else ""
        lines.append(
            f'| TRL\'s `f_divergence_type="{name}"{more}` | '
            f"`{dv.from_trl(name, **options)}` |\n"
        )
    for there, amari in (
        ("f-DPO's and DPH-RL's α = 0.25", dv.amari_from_fdpo(0.25)),
        ("Cressie and Read's λ = 1", dv.amari_from_cressie_read(1.0)),
        ("Tsallis' and Rényi's q = 2", dv.amari_from_tsallis(2.0)),
    ):
        lines.append(f"| {there} | `{dv.alpha(amari)}` |\n")
    return "".join(lines)


def number(x: float) -> str:
    if not math.isfinite(x):
        return "∞"
    if x == 0:
        return "0"
    if abs(x) >= 1e4:
        return f"{'−' if x < 0 else ''}10^{math.log10(abs(x)):.0f}"
    return f"{x:.3g}".replace("-", "−")


def slopes(div) -> np.ndarray:
    return np.asarray(div.f_prime(jnp.array(RATIOS, jnp.float32)), np.float64)


def pull_table() -> str:
    lines = [
        f"| divergence | {' | '.join(number(r) for r in RATIOS)} | far out | β × |\n",
        f"|---|{'---|' * (len(RATIOS) + 2)}\n",
    ]
    for name, div in DIVERGENCES.items():
        smooth = math.isfinite(div.curvature)
        slope = slopes(dv.normalise(div) if smooth else div)
        five, twenty = (slope[RATIOS.index(r)] for r in (5, 20))
        verdict = "grows"
        if twenty > 1e4:
            verdict = "explodes"
        elif twenty - five < 0.1 * abs(five):
            verdict = "flat"
        cells = [number(x) for x in slope]
        factor = number(1 / div.curvature) if smooth else "no curvature"
        lines.append(f"| `{name}` | {' | '.join(cells)} | {verdict} | {factor} |\n")
    return "".join(lines)


def combinations() -> str:
    lines = [
        "\n## Combinations\n\n",
        "| level | form | place | samples of | with |\n|---|---|---|---|---|\n",
    ]
    refused = {}
    for level, form, place, samples in itertools.product(
        LEVELS, FORMS, PLACES, SAMPLES
    ):
        allowed = []
        for name, div in DIVERGENCES.items():
            try:
                Regulariser(
                    divergence=div, level=level, form=form, place=place, samples=samples
                )
                allowed.append(name)
            except InputError as error:
                reason = str(error).split(", got")[0]
                refused.setdefault(reason, f"{level}, {form}, {place}, {samples}")
        if allowed:
            every = len(allowed) == len(DIVERGENCES)
            which = "any divergence" if every else ", ".join(f"`{n}`" for n in allowed)
            lines.append(f"| {level} | {form} | {place} | {samples} | {which} |\n")
    lines.append("\nRefused, in the words of the error, with one such combination:\n\n")
    lines += [f"- {reason} ({where}).\n" for reason, where in refused.items()]
    return "".join(lines)


def text() -> str:
    picture = (
        "\n![Slopes of the divergences over the log-ratio, each by its curvature]"
        "(regularisers.png)\n"
    )
    return HEAD + pull_table() + picture + combinations() + COSTS + elsewhere()


def draw(path: Path) -> None:
    """The slopes over log-ratios from −6 to 6 nats."""
    ratios = jnp.linspace(-6, 6, 241)
    series = {}
    for name, div in DIVERGENCES.items():
        if math.isfinite(div.curvature):
            slope = np.asarray(div.f_prime(ratios)) / div.curvature
            slope = np.where(np.abs(slope) < 6, slope, np.nan)
            series[name] = (np.asarray(ratios), slope, None, None)
    plots.curves(
        path, series, xlabel="log-ratio (nats)", ylabel="slope f' / curvature f''(1)"
    )


if __name__ == "__main__":
    (FOLDER / "regularisers.md").write_text(text(), encoding="utf-8")
    draw(FOLDER / "regularisers.png")
