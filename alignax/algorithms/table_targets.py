"""Methods that train towards a target law, by their published names."""

from dataclasses import replace

from alignax import surrogates
from alignax.algorithms import stages as s
from alignax.algorithms import target as t
from alignax.algorithms.compose import Algorithm, Method
from alignax.algorithms.values import partial

f_dpg = Algorithm(
    target=t.Target(),
    advantage=s.raw,
    weight=t.importance,
    rule=s.at(s.SEQUENCE, surrogates.ratio_surrogate),
    reduction=s.sequence_mean,
    beta=0.1,
)

ROWS = {
    "f_dpg": Method(
        "f-DPG (DPG, GDC, CDPG)",
        "2302.08215 Algorithm 1; 2012.11635; 2112.00791",
        "−f′(π/p) towards ρ e^{r/β} (tilted), a normaliser for each prompt "
        "(others_log_normaliser) · leave-one-out · π/b · score",
        "forward KL; β .1 is ours; the paper's baseline is the mean of the last 1024",
        f_dpg,
        {
            "filter": replace(f_dpg, target=t.Target(density=t.filter), beta=0.0),
            "constraints": replace(
                f_dpg, target=t.Target(density=t.filtered_posterior), beta=1.0
            ),
            "experts": replace(
                f_dpg,
                shape=s.no_rewards,
                target=t.Target(density=t.base),
                beta=0.0,
            ),
            "product": replace(
                f_dpg,
                target=t.Target(density=partial(t.product, weight=0.5)),
                beta=0.0,
            ),
            "windowed baseline": replace(f_dpg, target=t.Target(window=1024)),
        },
    ),
}
