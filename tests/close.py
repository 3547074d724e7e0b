"""Comparisons of floats that hold on any processor.

Processors add in another order and fuse other products, so what is left of a sum
whose terms cancel differs by the rounding of its terms. A bound relative to each
element fails there; these are relative to the largest element of the whole tree.
"""

import jax
import numpy as np

EPS = float(np.finfo(np.float32).eps)


def assert_close(actual, expected, *, rel):
    """Trees of one structure, floats within ``rel`` of the largest expected magnitude.

    Integers and booleans are equal exactly. Say what ``rel`` is made of, as
    ``8 * EPS`` for eight roundings.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = [
        (jax.tree_util.keystr(path), np.asarray(x), np.asarray(y))
        for (path, x), y in zip(
            jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
        )
    ]
    exact = [np.issubdtype(y.dtype, np.integer) or y.dtype == bool for *_, y in pairs]
    floats = [y for (*_, y), same in zip(pairs, exact, strict=True) if not same]
    scale = max((float(np.abs(y).max()) for y in floats if y.size), default=0.0)
    for (name, x, y), same in zip(pairs, exact, strict=True):
        assert x.shape == y.shape, f"{name}: shape {x.shape}, not {y.shape}"
        if same:
            np.testing.assert_array_equal(x, y, err_msg=name)
        elif y.size:
            off = float(np.abs(x.astype(np.float64) - y).max()) / (scale or 1.0)
            assert off <= rel, f"{name}: off by {off:.3g} of {scale:.3g}, not {rel:.3g}"


def decoder_rel(layers, *, gradient=False):
    """What rounding may do to a small decoder in float32.

    A layer is about sixteen operations in a row, each a sum of about eight terms at
    the tests' widths; a gradient goes through them three times.
    """
    return 16 * 8 * layers * (3 if gradient else 1) * EPS
