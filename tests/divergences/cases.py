"""Every divergence beside its definition, written on probabilities in numpy.

The definitions come from textbooks and scipy and share no line with alignax.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr

from alignax import divergences as dv
from alignax import preference as pf

# The reference's fixture: policy, reference, rewards.
PI = np.array([0.5, 0.25, 0.15, 0.10])
RHO = np.array([0.1, 0.2, 0.3, 0.4])
REWARDS = np.array([1.0, 0.5, 0.0, -0.5])
BEHAVIOUR = np.full(4, 0.25)

# Every test takes every divergence with -m slow; by default these three, which
# among them use the alpha family, the JSD, the kink and the bisected inverse.
QUICK = {"reverse_kl", "jensen_shannon_0.3", "mix_with_tv"}


def heavy(names):
    """Parametrise a test that compiles much over divergences."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
            for name in names
        ],
    )


x64 = functools.partial(jax.enable_x64, True)
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def kl(p, q):
    return rel_entr(p, q).sum(-1)


def jsd(p, q, w):
    m = w * q + (1 - w) * p
    return w * kl(q, m) + (1 - w) * kl(p, m)


def amari(p, q, s):
    power = p ** ((1 - s) / 2) * q ** ((1 + s) / 2)
    return 4 / (1 - s**2) * (1 - power.sum(-1))


def chi2(p, q):
    return ((p - q) ** 2 / q).sum(-1)


def tv(p, q):
    return np.abs(p - q).sum(-1) / 2


def hellinger(p, q):
    return ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1) / 2


SMOOTH = {
    "reverse_kl": (dv.reverse_kl(), kl),
    "forward_kl": (dv.forward_kl(), lambda p, q: kl(q, p)),
    "jensen_shannon_0.3": (dv.jensen_shannon(0.3), lambda p, q: jsd(p, q, 0.3)),
    "alpha_0.5": (dv.alpha(0.5), lambda p, q: amari(p, q, 0.5)),
    "alpha_2": (dv.alpha(2.0), lambda p, q: amari(p, q, 2.0)),
    "alpha_-2": (dv.alpha(-2.0), lambda p, q: amari(p, q, -2.0)),
    "pearson": (dv.pearson(), chi2),
    "neyman": (dv.neyman(), lambda p, q: chi2(q, p)),
    "squared_hellinger": (dv.squared_hellinger(), hellinger),
    "jeffreys": (dv.jeffreys(), lambda p, q: kl(p, q) + kl(q, p)),
    "chi2_kl": (dv.chi2_kl(0.2), lambda p, q: chi2(p, q) / 2 + 0.2 * kl(p, q)),
    "mix": (
        dv.mix([dv.reverse_kl(), dv.scale(dv.squared_hellinger(), 3.0)], [0.5, 2.0]),
        lambda p, q: 0.5 * kl(p, q) + 6 * hellinger(p, q),
    ),
}
KINKED = {
    "total_variation": (dv.total_variation(), tv),
    "mix_with_tv": (
        dv.mix([dv.forward_kl(), dv.total_variation()], [0.7, 0.4]),
        lambda p, q: 0.7 * kl(q, p) + 0.4 * tv(p, q),
    ),
}
CASES = SMOOTH | KINKED
DIVERGENCES = {name: div for name, (div, _) in CASES.items()}
# Links need f'(0) = -inf.
LINKS = {name: div for name, (div, _) in SMOOTH.items() if div.slopes[0] == -np.inf}


def logits(*shape, bound=6.0):
    """Arrays of logits of one fixed shape."""
    elements = st.floats(-bound, bound, width=32)
    return arrays(np.float64, shape, elements=elements, fill=st.nothing())


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


exact = jax.jit(dv.exact)


def margin(div, logp_w, logp_l, ref_w, ref_l, **options):
    """Of pairs, from whole completions' log-probabilities."""
    pair = pf.Pair(logp_w, logp_l, ref_w, ref_l, *[jnp.ones_like(logp_w)] * 2)
    return pf.divergence_margin(div, pair, **options)
