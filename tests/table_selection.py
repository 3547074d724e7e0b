"""Sample arguments for ``alignax.selection``."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import selection
from tests.row import Row

KEYS = jax.random.split(jax.random.key(2), 3)
VALUES, OTHERS = (jax.random.normal(key, (8, 5)) for key in KEYS[:2])
MASK = jnp.arange(5)[None] < jnp.array([5, 4, 3, 2, 1, 1, 2, 5])[:, None]
CORRECT = VALUES > 0
LENGTHS = jnp.sum(MASK, axis=-1)
KEY = KEYS[2]
REPLAY = selection.replay_buffer(jnp.zeros(5), capacity=6)
BUFFER = REPLAY.update(REPLAY.init(), OTHERS, OTHERS[:, 0] > 0)


def row(name, *args, bound=None, **kwargs):
    """Decisions have no gradient; the table knows floats, so booleans become some."""
    fn = partial(getattr(selection, name), **(bound or {}))
    return Row(
        name=f"selection.{name}",
        fn=lambda *xs: jax.tree.map(lambda x: x.astype(jnp.float32), fn(*xs)),
        args=args,
        grad=(),
        **kwargs,
    )


def with_key(name, *args, **kwargs):
    """A random function with its key bound; rows meet in the draw."""
    made = row(name, *args, rowwise=False, **kwargs)
    bound = partial(getattr(selection, name), KEY)
    return Row(
        name=made.name,
        fn=lambda *xs: jnp.asarray(bound(*xs), jnp.float32),
        args=args,
        rowwise=False,
        grad=(),
    )


ROWS = [
    row("mixed_groups", CORRECT),
    row("difficulty_band", jax.nn.sigmoid(VALUES)),
    row("best_weights", VALUES),
    row("best_worst_weights", VALUES),
    row("widest_subset", VALUES, bound={"size": 3}),
    row(
        "top_tokens",
        VALUES,
        MASK,
        mask=1,
        masked=(0,),
        rowwise=False,
        bound={"fraction": 0.4},
    ),
    row(
        "calm_completions", VALUES**2, MASK, mask=1, masked=(0,), bound={"initial": 0.1}
    ),
    with_key("critical_tokens", VALUES, MASK),
    with_key("prefix_cuts", LENGTHS),
    Row(
        name="selection.replay_buffer",
        fn=lambda x, keep: REPLAY.update(BUFFER, x.astype(jnp.float32), keep),
        args=(VALUES, CORRECT[:, 0]),
        rowwise=False,
        grad=(),
    ),
    Row(
        name="selection.replay_sample",
        fn=lambda x: selection.replay_sample(
            BUFFER._replace(rows=BUFFER.rows + x[:6, :1].astype(jnp.float32)),
            KEY,
            count=3,
            most_age=2,
            decay=0.5,
        ),
        args=(VALUES,),
        rowwise=False,
        grad=(),
    ),
    Row(
        name="selection.recent_sample_recovery",
        fn=lambda x, keep: selection.recent_sample_recovery(
            BUFFER, x.astype(jnp.float32), keep, size=4
        ),
        args=(VALUES, CORRECT[:, 0]),
        rowwise=False,
        grad=(),
    ),
    row("objective_weights", VALUES**2, OTHERS**2, rowwise=False),
    Row(
        name="selection.exchanged_roles",
        fn=lambda x, y: selection.exchanged_roles(
            x.astype(jnp.float32), y.astype(jnp.float32), jnp.int32(5)
        ),
        args=(VALUES, OTHERS),
    ),
    row("newest_version", LENGTHS[:, None] + jnp.arange(3)[None] % 2),
    row("unsolved_completions", CORRECT),
]
