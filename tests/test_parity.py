"""TRL's, torch's and ott's functions on the same arrays: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import estimators, logprobs, reduce, targets

# What peers warn of while they are imported is theirs.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (
    (3 * RNG.standard_normal((4, 5, 11))).astype(np.float32) for _ in range(2)
)
TOKENS = RNG.integers(0, 11, (4, 5))
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="extra parity: torch is not installed")


@pytest.fixture(scope="module")
def gkd():
    pytest.importorskip("trl", reason="extra parity: trl is not installed")
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss


def of_torch(torch, function, *arrays):
    """Its value and its gradient by the first array."""
    first, *rest = (torch.tensor(x) for x in arrays)
    first.requires_grad_()
    value = function(first, *rest)
    value.sum().backward()
    return value.detach().numpy(), first.grad.numpy()


def of_jax(function, *arrays):
    """The same of ours."""
    arrays = [jnp.asarray(x) for x in arrays]
    value = jax.jit(function)(*arrays)
    return value, jax.jit(jax.grad(lambda *x: jnp.sum(function(*x))))(*arrays)


def check(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x, y, **CLOSE)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_generalised_jsd_is_gkds(torch, gkd, beta):
    theirs = of_torch(
        torch,
        lambda s, t: gkd(s, t, beta=beta, reduction="none").sum(-1),
        STUDENT,
        TEACHER,
    )
    check(
        of_jax(lambda s, t: dv.exact(dv.jensen_shannon(beta), s, t), STUDENT, TEACHER),
        theirs,
    )


def test_end_points_of_gkd_are_the_kls(torch, gkd):
    """β = 0 is KL(teacher‖student), β = 1 KL(student‖teacher): no limits of the JSD,
    which vanishes at both."""
    for beta, div in ((0.0, dv.forward_kl()), (1.0, dv.reverse_kl())):
        theirs = of_torch(
            torch,
            lambda s, t, beta=beta: gkd(s, t, beta=beta, reduction="none").sum(-1),
            STUDENT,
            TEACHER,
        )
        ours = of_jax(lambda s, t, div=div: dv.exact(div, s, t), STUDENT, TEACHER)
        check(ours, theirs)


def test_categorical_kls_are_torchs(torch):
    from torch.distributions import Categorical, kl_divergence

    def kl(s, t):
        return kl_divergence(Categorical(logits=s), Categorical(logits=t))

    check(
        of_jax(lambda s, t: dv.exact(dv.reverse_kl(), s, t), STUDENT, TEACHER),
        of_torch(torch, kl, STUDENT, TEACHER),
    )
    check(
        of_jax(lambda s, t: dv.exact(dv.forward_kl(), s, t), STUDENT, TEACHER),
        of_torch(torch, lambda s, t: kl(t, s), STUDENT, TEACHER),
    )


def test_gaussian_kl_is_torchs(torch):
    from torch.distributions import Normal, kl_divergence

    m, v, n, w = RNG.standard_normal((4, 6)).astype(np.float32)
    theirs = of_torch(
        torch,
        lambda m, v, n, w: kl_divergence(
            Normal(m, torch.exp(v / 2)), Normal(n, torch.exp(w / 2))
        ),
        *(m, v, n, w),
    )
    check(of_jax(dv.gaussian_kl, m, v, n, w), theirs)


def test_token_log_probabilities_and_entropy_are_trls(torch):
    pytest.importorskip("trl", reason="extra parity: trl is not installed")
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    tokens = torch.tensor(TOKENS)
    check(
        of_jax(lambda z: logprobs.token_logp(z, jnp.asarray(TOKENS)), STUDENT),
        of_torch(torch, lambda z: selective_log_softmax(z, tokens), STUDENT),
    )
    # TRL's entropy is a metric, without a gradient.
    theirs = entropy_from_logits(torch.tensor(STUDENT)).numpy()
    np.testing.assert_allclose(logprobs.entropy(jnp.asarray(STUDENT)), theirs, **CLOSE)


def test_penalty_of_grpo_is_trls_k3(torch):
    """TRL's ``exp(ref − logp) − (ref − logp) − 1``, meant over tokens, as our k3 is;
    where they nearly agree, TRL's difference loses its digits in float32."""
    logp, ref = -np.abs(RNG.standard_normal((2, 4, 5))).astype(np.float32)
    mask = RNG.random((4, 5)) < 0.7
    mask[:, 0] = True

    def theirs(logp, ref, mask):
        k3 = torch.exp(ref - logp) - (ref - logp) - 1
        return ((k3 * mask).sum(-1) / mask.sum(-1)).mean()

    def ours(logp, ref):
        terms = estimators.k3(logp, ref, jnp.asarray(mask))
        return reduce.divide(*reduce.sequence_mean_token_mean(terms, jnp.asarray(mask)))

    check(of_jax(ours, logp, ref), of_torch(torch, theirs, logp, ref, mask))
    near = logp - np.float32(1e-4)
    lossy, _ = of_torch(torch, theirs, near, logp, mask)
    kept = of_jax(ours, near, logp)[0]
    gap = (near - logp).astype(float)
    terms = np.where(mask, np.expm1(-gap) + gap, 0)
    exact = np.mean(terms.sum(-1) / mask.sum(-1))
    assert abs(kept - exact) < 5e-3 * exact
    assert abs(lossy - exact) > 0.1 * exact


