"""Every loss type of TRL and Tunix: values and gradients on shared arrays.

The formulas of ``peers`` are written from the trainers' descriptions and
differentiated numerically; where torch is installed, by torch as well (``parity``).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import preference as pf
from alignax.types import InputError
from tests.close import EPS, assert_close
from tests.preference import peers

BETA = 0.3
RNG = np.random.default_rng(3)
LENGTH_W, LENGTH_L = RNG.integers(2, 9, 6) * 1.0, RNG.integers(2, 9, 6) * 1.0
ARRAYS = (
    -LENGTH_W * RNG.uniform(0.2, 2, 6),
    -LENGTH_L * RNG.uniform(0.2, 2, 6),
    -LENGTH_W * RNG.uniform(0.2, 2, 6),
    -LENGTH_L * RNG.uniform(0.2, 2, 6),
    LENGTH_W,
    LENGTH_L,
)
DESIRABLE = np.array([True, False, True, True, False, False])
GOLD, GOLD_LENGTH = -RNG.uniform(1, 5, 6), RNG.integers(2, 6, 6) * 1.0


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def check(ours, theirs, arrays, numbers=(0, 1)):
    """``ours(*arrays)`` and ``theirs(arrays)``: values, and gradients of the sum."""
    # DiscoPOP's exponential is of float32.
    close = {"rtol": 2e-5, "atol": 2e-6}
    arrays = [np.asarray(a) for a in arrays]
    wide = [jnp.asarray(a) for a in arrays]
    np.testing.assert_allclose(ours(*wide), theirs(arrays), **close)
    for number in numbers:
        gradient = jax.grad(lambda *a: jnp.sum(ours(*a)), argnums=number)(*wide)
        expected = peers.slope(theirs, arrays, number)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_every_loss_type_has_a_formula():
    """No name of the tables goes untested."""
    tested = set(peers.FORMULAS) | set(peers.GOLD) | set(peers.UNPAIRED)
    assert set(pf.TRL) == tested
    assert set(pf.TUNIX) == {"dpo", "orpo"}


@pytest.mark.parametrize("name", peers.FORMULAS)
def test_trl_pairs(name):
    """Value and gradient of each paired loss type are TRL's formula's."""
    formula, more = peers.FORMULAS[name]
    beta = {} if name == "dpo/sft" else {"beta": BETA}
    check(
        lambda *a: pf.TRL[name](pf.Pair(*a), **beta, **more),
        lambda a: formula(a, BETA, **more),
        ARRAYS,
    )


@pytest.mark.parametrize("name", peers.GOLD)
def test_trl_triples(name):
    """TPO's trainer: any of four contrasts beside the gold completion's NLL."""
    formula, more = peers.GOLD[name]
    weight = "alpha" if name == "tpo/sigmoid" else "weight"

    def ours(*a):
        named = {"beta": BETA, weight: 0.7}
        return pf.TRL[name](pf.Pair(*a[:6]), a[6], a[7], **named, **more)

    check(
        ours,
        lambda a: formula(a, BETA, **more) - 0.7 * a[6] / a[7],
        (*ARRAYS, GOLD, GOLD_LENGTH),
        numbers=(0, 1, 6),
    )


@pytest.mark.parametrize("name", peers.UNPAIRED)
def test_trl_unpaired(name):
    """KTO, unpaired APO-zero and BCO, with and against the label."""
    ratio = ARRAYS[0] - ARRAYS[2]
    anchor = () if "apo" in name else (jnp.full(1, 0.25),)
    check(
        lambda r: pf.TRL[name](r, jnp.asarray(DESIRABLE), *anchor, beta=BETA),
        lambda a: peers.UNPAIRED[name](a[0], DESIRABLE, 0.25, BETA),
        (ratio,),
        numbers=(0,),
    )


def test_tunix():
    """Tunix: DPO with label smoothing, and ORPO."""
    smoothed = lambda a: peers.smoothed(a, BETA, 0.1)  # noqa: E731
    ours = pf.TUNIX["dpo"]
    check(lambda *a: ours(pf.Pair(*a), beta=BETA, noise=0.1), smoothed, ARRAYS)
    orpo = pf.TUNIX["orpo"]
    check(
        lambda *a: orpo(pf.Pair(*a), beta=BETA), lambda a: peers.orpo(a, BETA), ARRAYS
    )


@pytest.mark.parametrize(
    ("name", "div"),
    [
        ("reverse_kl", dv.from_trl("reverse_kl")),
        ("forward_kl", dv.from_trl("forward_kl")),
        ("js_divergence", dv.from_trl("js_divergence")),
        ("alpha_divergence", dv.from_trl("alpha_divergence", coefficient=0.5)),
    ],
)
def test_trl_f_divergences(name, div):
    """f-DPO's margins: our ``f'`` and TRL's differ by constants, which cancel."""
    score = peers.SCORES[name]

    def theirs(a):
        u, v = peers.ratios(a)
        return peers.softplus(-BETA * (score(u) - score(v)))

    check(lambda *a: pf.f_dpo(div, pf.Pair(*a), beta=BETA), theirs, ARRAYS)


