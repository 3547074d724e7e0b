"""A policy to train: a Hugging Face folder or a fresh decoder, whole or by adapters."""

import os
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key

from alignax.models import functional, hf, lora
from alignax.models.config import DecoderConfig
from alignax.models.lora import LoRA
from alignax.pipeline import data
from alignax.types import ApplyFn, HiddenFn, InputError, Params


class Policy(NamedTuple):
    """A model as two functions of ``params``, the parameters that are trained: all of
    them, or the adapters of a frozen ``base``, whose first state is the base itself and
    so the reference, without a copy of it."""

    config: DecoderConfig
    params: Params
    apply_fn: ApplyFn
    hidden_fn: HiddenFn
    tokenizer: data.Tokenizer
    base: Params = None
    lora: LoRA | None = None


def make(
    config: DecoderConfig,
    params: Params,
    tokenizer: data.Tokenizer,
    *,
    adapters: LoRA | None = None,
    key: Key[Array, ""] | None = None,
) -> Policy:
    """A policy from a decoder's parameters.

    Args:
      config: the architecture.
      params: of the decoder.
      tokenizer: its own.
      adapters: train these in place of the parameters; None trains all.
      key: of the adapters' first values; needed by ``adapters``.

    Returns:
      the policy.

    Raises:
      InputError: adapters without a key.
    """
    apply_fn, hidden_fn = functional.make_apply(config), functional.make_hidden(config)
    if adapters is None:
        return Policy(config, params, apply_fn, hidden_fn, tokenizer)
    if key is None:
        raise InputError("key must be given: fresh adapters are drawn by it")
    return Policy(
        config,
        lora.init(params, key, lora=adapters),
        lora.adapt(apply_fn, params, lora=adapters),
        lora.adapt(hidden_fn, params, lora=adapters),
        tokenizer,
        base=params,
        lora=adapters,
    )


def whole(policy: Policy, params: Params) -> Params:
    """The decoder's parameters: adapters merged into their base.

    Args:
      policy: that they are of.
      params: its parameters now.

    Returns:
      of ``policy.config``, in the base's dtypes.
    """
    if policy.lora is None:
        return params
    return lora.merge(policy.base, params, lora=policy.lora)


def load(
    folder: str | os.PathLike[str],
    *,
    length: int | None = None,
    adapters: LoRA | None = None,
    key: Key[Array, ""] | None = None,
    param_dtype: str = "float32",
    dtype: str = "float32",
) -> Policy:
    """A policy from a local Hugging Face folder.

    Args:
      folder: the model's, with its tokenizer.
      length: tokens of the longest prompt and completion together; None for no check.
      adapters: train these in place of the parameters; None trains all.
      key: of the adapters' first values; needed by ``adapters``.
      param_dtype: what the parameters are converted to.
      dtype: of the computation.

    Returns:
      the policy.

    Raises:
      InputError: the folder cannot be read, or the model's context is too short.
    """
    config, params = hf.load(folder, param_dtype=param_dtype, dtype=dtype)
    if length is not None and config.max_length < length:
        raise InputError(
            f"length must fit the {config.max_length} tokens of {folder}, got {length}"
        )
    tokenizer = data.load_tokenizer(os.fspath(folder))
    return make(config, params, tokenizer, adapters=adapters, key=key)


def save(
    policy: Policy, params: Params, folder: Any, *, source: os.PathLike[str] | str
) -> None:
    """Write what was trained: a Hugging Face folder, or adapters in PEFT's format.

    Args:
      policy: that was trained.
      params: its parameters now.
      folder: to write.
      source: the folder that the policy came from, for its tokenizer; adapters name
        it as their base.
    """
    if policy.lora is None:
        hf.save(folder, policy.config, params, source=source)
    else:
        params = jax.device_get(params)
        lora.save(folder, policy.config, params, policy.lora, base=source)
