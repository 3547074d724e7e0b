"""A policy to train: a Hugging Face folder or a fresh decoder, whole or by adapters."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from alignax.models import functional, hf, lora
from alignax.models.config import DecoderConfig
from alignax.models.lora import LoRA
from alignax.pipeline import data, hosts, sharding
from alignax.types import ApplyFn, HiddenFn, InputError, Params, TrainState


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
    whole_fns: tuple[ApplyFn, HiddenFn] | None = None
    """Both functions of all parameters, which the adapters' are made of."""
    mesh: Mesh | None = None
    """What the parameters lie on; None for one device."""


def of_functions(
    policy: Policy, apply_fn: ApplyFn, hidden_fn: HiddenFn, base: Params
) -> tuple[ApplyFn, HiddenFn]:
    """Functions of the policy's parameters, from those of all parameters.

    Args:
      policy: that says which are trained.
      apply_fn: of all parameters.
      hidden_fn: of all parameters.
      base: the frozen ones, where adapters are trained.

    Returns:
      the two.
    """
    if policy.lora is None:
        return apply_fn, hidden_fn
    adapt = partial(lora.adapt, base=base, lora=policy.lora)
    return adapt(apply_fn), adapt(hidden_fn)


def with_functions(policy: Policy, apply_fn: ApplyFn, hidden_fn: HiddenFn) -> Policy:
    """The policy with other functions of the same model.

    Args:
      policy: whose parameters stay.
      apply_fn: of all parameters.
      hidden_fn: of all parameters.

    Returns:
      the policy.
    """
    own = of_functions(policy, apply_fn, hidden_fn, policy.base)
    return policy._replace(
        apply_fn=own[0], hidden_fn=own[1], whole_fns=(apply_fn, hidden_fn)
    )


def jitted(
    policy: Policy,
    build: Callable[..., Callable[..., Any]],
    *,
    frozen: Params = None,
    name: str = "run",
    donate: bool = False,
    static: Sequence[str] = (),
) -> Callable[..., Any]:
    """``build(apply_fn, hidden_fn)`` compiled, with a frozen base among its arguments.

    A base that a compiled function closes over is a constant of the program, which is
    folded, copied and kept once more for each of them.

    Args:
      policy: whose functions are given to ``build``.
      build: makes a function of arrays; it runs once for each compilation.
      frozen: further parameters that are none of the policy's, such as a teacher's:
        the third argument of ``build``, and of the program.
      name: of the function, in profiles and logs of compilations.
      donate: the function's first argument, such as a train state.
      static: names of arguments that are no arrays.

    Returns:
      the function. On a mesh it has ``lower``, which like that of ``jax.jit`` takes
      shapes as well as arrays, and runs nothing.
    """
    mesh = policy.mesh
    # Whole parameters are arguments already; the place stays, to count donations by.
    fns = policy.whole_fns or (policy.apply_fn, policy.hidden_fn)

    def run(held, *args, **options):
        base, *more = held
        with sharding.in_sight(mesh):
            return build(*of_functions(policy, *fns, base), *more)(*args, **options)

    run.__name__, run.__qualname__ = name, f"jitted.<locals>.{name}"
    how: dict[str, Any] = {
        "donate_argnums": 1 if donate else (),
        "static_argnames": tuple(static),
    }
    held = (policy.base,) if frozen is None else (policy.base, frozen)
    if mesh is None:
        return partial(jax.jit(run, **how), held)
    compiled: list[Any] = []

    def laid_out(args, options):
        free = {k: v for k, v in options.items() if k not in static}
        args, free = sharding.spread((args, free), mesh)
        if not compiled:
            # What comes out goes in again: its layout must not change.
            laid: dict[str, Any] = {}
            if donate:
                same = jax.tree.map(lambda x: x.sharding, args[0])
                laid["out_shardings"] = (same, sharding.replicated(mesh))
            compiled.append(jax.jit(run, **how, **laid))
        return compiled[0], (held, *args), options | free

    def spread(*args, **options):
        program, args, options = laid_out(args, options)
        return program(*args, **options)

    def lower(*args, **options):
        program, args, options = laid_out(args, options)
        return program.lower(*args, **options)

    program: Any = spread
    program.lower = lower
    return program


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
    fns = functional.make_apply(config), functional.make_hidden(config)
    if adapters is None:
        return Policy(config, params, *fns, tokenizer, whole_fns=fns)
    if key is None:
        raise InputError("key must be given: fresh adapters are drawn by it")
    fresh = lora.init(params, key, lora=adapters)
    policy = Policy(config, fresh, *fns, tokenizer, base=params, lora=adapters)
    return with_functions(policy, *fns)


