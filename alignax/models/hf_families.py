"""What Hugging Face folders call the things of ``DecoderConfig``, family by family."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from alignax.models.config import DecoderConfig
from alignax.types import InputError


class Tensor(NamedTuple):
    """One tensor of a folder, and where it goes; {} is a layer's number."""

    name: str
    paths: tuple[str, ...]
    """Ours: several where theirs is fused along its last axis."""
    transposed: bool = False


class Family(NamedTuple):
    """One architecture's spelling of ``config.json`` and of its tensors."""

    architecture: str
    model_type: str
    structure: Mapping[str, Any]
    """Fields of DecoderConfig that make the family, where not the default."""
    keys: Mapping[str, str]
    """Field of DecoderConfig: key of config.json."""
    required: Mapping[str, Any]
    """Keys of config.json with the one value that the decoder computes."""
    tensors: tuple[Tensor, ...]
    prefix: str
    """Of the tensors' names, which some folders leave out."""
    rotary: bool = True


# The fields that a family's structure may set; all others are sizes.
STRUCTURE = (
    *("learned_positions", "norm", "post_norms", "scale_embeddings", "attention_bias"),
    *("linear_bias", "qk_norm", "activation", "gated_mlp"),
)

KEYS: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_size": "intermediate_size",
    "max_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
}
QWEN_KEYS: Mapping[str, str] = {**KEYS, "window": "sliding_window"}
GEMMA_KEYS: Mapping[str, str] = {
    **KEYS,
    "query_size": "query_pre_attn_scalar",
    "attention_soft_cap": "attn_logit_softcapping",
    "logit_soft_cap": "final_logit_softcapping",
    "window": "sliding_window",
}
GPT2_KEYS: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "max_length": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
}
REQUIRED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
}
GEMMA_REQUIRED: Mapping[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "use_bidirectional_attention": False,
    "quantization_config": None,
}
GPT2_REQUIRED: Mapping[str, Any] = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "quantization_config": None,
}


def _linear(theirs: str, ours: str) -> tuple[Tensor, Tensor]:
    return (
        Tensor(f"{theirs}.weight", (f"{ours}.kernel",), transposed=True),
        Tensor(f"{theirs}.bias", (f"{ours}.bias",)),
    )


def _layered(norms: Mapping[str, str]) -> tuple[Tensor, ...]:
    """Llama's names, with a family's own for the norms around the blocks."""
    layer = "model.layers.{}."
    linear = {
        **{f"self_attn.{x[0]}_proj": f"attention.{x}" for x in ("query", "key")},
        "self_attn.v_proj": "attention.value",
        "self_attn.o_proj": "attention.out",
        **{f"mlp.{x}_proj": f"mlp.{x}" for x in ("gate", "up", "down")},
    }
    norms = {
        **norms,
        "self_attn.q_norm": "attention.query_norm",
        "self_attn.k_norm": "attention.key_norm",
    }
    return (
        Tensor("model.embed_tokens.weight", ("embedding",)),
        Tensor("model.norm.weight", ("norm.scale",)),
        Tensor("lm_head.weight", ("head",)),
        *(
            tensor
            for theirs, ours in linear.items()
            for tensor in _linear(f"{layer}{theirs}", f"blocks.{{}}.{ours}")
        ),
        *(
            Tensor(f"{layer}{theirs}.weight", (f"blocks.{{}}.{ours}.scale",))
            for theirs, ours in norms.items()
        ),
    )