def test_sinkhorn_is_otts():
    pytest.importorskip("ott", reason="extra parity: ott-jax is not installed")
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    cost = jnp.asarray(RNG.random((5, 7)).astype(np.float32))
    solver = sinkhorn.Sinkhorn(threshold=1e-6, max_iterations=2000)

    def theirs(cost):
        problem = linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=0.1))
        solved = solver(problem)
        return solved.reg_ot_cost, solved.matrix

    def ours(cost):
        return dv.sinkhorn(cost, epsilon=0.1, num_iterations=500)

    with jax.numpy_rank_promotion("allow"):
        value, plan = theirs(cost)
        slope = jax.grad(lambda c: theirs(c)[0])(cost)
    found, matrix = ours(cost)
    np.testing.assert_allclose(plan, matrix, atol=1e-5)
    # ott's value has the entropy of the plan where ours has the KL to uniform.
    entropy = -np.sum(np.asarray(plan) * np.log(np.asarray(plan)))
    transport = np.sum(np.asarray(plan) * np.asarray(cost))
    np.testing.assert_allclose(
        found, transport + 0.1 * (np.log(35) - entropy), rtol=1e-4
    )
    shift = {float(value - found), float(value - found + 0.1 * np.log(35))}
    assert min(abs(x) for x in shift) < 1e-4
    other = jax.grad(lambda c: ours(c)[0])(cost)
    np.testing.assert_allclose(slope, other, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        *("reverse_kl", "forward_kl", "jensen_shannon", "total_variation"),
        *("pearson", "neyman"),
    ],
)
def test_fdpg_is_discos_loss(torch, name):
    """disco's losses (naver/disco, disco/tuners/losses), their formulas written anew:
    ``mean(π/b · −(R − B) · log π)``, ``R = −f'(t)``, with B of earlier batches. Its f'
    are ours but for a constant, which the baseline has as well."""
    softplus = torch.nn.functional.softplus
    slope, shift, scale = {
        "reverse_kl": (lambda l: l + 1, 1, 1),
        "forward_kl": (lambda l: -torch.exp(-l), -1, 1),
        "jensen_shannon": (lambda l: np.log(2) - softplus(-l), 0, 2),
        "total_variation": (lambda l: torch.sign(l) / 2, 0, 1),
        "pearson": (lambda l: 2 * (torch.exp(l) - 1), 0, 1),
        "neyman": (lambda l: 1 - torch.exp(-2 * l), 0, 1),
    }[name]
    draws = -1 - RNG.exponential(size=(3, 16)).astype(np.float32)
    log_z, baseline = np.float32(0.3), np.float32(-0.4)

    def theirs(logp, behaviour, goal):
        held = logp.detach()
        rewards = -slope(held - (goal - log_z))
        weights = torch.exp(held - behaviour)
        return torch.mean(weights * -(rewards - (baseline - shift)) * logp)

    def ours(logp, behaviour, goal):
        div = dv.scale(getattr(dv, name)(), float(scale))
        losses = targets.fdpg_surrogate(
            div, logp, goal, log_z, logp_behaviour=behaviour, baseline=baseline
        )
        return jnp.mean(losses)

    check(of_jax(ours, *draws), of_torch(torch, theirs, *draws))
