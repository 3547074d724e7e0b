"""The decoder's configuration: it spells how one architecture differs from another."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from alignax.types import InputError

NORMS = ("rms", "rms_offset", "layer")
ACTIVATIONS = ("silu", "gelu_tanh")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


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
    rope_factor: float = 1.0
    """Divides them: all, or with the three below only low ones (Llama 3)."""
    rope_low: float | None = None
    """Turns over ``rope_original_length`` below which a frequency is divided."""
    rope_high: float | None = None
    """Turns above which it is not; in between, in part."""
    rope_original_length: int | None = None
    """Positions that the model was first trained for."""
    learned_positions: bool = False
    """A table of positions is added to the embedding, and nothing is rotated."""
    norm: str = "rms"
    """Of ``NORMS``: rms; rms_offset, whose scale is 1 more than its parameter; layer,
    with mean and bias."""
    norm_eps: float = 1e-6
    """Added to the mean square in a norm."""
    post_norms: bool = False
    """A norm behind attention and MLP, too."""
    tie_embeddings: bool = True
    """The head is the embedding."""
    scale_embeddings: bool = False
    """The embedding is multiplied by the root of the width."""
    attention_bias: bool = False
    """Biases on queries, keys and values."""
    linear_bias: bool = False
    """Biases on the other linear maps."""
    qk_norm: bool = False
    """A norm of each head's queries and keys."""
    query_size: int | None = None
    """Scores are divided by its root; None for ``head_dim``."""
    attention_soft_cap: float | None = None
    """Scores z become ``cap · tanh(z / cap)``."""
    logit_soft_cap: float | None = None
    """And logits."""
    window: int | None = None
    """Tokens that one of ``local_layers`` sees, itself included."""
    local_layers: tuple[int, ...] = ()
    """Numbers of the layers with a window."""
    local_rope_theta: float | None = None
    """Theirs, with a factor of 1; None for ``rope_theta`` and its factor."""
    activation: str = "silu"
    """Of ``ACTIVATIONS``."""
    gated_mlp: bool = True
    """The MLP multiplies two maps of its input; otherwise it has one."""
    initializer_range: float = 0.02
    """Standard deviation of fresh matrices."""
    param_dtype: str = "float32"
    """Of the parameters: float32, bfloat16 or float16."""
    dtype: str = "float32"
    """Of the computation between them; logits, softmax and the inside of norms are
    float32. float16 has three bits more than bfloat16 and no number above 65,504; on a
    CPU it needs F16C, which x86 has had since 2013."""
    residual_dtype: str | None = None
    """Of the stream that layers add to; None for ``dtype``."""
    head_dtype: str | None = None
    """Of the last norm's result and the head that it meets; None for ``dtype``."""
    attention: str = "xla"
    """What computes attention to more than one query: xla, or cudnn, whose memory does
    not grow with the square of the length; it needs an NVIDIA GPU and half precision,
    and has neither a shared prefix nor a soft cap."""

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
        words = {"norm": NORMS, "activation": ACTIVATIONS}
        places = ("param_dtype", "dtype", "residual_dtype", "head_dtype")
        words |= dict.fromkeys(places, DTYPES)
        for name, known in words.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise InputError(
                    f"{name} must be one of {sorted(known)}, got {value!r}"
                )
        partial = [self.rope_low, self.rope_high, self.rope_original_length]
        if any(x is None for x in partial) != all(x is None for x in partial):
            raise InputError(
                "rope_low, rope_high and rope_original_length must be given together, "
                f"got {partial}"
            )
        if self.attention not in ("xla", "cudnn"):
            raise InputError(f"attention must be xla or cudnn, got {self.attention!r}")
        if self.attention == "cudnn" and self.dtype == "float32":
            raise InputError(
                "attention cudnn needs half precision; dtype bfloat16 would do, got "
                "float32"
            )
        if self.attention == "cudnn" and self.attention_soft_cap is not None:
            raise InputError(
                "attention must be xla for a model that caps its scores, got cudnn"
            )
        if self.local_layers and self.window is None:
            raise InputError("window must be a number where there are local_layers")
        if any(not 0 <= i < self.num_layers for i in self.local_layers):
            raise InputError(
                f"local_layers must be among the {self.num_layers} layers, got "
                f"{self.local_layers}"
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
        values = dict(values)
        if isinstance(values.get("local_layers"), list):
            values["local_layers"] = tuple(values["local_layers"])
        return cls(**values)


def _check(name: str, kind: Any, value: Any) -> None:
    """A field's value has its type, and numbers are positive and finite."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return
        [kind] = set(typing.get_args(kind)) - {types.NoneType}
    if typing.get_origin(kind) is tuple:
        whole = isinstance(value, tuple) and all(type(x) is int for x in value)
        if not whole:
            raise InputError(f"{name} must be a tuple of integers, got {value!r}")
        return
    allowed = (int, float) if kind is float else kind
    # A bool is an int to Python.
    if not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool):
        raise InputError(f"{name} must be {kind.__name__}, got {value!r}")
    if kind in (int, float) and not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} must be positive and finite, got {value}")
