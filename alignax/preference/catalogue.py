"""The named losses as data: ours, and every ``loss_type`` of the peers' trainers."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Array

from alignax import divergences as dv
from alignax.preference import unpaired
from alignax.preference.anchored import (
    apo_down,
    apo_zero_pair,
    bco_batch,
    bco_pair,
    kto_pair,
    nca,
    sppo_hard,
    tpo,
)
from alignax.preference.contrastive import copg, rebel
from alignax.preference.links import squared_link
from alignax.preference.margins import average_margin
from alignax.preference.named import (
    Losses,
    aot,
    aot_unpaired,
    cdpo,
    chi_po,
    discopop,
    dpo,
    exo,
    f_dpo,
    hinge_dpo,
    ipo,
    ipo_averaged,
    ln_dpo,
    rdpo,
    rpo,
)
from alignax.preference.paired import (
    PairLoss,
    ld_dpo,
    sparse_po,
    tdpo1,
    tdpo2,
    wpo,
)
from alignax.preference.pairs import Pair, per_token
from alignax.preference.reference_free import (
    alpha_po,
    cpo,
    orpo,
    sft,
    simpo,
    slic,
)

_Pairs = partial(PairLoss, reference=False)
_Batch = partial(PairLoss, whole_batch=True)
_Tokens = partial(PairLoss, tokens=True)

LOSSES: dict[str, PairLoss] = {
    "dpo": PairLoss(dpo),
    # Any other divergence is another partial.
    "f_dpo": PairLoss(partial(f_dpo, dv.jensen_shannon())),
    "chi_po": PairLoss(partial(chi_po, reward_range=1.0)),
    "cdpo": PairLoss(partial(cdpo, noise=0.1)),
    "rdpo": PairLoss(partial(rdpo, noise=0.1)),
    "ipo": PairLoss(ipo),
    "ipo_averaged": PairLoss(ipo_averaged),
    "hinge_dpo": PairLoss(hinge_dpo),
    "slic": _Pairs(slic),
    "ln_dpo": PairLoss(ln_dpo),
    "simpo": _Pairs(partial(simpo, gamma=0.5)),
    "alpha_po": _Pairs(partial(alpha_po, alpha=0.25, gamma=0.5)),
    "cpo": _Pairs(cpo),
    "orpo": _Pairs(orpo),
    "rpo": PairLoss(partial(rpo, eta=0.005)),
    "exo": PairLoss(exo),
    "nca": PairLoss(nca),
    "bco": _Batch(bco_batch),
    "kto": PairLoss(kto_pair, needs=("anchor",)),
    "sppo_hard": PairLoss(sppo_hard),
    "apo_zero": PairLoss(apo_zero_pair),
    "apo_down": PairLoss(apo_down),
    "discopop": PairLoss(discopop),
    "aot": _Batch(aot),
    "aot_unpaired": _Batch(aot_unpaired),
    "copg": PairLoss(copg, needs=("rewards",)),
    "rebel": PairLoss(rebel, needs=("rewards",)),
    "tdpo1": _Tokens(tdpo1, needs=("kl",)),
    "tdpo2": _Tokens(tdpo2, needs=("kl",)),
    "sparse_po": _Tokens(sparse_po, needs=("kl", "weights")),
    "ld_dpo": _Tokens(ld_dpo),
    "wpo": _Tokens(wpo, needs=("collision",)),
}
"""What else a method takes is bound as in its paper, or as its authors' code does."""


LABEL_LOSSES: dict[str, PairLoss] = {
    "kto": PairLoss(unpaired.kto, needs=("anchor",)),
    "apo_zero": PairLoss(unpaired.apo_zero),
    "bco": PairLoss(unpaired.bco_batch_labels, whole_batch=True),
}
"""Of single completions: ``function(log_ratio, desirable, *needed, beta=...)``."""


def _ipo_policy(pair: Pair, *, beta) -> Losses:
    """CPO's and TPO's ``ipo``: mean log-probabilities, no reference."""
    return squared_link(average_margin(pair), target=1 / (2 * beta))


def _and_sft(loss: Callable[..., Array], pair: Pair, *, beta, weight, **more):
    """Beside the likelihood of the preferred completion, as in CPO."""
    return loss(pair, beta=beta, **more) + weight * sft(pair)


def _and_gold(
    loss: Callable[..., Array], pair: Pair, logp, length, *, beta, weight, **more
):
    """Beside the likelihood of a third completion, as in TPO."""
    return loss(pair, beta=beta, **more) - weight * per_token(logp, length)


# Every ``loss_type`` of the peers' trainers, by trainer and name.
TRL: dict[str, Callable[..., Any]] = {
    "dpo/sigmoid": dpo,
    "dpo/hinge": hinge_dpo,
    "dpo/ipo": ipo_averaged,
    "dpo/exo_pair": exo,
    "dpo/nca_pair": nca,
    "dpo/robust": rdpo,
    "dpo/bco_pair": bco_pair,
    "dpo/sppo_hard": sppo_hard,
    "dpo/aot": aot,
    "dpo/aot_unpaired": aot_unpaired,
    "dpo/apo_zero": apo_zero_pair,
    "dpo/apo_down": apo_down,
    "dpo/discopop": discopop,
    "dpo/sft": sft,
    "dpo/sigmoid_norm": ln_dpo,
    "online_dpo/sigmoid": dpo,
    "online_dpo/ipo": ipo,
    "cpo/sigmoid": cpo,
    "cpo/hinge": partial(_and_sft, slic),
    "cpo/ipo": partial(_and_sft, _ipo_policy),
    "cpo/simpo": partial(_and_sft, simpo),
    "cpo/alphapo": partial(_and_sft, alpha_po),
    "tpo/sigmoid": tpo,
    "tpo/hinge": partial(_and_gold, slic),
    "tpo/ipo": partial(_and_gold, _ipo_policy),
    "tpo/tpo-l": partial(_and_gold, simpo),
    "orpo": orpo,
    "kto/kto": unpaired.kto,
    "kto/apo_zero_unpaired": unpaired.apo_zero,
    "bco": unpaired.bco,
}
TUNIX: dict[str, Callable[..., Any]] = {"dpo": cdpo, "orpo": orpo}
