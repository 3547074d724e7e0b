"""A smaller model of a model's own layers: a student or a draft to begin from."""

import dataclasses

import numpy as np

from alignax.models.config import DecoderConfig
from alignax.types import InputError, Params


def spread_layers(num_layers: int, kept: int) -> tuple[int, ...]:
    """Numbers of so many layers, the first and the last among them, evenly spread.

    Args:
      num_layers: of the model.
      kept: from 1 to ``num_layers``; 1 keeps the first.

    Returns:
      increasing numbers.

    Raises:
      InputError: ``kept`` is out of range.

    Example:
      >>> spread_layers(30, 8)
      (0, 4, 8, 12, 17, 21, 25, 29)
    """
    if not 1 <= kept <= num_layers:
        raise InputError(
            f"kept must be from 1 to the model's {num_layers} layers, got {kept}"
        )
    return tuple(int(i) for i in np.rint(np.linspace(0, num_layers - 1, kept)))


def from_layers(
    config: DecoderConfig, params: Params, layers: tuple[int, ...]
) -> tuple[DecoderConfig, Params]:
    """The model with some of its layers alone; embedding, last norm and head as before.

    Args:
      config: the model's.
      params: of ``functional.init``'s structure; shared, not copied.
      layers: increasing numbers of the layers that stay.

    Returns:
      the configuration and parameters of the smaller model.

    Raises:
      InputError: ``layers`` are not increasing numbers of layers.

    Example:
      >>> import jax
      >>> from alignax.models import functional
      >>> sizes = dict(vocab_size=11, hidden_size=8, num_layers=4, num_heads=2)
      >>> more = dict(num_kv_heads=1, head_dim=4, mlp_size=16, max_length=32)
      >>> config = DecoderConfig(**sizes, **more)
      >>> params = functional.init(config, jax.random.key(0))
      >>> small, own = from_layers(config, params, (0, 3))
      >>> small.num_layers, sorted(own["blocks"])
      (2, ['0', '1'])
    """
    inside = all(0 <= i < config.num_layers for i in layers)
    if not layers or not inside or list(layers) != sorted(set(layers)):
        raise InputError(
            f"layers must be increasing numbers below {config.num_layers}, got {layers}"
        )
    blocks = {str(i): params["blocks"][str(j)] for i, j in enumerate(layers)}
    small = dataclasses.replace(
        config,
        num_layers=len(layers),
        local_layers=tuple(i for i, j in enumerate(layers) if j in config.local_layers),
    )
    return small, params | {"blocks": blocks}
