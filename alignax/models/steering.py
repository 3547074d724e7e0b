"""Vectors that are added to the residual stream, as one more part of the parameters.

So whatever samples, scores or differentiates a model does so with them: a cache, shared
prompts and slots know nothing of it.
"""

from jaxtyping import Array, Bool, Float, Int

from alignax._checks import Strength
from alignax.models import functional, students
from alignax.models.config import DecoderConfig
from alignax.types import InputError, Params


def steered(
    config: DecoderConfig,
    params: Params,
    vector: Float[Array, " d"],
    *,
    layer: int,
    strength: Strength = 1.0,
) -> Params:
    """Parameters of the model whose stream has a vector added behind a layer.

    It is added at each token that the model reads, the prompt's too, so that a cache
    and a full forward agree. The result is to be sampled and scored, not saved: a
    Hugging Face folder has no place for it and refuses it.

    Args:
      config: the architecture.
      params: of ``functional.init``'s structure; shared, not copied.
      vector: ``[d]``, of the hidden size.
      layer: from 0.
      strength: what the vector is multiplied by; 0 leaves every logit as it was, bit
        for bit.

    Returns:
      the parameters with the part ``steering``; a vector that the layer had before is
      replaced.

    Raises:
      InputError: there is no such layer, or the vector has another size.

    Reference:
      Rahn, D'Oro and Bellemare, "Controlling large language model agents with entropic
      activation steering", arXiv 2406.00244.

    Example:
      >>> import jax
      >>> sizes = dict(vocab_size=11, hidden_size=8, num_layers=2, num_heads=2)
      >>> more = dict(num_kv_heads=1, head_dim=4, mlp_size=16, max_length=32)
      >>> config = DecoderConfig(**sizes, **more)
      >>> params = functional.init(config, jax.random.key(0))
      >>> list(steered(config, params, jax.numpy.ones(8), layer=1)["steering"])
      ['1']
    """
    check_layer(config, layer)
    if vector.shape != (config.hidden_size,):
        raise InputError(
            f"vector must have the hidden size, {config.hidden_size}, got "
            f"{vector.shape}"
        )
    added = params.get("steering", {}) | {str(layer): strength * vector}
    return params | {"steering": added}


def residual(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "B S"],
    *,
    layer: int,
    mask: Bool[Array, "B S"] | None = None,
    logits_from: int = 0,
) -> Float[Array, "B N d"]:
    """The residual stream behind a layer, before any norm.

    Args:
      config: the architecture.
      params: of ``functional.init``'s structure; later layers are not computed.
      tokens: ``[B, S]``.
      layer: from 0.
      mask: True at real tokens; None for all.
      logits_from: the first position that is wanted.

    Returns:
      ``[B, S - logits_from, d]`` in the stream's dtype.

    Raises:
      InputError: there is no such layer.
    """
    check_layer(config, layer)
    config, params = students.from_layers(config, params, tuple(range(layer + 1)))
    options = {"mask": mask, "logits_from": logits_from, "final_norm": False}
    return functional.run(config, params, tokens, **options)[1]


def check_layer(config: DecoderConfig, layer: int) -> None:
    """Raise ``InputError`` where there is no such layer."""
    if not 0 <= layer < config.num_layers:
        raise InputError(
            f"layer must be one of the model's {config.num_layers}, from 0, got {layer}"
        )
