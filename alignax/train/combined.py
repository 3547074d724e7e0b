"""Models that write together, by a rule that a command line names."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from alignax import decoding, games
from alignax.models import functional
from alignax.spelling import bound, spelled
from alignax.train import policy as policies
from alignax.train.policy import Policy
from alignax.train.vocabularies import check_same
from alignax.types import ApplyFn, InputError, Params


class Combined(NamedTuple):
    """A rule, ``(*apply_fns) -> apply_fn``, and the models beside the first one."""

    rule: Callable[..., ApplyFn]
    apply_fns: tuple[ApplyFn, ...]
    params: tuple[Params, ...]

    def joined(self, apply_fn: ApplyFn, params: Params) -> tuple[ApplyFn, Params]:
        """The rule's model, whose first one this is."""
        return self.rule(apply_fn, *self.apply_fns), (params, *self.params)


def _product(*, weight: float):
    def rule(*logits):
        return decoding.product(*logits, weights=(weight,) * (len(logits) - 1))

    return partial(decoding.combine, rule)


def _mixture(*, mixture: float):
    return partial(games.mixture_policy, mixture=mixture)


def _contrastive(
    *,
    strength: float,
    alpha: float = 0.1,
    gate: float = 0.0,
    deviation: float | None = None,
):
    rule = partial(
        decoding.contrastive,
        strength=strength,
        alpha=alpha,
        gate=gate,
        deviation=deviation,
    )
    return partial(decoding.combine, rule)


def _fused(*, most: float = 2.0):
    return partial(decoding.combine, partial(decoding.fused, most=most))


def _switch(*, threshold: float, window: int = 5, least: int = 10):
    return partial(decoding.switching, threshold=threshold, window=window, least=least)


# By the models that each takes beside the first one.
RULES: dict[str, tuple[Callable[..., Any], str, range]] = {
    "product": (_product, "one or several experts", range(1, 100)),
    "mixture": (_mixture, "one, the other end of the mixture", range(1, 2)),
    "contrastive": (_contrastive, "one, the amateur", range(1, 2)),
    "fused": (_fused, "two, a small model and the same tuned", range(2, 3)),
    "switch": (_switch, "one, the small model", range(1, 2)),
}


def named(
    rule: str | None,
    policy: Policy,
    others: Sequence[Policy],
    folders: Sequence[Path],
) -> Combined | None:
    """The models and the rule that are named.

    Args:
      rule: as ``contrastive,strength=0.5``; None for none.
      policy: the first model.
      others: those beside it; adapters are merged.
      folders: theirs, for messages.

    Returns:
      None where nothing is combined.

    Raises:
      InputError: a rule without models or models without a rule, a rule that is not
        there or takes others, an option that it does not take, a model of another
        vocabulary.
    """
    if rule is None:
        if others:
            raise InputError(
                "rule must say how the models of --beside are combined, one of "
                f"{', '.join(RULES)}; got none"
            )
        return None
    name, options = spelled(rule)
    if name not in RULES:
        raise InputError(f"rule must be one of {', '.join(RULES)}, got {name!r}")
    build, wanted, counts = RULES[name]
    if len(others) not in counts:
        raise InputError(
            f"beside must name the models that {name} takes beside the first "
            f"({wanted}), got {len(others)}"
        )
    built = bound(build, options, name)
    for other, folder in zip(others, folders, strict=True):
        check_same(policy, other, folder, names=("first model", "model beside it"))
    return Combined(
        built,
        tuple(functional.make_apply(other.config) for other in others),
        tuple(policies.whole(other, other.params) for other in others),
    )
