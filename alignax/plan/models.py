"""Shapes of public models by their names, from their ``config.json``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignax.models import hf
from alignax.models.config import DecoderConfig
from alignax.types import InputError

LLAMA3: Mapping[str, Any] = {
    "vocab_size": 128_256,
    "max_length": 131_072,
    "rope_theta": 500_000.0,
    "rope_factor": 8.0,
    "rope_low": 1.0,
    "rope_high": 4.0,
    "rope_original_length": 8192,
    "norm_eps": 1e-5,
    "tie_embeddings": False,
}
NAMED: Mapping[str, Mapping[str, Any]] = {
    "SmolLM2-135M": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "num_layers": 30,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 64,
        "mlp_size": 1536,
        "max_length": 8192,
        "rope_theta": 100_000.0,
        "norm_eps": 1e-5,
    },
    "Qwen2.5-0.5B": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "num_layers": 24,
        "num_heads": 14,
        "num_kv_heads": 2,
        "head_dim": 64,
        "mlp_size": 4864,
        "max_length": 32_768,
        "rope_theta": 1e6,
        "attention_bias": True,
    },
    "Qwen3-8B": {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "num_layers": 36,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "mlp_size": 12_288,
        "max_length": 40_960,
        "rope_theta": 1e6,
        "tie_embeddings": False,
        "qk_norm": True,
    },
    "Llama-3.1-70B": {
        **LLAMA3,
        "hidden_size": 8192,
        "num_layers": 80,
        "num_heads": 64,
        "num_kv_heads": 8,
        "head_dim": 128,
        "mlp_size": 28_672,
    },
}


def shape_of(
    name: str, *, param_dtype: str = "float32", dtype: str = "bfloat16"
) -> DecoderConfig:
    """The architecture of a local folder, or of a public model by its name.

    Args:
      name: of ``NAMED``, or a folder with a ``config.json``; weights are not needed.
      param_dtype: of the parameters.
      dtype: of the computation.

    Returns:
      the decoder's configuration.

    Raises:
      InputError: neither.
    """
    if name in NAMED:
        return DecoderConfig(**NAMED[name], param_dtype=param_dtype, dtype=dtype)
    if not Path(name).is_dir():
        raise InputError(
            f"model must be a local folder or one of {', '.join(NAMED)}, got {name!r}"
        )
    return hf.read_config(name, param_dtype=param_dtype, dtype=dtype)