def on_mesh(policy: Policy, mesh: Mesh | None) -> Policy:
    """The policy with its parameters laid out.

    Args:
      policy: the model.
      mesh: of ``sharding.make_mesh``; None leaves it as it is.

    Returns:
      the policy, whose compiled functions run on the mesh.
    """
    if mesh is None:
        return policy
    axes = functional.logical_axes(policy.config)

    def laid(params, axes):
        return sharding.put(params, sharding.param_shardings(params, axes, mesh))

    if policy.lora is None:
        return policy._replace(params=laid(policy.params, axes), mesh=mesh)
    base = laid(policy.base, axes)
    placed = policy._replace(
        params=laid(policy.params, lora.logical_axes(axes, policy.params)),
        base=base,
        mesh=mesh,
    )
    fns = policy.whole_fns or (
        functional.make_apply(policy.config),
        functional.make_hidden(policy.config),
    )
    return with_functions(placed, *fns)


def placed(policy: Policy, state: TrainState) -> TrainState:
    """A fresh train state on the policy's mesh.

    What has the shape of a parameter, such as a moment, lies as the parameter does;
    all else is whole on every device.

    Args:
      policy: whose parameters the state has.
      state: at step 0.

    Returns:
      the state.
    """
    mesh = policy.mesh
    if mesh is None:
        return state
    known = dict(jax.tree.leaves_with_path(policy.params))

    def leaf(path, x):
        # A moment's path ends with its parameter's.
        for start in range(len(path)):
            own = known.get(path[start:])
            if own is not None and own.shape == np.shape(x):
                return sharding.put(x, own.sharding)
        return sharding.put(x, sharding.replicated(mesh))

    return jax.tree.map_with_path(leaf, state)


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
    mesh: Mesh | None = None,
) -> Policy:
    """A policy from a local Hugging Face folder.

    Args:
      folder: the model's, with its tokenizer.
      length: tokens of the longest prompt and completion together; None for no check.
      adapters: train these in place of the parameters; None trains all.
      key: of the adapters' first values; needed by ``adapters``.
      param_dtype: what the parameters are converted to.
      dtype: of the computation.
      mesh: what the parameters are read onto, each device's piece for itself; None
        for the first device.

    Returns:
      the policy.

    Raises:
      InputError: the folder cannot be read, or the model's context is too short.
    """
    places = None
    if mesh is not None:
        config = hf.read_config(folder, param_dtype=param_dtype, dtype=dtype)
        shapes, axes = functional.shapes(config), functional.logical_axes(config)
        places = sharding.param_shardings(shapes, axes, mesh)
    config, params = hf.load(
        folder, param_dtype=param_dtype, dtype=dtype, shardings=places
    )
    if length is not None and config.max_length < length:
        raise InputError(
            f"length must fit the {config.max_length} tokens of {folder}, got {length}"
        )
    tokenizer = data.load_tokenizer(os.fspath(folder))
    policy = make(config, params, tokenizer, adapters=adapters, key=key)
    return on_mesh(policy, mesh)


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
    params = hosts.fetch(params)
    if jax.process_index() != 0:
        return
    if policy.lora is None:
        hf.save(folder, policy.config, params, source=source)
    else:
        params = jax.device_get(params)
        lora.save(folder, policy.config, params, policy.lora, base=source)
