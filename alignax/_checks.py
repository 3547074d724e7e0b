"""Range checks of hyper-parameters that are numbers; traced arrays pass."""

import math

from jaxtyping import Array, Float

from alignax.types import InputError

Strength = float | Float[Array, "..."]


def positive(**numbers: Strength) -> None:
    """Each must be positive and finite."""
    for name, value in numbers.items():
        if isinstance(value, (int, float)) and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} must be positive and finite, got {value}")


def not_negative(**numbers: Strength) -> None:
    """Each must be at least 0 and finite."""
    for name, value in numbers.items():
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise InputError(f"{name} must be at least 0 and finite, got {value}")


def share(**numbers: Strength) -> None:
    """Each must be in [0, 1]."""
    for name, value in numbers.items():
        if isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise InputError(f"{name} must be in [0, 1], got {value}")


def noise_rate(noise: Strength) -> None:
    """A share of flipped labels that leaves the majority right."""
    if isinstance(noise, (int, float)) and not 0 <= noise < 0.5:
        raise InputError(
            f"noise must be in [0, 0.5), got {noise}: of labels flipped half of the "
            "time nothing can be learned"
        )