def test_trl_js_is_ours_at_half_of_beta():
    """Their "JS" is twice the divergence; and a name of neither is refused."""
    pair = pf.Pair(*(jnp.asarray(a) for a in ARRAYS))
    theirs = pf.f_dpo(dv.from_trl("js_divergence"), pair, beta=BETA)
    ours = pf.f_dpo(dv.jensen_shannon(), pair, beta=2 * BETA)
    np.testing.assert_allclose(theirs, ours, rtol=1e-12)
    with pytest.raises(InputError, match="f_divergence_type: 'jsd' was given"):
        dv.from_trl("jsd")


def test_named_losses_are_callable_alike():
    """The table ``LOSSES`` is data: each takes a pair and ``beta``."""
    one = [jnp.asarray(a)[:, None] for a in ARRAYS[:4]]
    everything = pf.PairTokens(
        *one,
        *[jnp.ones((6, 1), bool)] * 2,
        *[jnp.ones((6, 1))] * 6,
        *[jnp.zeros(6)] * 3,
    )
    for loss in pf.LOSSES.values():
        assert loss(everything, beta=BETA).shape == (6,)


def test_kto_and_bco_are_not_apo_zero_under_other_names():
    """What the batch must tell: KTO asks for its anchor, BCO takes the mean reward."""
    pair = pf.Pair(*(jnp.asarray(a) for a in ARRAYS))
    with pytest.raises(InputError, match="does not hold the anchor"):
        pf.LOSSES["kto"](pair, beta=BETA)
    u, v = peers.ratios(ARRAYS)
    shift = BETA * np.concatenate([u, v]).mean()
    expected = peers.softplus(shift - BETA * u) + peers.softplus(BETA * v - shift)
    assert_close(pf.LOSSES["bco"](pair, beta=BETA), expected, rel=16 * EPS)
    tokens = pf.PairTokens(
        *(jnp.asarray(a)[:, None] for a in ARRAYS[:4]), *[jnp.ones((6, 1), bool)] * 2
    )
    with pytest.raises(InputError, match="PairTokens without anchor"):
        pf.LOSSES["kto"](tokens, beta=BETA)
    both = tokens._replace(anchor=jnp.full(6, 0.4))
    good = 1 - peers.sigmoid(BETA * (u - 0.4))
    bad = 1 - peers.sigmoid(BETA * (0.4 - v))
    assert_close(pf.LOSSES["kto"](both, beta=BETA), good + bad, rel=16 * EPS)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["dpo/sigmoid", "dpo/robust", "dpo/nca_pair", "dpo/apo_down", "dpo/aot"]
)
def test_torch_differentiates_the_same(name):
    """TRL's expressions in torch: another automatic differentiation."""
    torch = pytest.importorskip("torch", reason="extra parity: torch is not installed")
    F = torch.nn.functional
    tensors = [torch.tensor(a, requires_grad=i < 2) for i, a in enumerate(ARRAYS)]
    w, l, ref_w, ref_l = tensors[:4]
    u, v = w - ref_w, l - ref_l
    value = {
        "dpo/sigmoid": lambda: -F.logsigmoid(BETA * (u - v)),
        "dpo/robust": lambda: (
            (-0.9 * F.logsigmoid(BETA * (u - v)) + 0.1 * F.logsigmoid(-BETA * (u - v)))
            / 0.8
        ),
        "dpo/nca_pair": lambda: (
            -F.logsigmoid(BETA * u)
            - F.logsigmoid(-BETA * u) / 2
            - F.logsigmoid(-BETA * v) / 2
        ),
        "dpo/apo_down": lambda: (
            torch.sigmoid(BETA * u) + 1 - torch.sigmoid(BETA * (u - v))
        ),
        "dpo/aot": lambda: (
            -F.logsigmoid(BETA * (torch.sort(w - l)[0] - torch.sort(ref_w - ref_l)[0]))
        ),
    }[name]()
    value.sum().backward()
    more = {"noise": 0.1} if name == "dpo/robust" else {}

    def ours(w, l):
        pair = pf.Pair(w, l, *(jnp.asarray(a) for a in ARRAYS[2:]))
        return pf.TRL[name](pair, beta=BETA, **more)

    sides = jnp.asarray(ARRAYS[0]), jnp.asarray(ARRAYS[1])
    np.testing.assert_allclose(ours(*sides), value.detach().numpy(), rtol=1e-10)
    gradients = jax.grad(lambda *a: jnp.sum(ours(*a)), argnums=(0, 1))(*sides)
    for gradient, tensor in zip(gradients, tensors[:2], strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-10)
