"""A run's sampler and step, with all that its options say of who writes and teaches."""

import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alignax.pipeline import data, rewards
from alignax.train import compiling, engines
from alignax.train.assembly import Parts
from alignax.train.options import RL, algorithm_of
from alignax.train.policy import Policy
from alignax.train.runs import alignment, siblings, teaching, writing
from alignax.train.runs.siblings import Tell
from alignax.train.runs.writing import Writing
from alignax.train.turns import Environment
from alignax.types import InputError


def made(
    config: Any,
    records: data.Records,
    policy: Policy,
    tool: Environment | None,
    *,
    weights: tuple[float, ...] = (),
    mixture: bool = False,
) -> tuple[Parts, Tell | None]:
    """The parts of a run of ``rl.Config``.

    Args:
      config: settled.
      records: all that prompts are made of.
      policy: to train.
      tool: of ``writing.tool_of``.
      weights: of the teachers, where these are experts; else the options say them.
      mixture: whether experts are a mixture and not a product.

    Returns:
      the parts, and what fills in a teacher's word between sampling and the step.

    Raises:
      InputError: options do not fit together, or a folder or a file is bad.
    """
    algorithm, own = algorithm_of(config.rl), config.writing
    prompt_length, max_tokens = config.prompt_length or 1, config.max_tokens or 1
    taught = teaching.open_teachers(config.teaching, algorithm, policy)
    tell = alignment.teller(config, taught, records, policy)
    shares = teaching.weights_of(config.teaching, algorithm, records)
    parts = writing.make_parts(
        config.rl,
        policy,
        own,
        max_tokens=max_tokens,
        teacher=() if tell else taught,
        teacher_weights=jnp.asarray(weights, jnp.float32) if weights else shares,
        teacher_mixture=mixture,
        told_later=tell is not None,
        draft=writing.open_draft(own, policy, length=prompt_length + max_tokens),
    )
    if not (tell or config.teaching.teacher_sibling):
        # What is told later changes the step's shapes.
        parts = compiling.beside(parts)
    if own.engine is not None:
        engine = open_engine(own, config.rl, config.model.folder)
        temperature = config.rl.temperature
        parts = engines.sampled(
            parts, engine, policy, max_tokens=max_tokens, temperature=temperature
        )
    parts = writing.sampled(
        parts, own, tool, records, policy.tokenizer, max_tokens=max_tokens
    )
    return parts, tell or siblings.teller(config, parts, records, policy)


def open_engine(own: Writing, rl: RL, folder: Path) -> engines.Engine:
    """The engine of another library that writes a run's completions.

    Args:
      own: the options; ``engine`` is given.
      rl: of the method.
      folder: of the model that the run begins from.

    Returns:
      the engine.

    Raises:
      InputError: it is not installed or no engine, or what is asked for beside it is
        not its to do.
    """
    given = {
        "top_k": rl.top_k is not None,
        "top_p": rl.top_p is not None,
        "slots": rl.slots is not None,
        "stop": bool(own.stop),
        "several processes": jax.process_count() > 1,
    }
    bad = [name for name, asked in given.items() if asked]
    if bad:
        raise InputError(
            f"engine must be left out with {bad[0]}: an engine samples from all tokens "
            "to the model's own end, in one process"
        )
    if own.engine == "vllm":
        return engines.vllm(folder)
    function = rewards.load_function(own.engine or "", "engine")
    try:
        inspect.signature(function).bind(folder)
    except TypeError as error:
        raise InputError(
            f"engine: {own.engine} cannot be called with (folder): {error}."
        ) from error
    engine = function(folder)
    if not isinstance(engine, engines.Engine):
        raise InputError(
            f"engine: {own.engine} must return an alignax.train.engines.Engine, got "
            f"{type(engine).__name__}"
        )
    return engine
