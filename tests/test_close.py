"""The comparison that the other tests lean on fails where it must."""

import numpy as np
import pytest

from tests.close import EPS, assert_close


def test_bounds_are_relative_to_the_largest_of_the_tree():
    expected = {"a": np.float32([1, -8]), "b": np.float32([0.0])}
    near = {"a": np.float32([1, -8]), "b": np.float32([8 * EPS])}
    assert_close(near, expected, rel=EPS)
    with pytest.raises(AssertionError, match=r"\['b'\]: off by"):
        assert_close(near, expected, rel=0.9 * EPS)


@pytest.mark.parametrize(
    "actual",
    [
        {"x": np.float32([1.0, np.nan]), "n": np.int32([3])},
        {"x": np.float32([1.0, np.inf]), "n": np.int32([3])},
        {"x": np.float32([1.0, 2.0]), "n": np.int32([4])},
        {"x": np.float32([1.0]), "n": np.int32([3])},
        {"x": np.float32([1.0, 2.0])},
    ],
)
def test_what_is_not_close(actual):
    with pytest.raises(AssertionError):
        assert_close(actual, {"x": np.float32([1, 2]), "n": np.int32([3])}, rel=0.5)
    same = {"x": np.float32([1, np.nan]), "n": np.int32([3])}
    with pytest.raises(AssertionError):
        assert_close(actual, same, rel=0.5)
