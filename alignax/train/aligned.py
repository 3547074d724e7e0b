"""A teacher with another tokenizer: it reads the text of what the policy wrote.

    sampled tokens ─▶ text ─▶ the teacher's tokens ─▶ its scores ─▶ chunks ─▶ logp_ref

The host makes the texts between sampling and updating, where it judges them, and the
device the rest (``alignax.distillation.chunks``).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alignax import distillation, estimators, reduce
from alignax.pipeline import data
from alignax.pipeline import rollout as rollouts
from alignax.pipeline.data.rows import prompt_ids
from alignax.train import policy as policies
from alignax.train.policy import Policy
from alignax.types import InputError, Rollout, Scored, TrainState

Tell = Callable[[TrainState, Scored], tuple[Scored, dict[str, Any]]]
LEAST = 16
"""Width of the teacher's rows at the least; they are widened by doubling, so that few
programs are compiled."""


def taught(
    logp_old: Float[Array, "B T"],
    logp_teacher: Float[Array, "B S"],
    ours: tuple[Int[Array, "B T"], Bool[Array, "B T"]],
    theirs: tuple[Int[Array, "B S"], Bool[Array, "B S"]],
    trained: Bool[Array, "B T"],
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"], dict[str, Array]]:
    """What a teacher of other tokens says of the policy's, and of which of them.

    Args:
      logp_old: the policy's, when the update begins.
      logp_teacher: the teacher's, of its own tokens of the texts.
      ours: where the policy's tokens end, and which of them are text, as
        ``chunk_ids`` takes them.
      theirs: likewise of the teacher's.
      trained: the tokens that the policy wrote itself; a chunk of which one is not is
        left out.

    Returns:
      ``logp_ref [B, T]``, as ``distillation.chunk_logp`` and ``logp_old`` where nothing
      is said; ``told [B, T]``, where something is; and metrics: ``kl``, k3 of chunks
      summed over each completion, ``aligned``, the share of the policy's tokens that
      are in a chunk, and ``chunk``, how many of them are in one.
    """
    ids = distillation.chunk_ids(*ours, *theirs)
    other = distillation.chunk_ids(*theirs, *ours)
    size = ids.shape[-1]

    def summed(values, ids):
        return distillation.chunk_sums(values, ids, chunks=size)

    known = summed(trained.astype(jnp.float32), ids)
    whole = (known > 0) & (summed((~trained).astype(jnp.float32), ids) == 0)
    told = jnp.take_along_axis(whole, jnp.maximum(ids, 0), axis=-1) & (ids >= 0)
    found = distillation.chunk_logp(logp_old, ids, logp_teacher, other)
    k3 = estimators.k3(summed(logp_old, ids), summed(logp_teacher, other), whole)
    tokens = jnp.sum(told, dtype=jnp.float32)
    metrics = {
        "kl": jnp.sum(k3) / len(k3),
        "aligned": reduce.divide(tokens, jnp.sum(trained, dtype=jnp.float32)),
        "chunk": reduce.divide(tokens, jnp.sum(whole, dtype=jnp.float32)),
    }
    return jnp.where(told, found, logp_old), told, metrics


def make_tell(
    policy: Policy,
    teacher: Policy,
    records: data.Records,
    *,
    completions: int,
    prompt_length: int,
) -> Tell:
    """What fills in the log-probabilities of a teacher with another tokenizer.

    The teacher reads each record's prompt as its own tokenizer and template write it,
    behind it the completion's text, and its own end where the policy ended; at the
    temperature that the policy wrote at.

    Args:
      policy: the student.
      teacher: any other model.
      records: all that prompts are made of.
      completions: K of each prompt.
      prompt_length: tokens of the teacher's longest prompt.

    Returns:
      ``(state, scored) -> (scored, metrics)``, for ``tasks.host_step``: ``logp_ref``
      and ``rollout.told`` filled as ``taught`` has it.

    Raises:
      InputError: the teacher's longest prompt leaves no room for a completion.
    """
    most = teacher.config.max_length - prompt_length
    if most < 1:
        raise InputError(
            f"align_text: the longest prompt has {prompt_length} tokens of the "
            f"teacher's, whose context of {teacher.config.max_length} leaves no room "
            "for a completion; shorter prompts would do"
        )
    tokenizer = teacher.tokenizer
    align = data.make_align(policy.tokenizer, tokenizer)
    shared = completions if teacher.config.attention == "xla" else 1

    def build(apply_fn, hidden_fn):
        score = rollouts.score_by_hidden(hidden_fn, completions=shared)

        def read(params, rollout, logp_old, ours, theirs, trained):
            scores = score(params, rollout)
            logp = scores.logp + scores.log_mass
            return taught(logp_old, logp, ours, (theirs, rollout.trained), trained)

        return read

    read = policies.jitted(teacher, build, name="read")

    def tell(state: TrainState, scored: Scored) -> tuple[Scored, dict[str, Any]]:
        del state
        rollout = scored.rollout
        tokens, attended = np.asarray(rollout.tokens), np.asarray(rollout.attended)
        finished = np.asarray(rollout.finished)
        found = [
            align(row[known].tolist(), bool(ended), most)
            for row, known, ended in zip(tokens, attended, finished, strict=True)
        ]
        ends, mask = np.zeros(tokens.shape, np.int32), np.zeros(tokens.shape, bool)
        for row, (each, known) in enumerate(zip(found, attended, strict=True)):
            places = np.flatnonzero(known)[: len(each.ends)]
            ends[row, places], mask[row, places] = each.ends, True
        longest = max(len(each.other) for each in found)
        width = min(max(LEAST, 1 << (longest - 1).bit_length()), most)
        other, theirs, theirs_mask = _rows(found, width, tokenizer.pad_id)
        prompts = data.encode_prompts(
            [data.prompt_text(records[int(i)], tokenizer) for i in scored.index],
            tokenizer,
            length=prompt_length,
        )
        shown = Rollout(
            tokens=other,
            attended=theirs_mask,
            trained=theirs_mask,
            temperature=rollout.temperature,
            prompt_tokens=jnp.repeat(prompts.tokens, completions, axis=0),
            prompt_mask=jnp.repeat(prompts.mask, completions, axis=0),
        )
        logp, told, metrics = read(
            teacher.params,
            shown,
            scored.logp_old,
            (ends, mask),
            theirs,
            rollout.trained,
        )
        rollout = dataclasses.replace(rollout, told=told)
        return dataclasses.replace(scored, rollout=rollout, logp_ref=logp), metrics

    return tell


def _rows(found, width, pad_id):
    """The other tokenizer's tokens, their ends and which there are."""
    tokens = np.full((len(found), width), pad_id, np.int32)
    ends, mask = np.zeros(tokens.shape, np.int32), np.zeros(tokens.shape, bool)
    for row, each in enumerate(found):
        count = len(each.other)
        tokens[row, :count], ends[row, :count] = each.other_ids, each.other
        mask[row, :count] = True
    return tokens, ends, mask


def longest_prompt(records: data.Records, tokenizer: data.Tokenizer) -> int:
    """Tokens of the longest prompt, as a tokenizer and its template write it.

    Args:
      records: with a prompt each.
      tokenizer: any.

    Returns:
      how many.

    Raises:
      InputError: a prompt is of messages, and the tokenizer has no template.
    """

    def text(number):
        where = f"record {number} for the teacher"
        return data.prompt_text(records[number], tokenizer, where=where)

    return max(len(prompt_ids(text(i), tokenizer)) for i in range(len(records)))
