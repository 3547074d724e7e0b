"""Where a number that is not finite came from: found on the device, said by the host.

A step reports for each quantity the first row in which it is not finite, as scalars
that the host reads only where an update was skipped.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignax.types import Scored

ROW, RECORD = "bad_row/", "bad_record"
WORDS = {
    "reward": "the reward",
    "logp_old": "the log-probabilities before the updates",
    "logp_ref": "the reference's log-probabilities",
    "logp": "the policy's log-probabilities",
    "surrogate": "the surrogate",
    "regulariser": "the regulariser",
    "term": "the method's own term, such as one of the entropy",
    "value": "the value loss",
}
"""Quantities, causes before what is made of them."""
MADE = ("surrogate", "regulariser", "term")
"""Those that may read the reference's log-probabilities."""


def _bad(value: Array, mask: Array) -> Array:
    return jnp.any(~jnp.isfinite(value) & mask, axis=-1)


def counted(
    values: Mapping[str, Float[Array, "B T"]],
    mask: Bool[Array, "B T"],
    *,
    row: Int[Array, " B"],
    whole: Float[Array, " N"],
) -> dict[str, tuple[Float[Array, " N"], Float[Array, " N"]]]:
    """Rows with a number that is not finite, as sums over microbatches.

    Args:
      values: by their names in ``WORDS``.
      mask: of the tokens that count.
      row: the rows' numbers in the whole batch.
      whole: of the whole batch's shape; its numbers are not read.

    Returns:
      fractions ``[N]`` for the ``aux`` of a loss, positive where a row is bad.
    """
    ones = jnp.ones_like(whole)
    return {
        f"{ROW}{name}": (jnp.zeros_like(whole).at[row].add(_bad(value, mask)), ones)
        for name, value in values.items()
    }


def first(
    found: Mapping[str, Float[Array, "updates N"]],
    scored: Scored,
    mask: Bool[Array, "N T"],
    *,
    index: Int[Array, " G"] | None,
) -> dict[str, Float[Array, ""]]:
    """The first bad row of each quantity, and the record of the first cause.

    Args:
      found: what ``counted`` gave at each update.
      scored: what was trained on, N rows.
      mask: of the tokens that count.
      index: the record of each prompt; rows behind these are of none that is known.

    Returns:
      float32 scalars by name, −1 where all is finite.
    """
    bad = {name.removeprefix(ROW): jnp.any(x > 0, 0) for name, x in found.items()}
    bad["reward"] = _bad(scored.rewards.reshape(-1, 1), mask)
    bad["logp_old"] = _bad(scored.logp_old, mask)
    if scored.logp_ref is not None:
        # A form that does not read it is not spoilt by it.
        spoilt = [bad[name] for name in MADE if name in bad]
        bad["logp_ref"] = _bad(scored.logp_ref, mask) & jnp.any(jnp.stack(spoilt), 0)
    rows = {
        name: jnp.where(jnp.any(bad[name]), jnp.argmax(bad[name]), -1)
        for name in WORDS
        if name in bad
    }
    result = {f"{ROW}{name}": row for name, row in rows.items()}
    if index is not None:
        each = jnp.stack([*rows.values()])
        group = each[jnp.argmax(each >= 0)] // scored.rewards.shape[1]
        known = (group >= 0) & (group < len(index))
        result[RECORD] = jnp.where(known, index[jnp.minimum(group, len(index) - 1)], -1)
    return {name: x.astype(jnp.float32) for name, x in result.items()}


def split(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A step's metrics without those of this module, and these.

    Args:
      metrics: by name.

    Returns:
      the two.
    """
    rest: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, value in metrics.items():
        (own if name.startswith((ROW, RECORD)) else rest)[name] = value
    return rest, own


def said(found: Mapping[str, Any]) -> str:
    """In words, where a number was first not finite. Waits for the device.

    Args:
      found: of ``first``, or nothing, of other steps.

    Returns:
      the end of a sentence.
    """
    rows = {name.removeprefix(ROW): int(x) for name, x in found.items()}
    record = rows.pop(RECORD, -1)
    bad = [(WORDS[name], rows[name]) for name in WORDS if rows.get(name, -1) >= 0]
    if not bad:
        return "; the loss of every row is finite, its gradient is not" if rows else ""
    (cause, row), *more = bad
    text = f"; first {cause} in row {row}"
    if record >= 0:
        text += f", which is of record {record}"
    return text + "".join(f", then {name} in row {at}" for name, at in more)
