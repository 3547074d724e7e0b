"""One row of the table of methods, and what the rows share."""

import dataclasses
from collections.abc import Mapping

from alignax import regularisers
from alignax.algorithms import methods as m
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Algorithm, Critic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """``algorithm`` is None for what is no loss on completions of groups: its pieces
    are then in ``composition``. ``variants`` are other papers' and codes' forms."""

    name: str
    paper: str
    composition: str
    defaults: str
    check: str
    algorithm: Algorithm | None = None
    variants: Mapping[str, Algorithm] = dataclasses.field(default_factory=dict)


COEFFICIENTS = "tests/surrogates/test_coefficients.py::test_autodiff_is_minus_u_c"
SEQUENCES = (
    "tests/surrogates/test_coefficients.py::"
    "test_sequence_rules_are_means_over_completions"
)
HAND = "tests/test_algorithms.py::test_updates_by_hand"


def in_scales(name: str) -> str:
    return f"tests/advantages/test_scales.py::{name}"


def in_credit(name: str) -> str:
    return f"tests/advantages/test_credit.py::{name}"


def in_shaping(name: str) -> str:
    return f"tests/advantages/test_shaping.py::{name}"


def in_terms(name: str) -> str:
    return f"tests/surrogates/test_terms.py::{name}"


def in_selection(name: str) -> str:
    return f"tests/selection/test_selection.py::{name}"


def in_ratios(name: str) -> str:
    return f"tests/surrogates/test_ratios.py::{name}"


def change(base: Algorithm, **stages) -> Algorithm:
    return dataclasses.replace(base, **stages)


def of_rewards(function):
    """An advantage of the rewards alone."""
    return lambda scored, rewards: function(rewards)


gae_ppo = Algorithm(
    advantage=s.raw,
    credit=s.gae(),
    reduction=s.token_mean,
    regulariser=regularisers.k1_in_reward(),
    beta=0.05,
    critic=Critic(returns=s.gae_returns()),
)
no_kl = m.no_kl
standard_token_mean = change(no_kl, reduction=s.token_mean)


def row(name, paper, composition, defaults, check, algorithm=None, **variants):
    return Method(
        name=name,
        paper=paper,
        composition=composition,
        defaults=defaults,
        check=check,
        algorithm=algorithm,
        variants={key.replace("_", " "): value for key, value in variants.items()},
    )
