"""The decoder's configuration: it spells how one architecture differs from another."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from alignax.types import InputError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The architecture. Hashable: it can be a static argument.

    Raises:
      InputError: a field is out of range.
    """

    vocab_size: int
    """Rows of the embedding."""
    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Blocks of attention and MLP."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; divides ``num_heads``."""
    head_dim: int
    """Width of a head, even."""
    mlp_size: int
    """Width inside the MLP."""
    max_length: int
    """Positions, of prompt and completion together."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    tie_embeddings: bool = True
    """The head is the embedding."""
    attention_bias: bool = False
    """Biases on queries, keys and values."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys."""
    initializer_range: float = 0.02
    """Standard deviation of fresh matrices."""
    param_dtype: str = "float32"
    """Of the parameters: float32 or bfloat16."""
    dtype: str = "float32"
    """Of the computation between them; logits and norms are float32."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field.name, field.type, getattr(self, field.name))
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"num_kv_heads must divide num_heads = {self.num_heads}, got "
                f"{self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise InputError(
                f"head_dim must be even for rotary positions, got {self.head_dim}"
            )
        for name in ("param_dtype", "dtype"):
            value = getattr(self, name)
            if value not in DTYPES:
                raise InputError(
                    f"{name} must be one of {sorted(DTYPES)}, got {value!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DecoderConfig":
        """What ``to_dict`` wrote.

        Raises:
          InputError: a field is missing, unknown or out of range.
        """
        fields = dataclasses.fields(cls)
        unknown = sorted(set(values) - {field.name for field in fields})
        needed = {f.name for f in fields if f.default is dataclasses.MISSING}
        missing = sorted(needed - set(values))
        if unknown or missing:
            raise InputError(
                "the decoder's configuration must have DecoderConfig's fields; "
                f"missing: {missing}, unknown: {unknown}"
            )
        return cls(**values)


def _check(name: str, kind: Any, value: Any) -> None:
    """A field's value has its type, and numbers are positive and finite."""
    allowed = (int, float) if kind is float else kind
    # A bool is an int to Python.
    if not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool):
        raise InputError(f"{name} must be {kind.__name__}, got {value!r}")
    if kind in (int, float) and not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} must be positive and finite, got {value}")
