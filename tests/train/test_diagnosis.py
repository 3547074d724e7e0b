"""Numbers that are not finite, put in one row of a batch: which is named, and where."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignax.algorithms import METHODS
from alignax.pipeline.rollout import Scores
from alignax.regularisers import Regulariser
from alignax.train import diagnosis
from alignax.train import policy_gradient as pg
from alignax.types import Rollout, Scored

G, K, T, V = 4, 2, 3, 5
ALGORITHM = dataclasses.replace(
    METHODS["grpo"].algorithm,
    regulariser=Regulariser(level="myopic", form="exact", place="loss"),
    term=lambda logp, entropy, rows: -0.01 * entropy,
    beta=0.1,
)
TX = optax.sgd(0.1)


def marked(rollout, mark, shown):
    """``shown`` at the second token of rows with this mark."""
    here = rollout.temperature[:, None] == mark
    return jnp.where(here & (jnp.arange(T) == 1)[None], shown, 0)


def score(params, rollout):
    laws = jax.nn.log_softmax(params)
    logp = laws[rollout.tokens] + marked(rollout, 1, jnp.nan)
    # The root's slope at zero is infinite, its value is not.
    here = marked(rollout, 4, True)
    logp += jnp.where(here, jnp.sqrt(jnp.where(here, jnp.square(params[0]), 1)), 0)
    entropy = -jnp.sum(jnp.exp(laws) * laws) + marked(rollout, 2, jnp.inf)
    return Scores(logp, entropy, jnp.zeros(logp.shape))


def divergence(params, reference, rollout):
    gap = jnp.sum(jax.nn.softmax(params) * (params - reference))
    return gap + marked(rollout, 3, jnp.inf)


STEP = pg.make_step(
    ALGORITHM, score, TX, updates=2, microbatches=2, divergence=divergence
)


def batch(*, mark=0, row=5, **fields):
    tokens = jax.random.randint(jax.random.key(0), (G * K, T), 0, V)
    mask = jnp.arange(T)[None] < jnp.array([3, 2, 3, 3, 3, 2, 3, 3])[:, None]
    logp = jnp.full((G * K, T), -np.log(V), jnp.float32)
    given = {
        "rewards": jnp.arange(G * K, dtype=jnp.float32).reshape(G, K) % 3,
        "logp_old": logp,
        "logp_ref": logp,
    }
    for name, value in fields.items():
        at = (row // K, row % K) if name == "rewards" else (row, 0)
        given[name] = given[name].at[at].set(value)
    rollout = Rollout(
        tokens=tokens,
        attended=mask,
        trained=mask,
        temperature=jnp.zeros(G * K).at[row].set(mark),
    )
    return Scored(rollout=rollout, index=jnp.array([7, 8, 9, 10]), **given)


def run(scored):
    state = pg.init_state(ALGORITHM, jnp.zeros(V), TX, jax.random.key(1))
    state, metrics = STEP(state, scored)
    return metrics, diagnosis.split(metrics)[1]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"rewards": np.nan}, "; first the reward in row 5"),
        ({"logp_old": np.inf}, "; first the log-probabilities before the up"),
        ({"mark": 1}, "; first the policy's log-probabilities in row 5,"),
        ({"mark": 2}, "; first the method's own term, such as one of the en"),
        ({"mark": 3}, "; first the regulariser in row 5, which is of record 9"),
        ({"mark": 4}, "; the loss of every row is finite, its gradient is not"),
        ({"mark": 1, "row": 0}, "; first the policy's log-probabilities in row 0, whi"),
    ],
)
def test_the_term_and_the_row_are_named(given, text):
    metrics, found = run(batch(**given))
    assert metrics["skipped"] == 1
    said = diagnosis.said(found)
    assert said.startswith(text)
    row = given.get("row", 5)
    named = [int(x) for name, x in found.items() if name.startswith(diagnosis.ROW)]
    assert set(named) <= {-1, row}
    if given.get("mark") in (2, 3):
        assert ", then" not in said, "no other term is to blame"
    assert STEP._cache_size() == 1


def test_a_reference_that_the_form_does_not_read_is_not_blamed():
    scored = batch(mark=3, row=6)
    scored = dataclasses.replace(scored, logp_ref=scored.logp_ref.at[2, 0].set(np.nan))
    _, found = run(scored)
    assert diagnosis.said(found).startswith("; first the regulariser in row 6")
    assert int(found["bad_row/logp_ref"]) == -1


def test_of_several_rows_the_first_cause_is_named():
    """A penalty in the reward reads the reference: row 2's surrogate is spoilt."""
    scored = batch(logp_ref=np.nan, row=2)
    rows = {"surrogate": [2], "regulariser": [], "logp": [6]}
    bad = {
        f"{diagnosis.ROW}{name}": jnp.zeros((1, G * K)).at[0, jnp.array(at, int)].set(1)
        for name, at in rows.items()
    }
    found = diagnosis.first(
        bad, scored, scored.rollout.trained, index=jnp.array([7, 8, 9, 10])
    )
    assert diagnosis.said(found).startswith(
        "; first the reference's log-probabilities in row 2, which is of record 8"
    )
    assert int(found["bad_row/logp"]) == 6


def test_what_is_finite_or_masked_is_not_named():
    # Row 5 has two tokens.
    scored = batch()
    scored = dataclasses.replace(scored, logp_ref=scored.logp_ref.at[5, 2].set(np.nan))
    metrics, found = run(scored)
    assert metrics["skipped"] == 0
    assert set(map(int, found.values())) == {-1}
    assert set(found) >= {"bad_row/surrogate", "bad_row/regulariser", "bad_record"}


def test_other_steps_have_nothing_to_say():
    assert diagnosis.said({}) == ""


def test_order_is_that_of_the_metrics():
    """A set's order is another in each process: no two would have one program."""
    names = [f"{diagnosis.ROW}{letter}" for letter in "hgfedcba"]
    rest, own = diagnosis.split(dict.fromkeys(["loss", *names, "kl"], 0.0))
    assert list(own) == names
    assert list(rest) == ["loss", "kl"]