LLAMA_TENSORS = _layered(
    {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
)
GEMMA_TENSORS = _layered(
    {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "attention_post_norm",
        "pre_feedforward_layernorm": "mlp_norm",
        "post_feedforward_layernorm": "mlp_post_norm",
    }
)
GEMMA = {
    "norm": "rms_offset",
    "post_norms": True,
    "scale_embeddings": True,
    "activation": "gelu_tanh",
}
# GPT-2 stores its matrices as [in, out], as we do.
GPT2_TENSORS = (
    Tensor("transformer.wte.weight", ("embedding",)),
    Tensor("transformer.wpe.weight", ("positions",)),
    Tensor("lm_head.weight", ("head",)),
    *(
        Tensor(f"transformer.{theirs}.{kind}", (f"{ours}.{leaf}",))
        for theirs, ours in {
            "ln_f": "norm",
            "h.{}.ln_1": "blocks.{}.attention_norm",
            "h.{}.ln_2": "blocks.{}.mlp_norm",
        }.items()
        for kind, leaf in (("weight", "scale"), ("bias", "bias"))
    ),
    *(
        Tensor(
            f"transformer.h.{{}}.{theirs}.{kind}",
            tuple(f"blocks.{{}}.{name}.{leaf}" for name in ours),
        )
        for theirs, ours in {
            "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
            "attn.c_proj": ("attention.out",),
            "mlp.c_fc": ("mlp.up",),
            "mlp.c_proj": ("mlp.down",),
        }.items()
        for kind, leaf in (("weight", "kernel"), ("bias", "bias"))
    ),
)

FAMILIES: Mapping[str, Family] = {
    family.architecture: family
    for family in (
        Family("LlamaForCausalLM", "llama", {}, KEYS, REQUIRED, LLAMA_TENSORS, "model"),
        Family(
            "Qwen2ForCausalLM",
            "qwen2",
            {"attention_bias": True},
            QWEN_KEYS,
            REQUIRED,
            LLAMA_TENSORS,
            "model",
        ),
        Family(
            "Qwen3ForCausalLM",
            "qwen3",
            {"qk_norm": True},
            QWEN_KEYS,
            REQUIRED,
            LLAMA_TENSORS,
            "model",
        ),
        Family(
            "Gemma2ForCausalLM",
            "gemma2",
            GEMMA,
            GEMMA_KEYS,
            GEMMA_REQUIRED,
            GEMMA_TENSORS,
            "model",
        ),
        Family(
            "Gemma3ForCausalLM",
            "gemma3_text",
            GEMMA | {"qk_norm": True},
            GEMMA_KEYS,
            GEMMA_REQUIRED,
            GEMMA_TENSORS,
            "model",
        ),
        Family(
            "GPT2LMHeadModel",
            "gpt2",
            {
                "learned_positions": True,
                "norm": "layer",
                "attention_bias": True,
                "linear_bias": True,
                "activation": "gelu_tanh",
                "gated_mlp": False,
            },
            GPT2_KEYS,
            GPT2_REQUIRED,
            GPT2_TENSORS,
            "transformer",
            rotary=False,
        ),
    )
}


def family_of(config: DecoderConfig) -> Family:
    """The one family whose structure this is.

    Raises:
      InputError: there is none.
    """
    defaults = {f: DecoderConfig.__dataclass_fields__[f].default for f in STRUCTURE}
    has = {field: getattr(config, field) for field in STRUCTURE}
    for family in FAMILIES.values():
        if has == defaults | dict(family.structure):
            return family
    unusual = {field: x for field, x in has.items() if x != defaults[field]}
    raise InputError(
        f"config must be one of the architectures {list(FAMILIES)} to be saved as a "
        f"Hugging Face folder, got {unusual or 'none of their structures'}"
    )


def tensors_of(config: DecoderConfig, paths: set[str]) -> dict[str, Tensor]:
    """The tensors that a folder of this configuration has, by name."""
    found = {}
    for tensor in family_of(config).tensors:
        for i in range(config.num_layers if "{}" in tensor.name else 1):
            ours = tuple(path.format(i) for path in tensor.paths)
            if ours[0] in paths:
                name = tensor.name.format(i)
                found[name] = Tensor(name, ours, tensor.transposed)
    return found


Refuse = Callable[[str, Any, Any], None]
"""``(key, needed, got)``: raises where the two differ."""


def rope_fields(hf: Any, family: Family, refuse: Refuse) -> dict[str, Any]:
    """Rotary positions and windows of a transformers configuration."""
    full = ["full_attention"] * hf.num_hidden_layers
    kinds = list(getattr(hf, "layer_types", None) or full)
    known = full
    if "window" in family.keys:
        local = "sliding_attention"
        known = [local if kind == local else "full_attention" for kind in kinds]
    refuse("layer_types", known, kinds)
    local = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    ropes = hf.rope_parameters
    fields: dict[str, Any] = {"local_layers": local}
    if "full_attention" in ropes:
        near = ropes["sliding_attention"]
        refuse("rope_type of sliding_attention", "default", near["rope_type"])
        fields["local_rope_theta"] = float(near["rope_theta"])
        ropes = ropes["full_attention"]
    refuse("partial_rotary_factor", 1.0, ropes.get("partial_rotary_factor", 1.0))
    fields["rope_theta"] = float(ropes["rope_theta"])
    kind = ropes.get("rope_type", "default")
    if kind == "default":
        return fields
    if kind not in ("linear", "llama3"):
        refuse(
            "rope_type (of rope_parameters or rope_scaling)",
            "default, linear or llama3",
            kind,
        )
    fields["rope_factor"] = float(ropes["factor"])
    if kind == "llama3":
        fields["rope_low"] = float(ropes["low_freq_factor"])
        fields["rope_high"] = float(ropes["high_freq_factor"])
        length = ropes["original_max_position_embeddings"]
        fields["rope_original_length"] = int(length)
    return fields


def rope_keys(config: DecoderConfig, family: Family) -> dict[str, Any]:
    """The keys that ``rope_fields`` reads."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_low is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_factor,
            "low_freq_factor": config.rope_low,
            "high_freq_factor": config.rope_high,
            "original_max_position_embeddings": config.rope_original_length,
        }
    elif config.rope_factor != 1:
        rope |= {"rope_type": "linear", "factor": config.rope_factor}
    if family.model_type == "gemma3_text":
        near = config.local_rope_theta or config.rope_theta
        rope = {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": near},
        }
    keys: dict[str, Any] = {"rope_parameters": rope}
    if config.window is not None:
        if family.keys is QWEN_KEYS:
            keys["use_sliding_window"] = True
        keys["layer_types"] = [
            "sliding_attention" if i in config.local_layers else "full_attention"
            for i in range(config.num_layers)
        ]
    return keys
