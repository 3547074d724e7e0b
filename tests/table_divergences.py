"""Rows of the divergences: the constructors through what they are used for."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import divergences as dv
from alignax import estimators as es
from tests.row import Row

keys = jax.random.split(jax.random.key(7), 6)
logits = 2 * jax.random.normal(keys[0], (8, 5))
logits_ref = 2 * jax.random.normal(keys[1], (8, 5))
rewards = jax.random.normal(keys[2], (8, 5))
support = jnp.arange(5)[None] < jnp.array([5, 4, 3, 2, 1, 1, 2, 5])[:, None]
logp = -jnp.abs(logits)
logp_ref = -jnp.abs(logits_ref)
points = jax.random.normal(keys[3], (8, 3))

MADE = dv.from_f("made", lambda l: jnp.exp(l) * l)


def of(use, div, *, masked_by):
    """``use`` of one divergence, its mask the last positional argument."""
    return lambda *args: use(div, *args[:-1], **{masked_by: args[-1]})


def masked_row(name, fn, **options):
    return Row(
        name=f"divergences.{name}",
        fn=fn,
        args=(*options.pop("args", (logits, logits_ref)), support),
        grad=(0, 1),
        mask=2,
        masked=(0, 1),
        **options,
    )


def optimum(rewards, logits_ref, support, *, div):
    logp, multiplier, value = dv.regularised_optimum(
        div, rewards, logits_ref, beta=0.5, where=support
    )
    # Probabilities, since a candidate that is left out has log-probability -inf.
    return jnp.exp(logp), multiplier, value


def projection(logits_ref, features):
    projected, multipliers = dv.information_projection(
        logits_ref, features, jnp.array([0.1, 0.0, -0.1])
    )
    return projected, multipliers


CONSTRUCTORS = {
    "reverse_kl": dv.reverse_kl(),
    "forward_kl": dv.forward_kl(),
    "jensen_shannon": dv.jensen_shannon(0.3),
    "alpha": dv.alpha(0.4),
    "pearson": dv.pearson(),
    "neyman": dv.neyman(),
    "squared_hellinger": dv.squared_hellinger(),
    "jeffreys": dv.jeffreys(),
    "chi2_kl": dv.chi2_kl(0.5),
    "total_variation": dv.total_variation(),
    "skewed_kl": dv.skewed_kl(0.1),
    "scale": dv.scale(dv.reverse_kl(), 0.5),
    "swap": dv.swap(dv.chi2_kl(0.5)),
    "normalise": dv.normalise(dv.pearson()),
    "mix": dv.mix([dv.forward_kl(), dv.total_variation()], [0.5, 0.5]),
    "from_trl": dv.from_trl("js_divergence"),
    "amari_from_fdpo": dv.alpha(dv.amari_from_fdpo(0.3)),
    "amari_from_trl": dv.alpha(dv.amari_from_trl(0.3)),
    "amari_from_cressie_read": dv.alpha(dv.amari_from_cressie_read(0.3)),
    "amari_from_tsallis": dv.alpha(dv.amari_from_tsallis(0.3)),
}

ROWS = [
    *(
        Row(
            name=f"divergences.{name}",
            fn=partial(es.myopic_f_reference_surrogate, div),
            args=(logp[:, 0], logp_ref[:, 0]),
        )
        for name, div in CONSTRUCTORS.items()
    ),
    masked_row("exact", of(dv.exact, dv.jeffreys(), masked_by="where")),
    *(
        masked_row(
            "regularised_optimum", partial(optimum, div=div), args=(rewards, logp_ref)
        )
        for div in (dv.pearson(), dv.total_variation())
    ),
    masked_row("renyi", lambda p, q, w: dv.renyi(p, q, order=1.7, where=w)),
    masked_row("cauchy_schwarz", lambda p, q, w: dv.cauchy_schwarz(p, q, where=w)),
    Row(
        name="divergences.pseudo_reward",
        fn=partial(dv.pseudo_reward, dv.neyman()),
        args=(logp, logp_ref, 0.1 * logits),
        estimator=True,
    ),
    Row(
        name="divergences.from_f",
        fn=lambda l: MADE.f(l.astype(jnp.float32)),
        args=(logits,),
    ),
    Row(
        name="divergences.score_weight",
        fn=partial(dv.score_weight, dv.jensen_shannon()),
        args=(logits,),
    ),
    Row(
        name="divergences.gaussian_kl",
        fn=dv.gaussian_kl,
        args=(logits, logits_ref, rewards, logp),
        grad=(0, 1, 2, 3),
    ),
    Row(
        name="divergences.kl_dro",
        fn=lambda losses, where: dv.kl_dro(losses, strength=0.7, where=where),
        args=(rewards, support),
        mask=1,
        masked=(0,),
    ),
    Row(
        name="divergences.information_projection",
        fn=projection,
        args=(logits[:, 0], points),
        rowwise=False,
        grad=(0, 1),
    ),
    Row(
        name="divergences.sinkhorn",
        fn=partial(dv.sinkhorn, epsilon=0.5, num_iterations=6),
        args=(jnp.abs(logits),),
        rowwise=False,
    ),
    Row(
        name="divergences.sinkhorn_divergence",
        fn=partial(dv.sinkhorn_divergence, epsilon=0.5, num_iterations=6),
        args=tuple(jnp.abs(x @ x.T) for x in (logits, rewards, points)),
        rowwise=False,
    ),
    Row(
        name="divergences.sinkd",
        fn=partial(dv.sinkd, num_iterations=6),
        args=(logits, logits_ref),
        rowwise=False,
        grad=(0, 1),
    ),
    Row(
        name="divergences.cauchy_schwarz_kernel",
        fn=partial(dv.cauchy_schwarz_kernel, bandwidth=0.8),
        args=(points, points + 0.3),
        rowwise=False,
    ),
]
