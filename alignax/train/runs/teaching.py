"""Who teaches a run of policy gradients: another model, or the policy told more."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alignax.algorithms import Algorithm, stages
from alignax.pipeline import data
from alignax.train import folders, vocabularies
from alignax.train.policy import Policy
from alignax.train.runs import setting
from alignax.train.runs.options import Dtype
from alignax.types import InputError, Prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teaching:
    """A teacher of the tokens that the policy writes."""

    teacher: Path | None = None
    """Another model's folder, of any size, with the policy's vocabulary. The divergence
    is then measured from it in place of the reference, whatever the method (opd, kdrl);
    g_opd and rto read both."""
    teacher_dtype: Dtype = "float32"
    """Of the teacher's parameters and computation."""
    teacher_context: str | None = None
    """Field of the records, such as solution, that the policy is shown before the
    prompt where it is its own teacher (opsd, sdft, sdpo), and does not see as it
    writes."""


def reads_rewards(algorithm: Algorithm) -> bool:
    """Whether a method learns from rewards, and not from a teacher alone."""
    return algorithm.shape is not stages.no_rewards


def open_teacher(teaching: Teaching, algorithm: Algorithm, policy: Policy):
    """The teacher of a run, or None.

    Args:
      teaching: the options.
      algorithm: the method.
      policy: the student.

    Returns:
      the other model's policy.

    Raises:
      InputError: the method needs what is not given, or cannot use what is; or the
        teacher has another vocabulary.
    """
    itself = algorithm.sampling.taught is not None
    if itself and teaching.teacher_context is None:
        raise InputError(
            "teacher_context must be given: the method's teacher is the policy itself, "
            "shown a field of the record such as solution"
        )
    if not itself and teaching.teacher_context is not None:
        raise InputError(
            "teacher_context is of methods whose teacher is the policy itself, opsd, "
            f"sdft and sdpo, got {teaching.teacher_context!r}"
        )
    if teaching.teacher is None:
        if not itself and not reads_rewards(algorithm):
            raise InputError(
                "teacher must be given: the method learns from another model alone; "
                "a folder of the policy's vocabulary would do"
            )
        return None
    if itself:
        raise InputError(
            f"teacher must be left out, got {teaching.teacher}: the method's teacher "
            "is the policy itself; opd would do"
        )
    teacher = folders.open_policy(
        teaching.teacher,
        param_dtype=teaching.teacher_dtype,
        dtype=teaching.teacher_dtype,
    )
    columns = vocabularies.check_same(policy, teacher, teaching.teacher)
    if teacher.config.vocab_size != columns or policy.config.vocab_size != columns:
        raise InputError(
            f"teacher must have a head of the policy's {policy.config.vocab_size} "
            f"rows, got {teacher.config.vocab_size} in {teaching.teacher}: the tokens "
            "are the same, what pads them is not; `alignax train distil` takes it"
        )
    return teacher


def _told(record: Mapping[str, Any], field: str, number: int) -> dict[str, Any]:
    """The record whose prompt begins with the field's text."""
    text = record.get(field)
    if not isinstance(text, str) or not text:
        raise InputError(
            f"teacher_context: record {number} has no text in the field {field!r}; its "
            f"fields are {', '.join(record)}"
        )
    prompt = record["prompt"]
    if isinstance(prompt, str):
        return {**record, "prompt": f"{text}\n\n{prompt}"}
    *before, last = prompt
    told = {**last, "content": f"{text}\n\n{last['content']}"}
    return {**record, "prompt": [*before, told]}


def guide_of(
    teaching: Teaching,
    records: data.Records,
    policy: Policy,
    *,
    max_tokens: int,
) -> Callable[[Prompts], Prompts]:
    """What gives each prompt the one that its teacher sees.

    Args:
      teaching: the options, with a context.
      records: all that prompts are made of.
      policy: its own teacher.
      max_tokens: of a completion.

    Returns:
      ``prompts -> prompts`` with guides.

    Raises:
      InputError: a record lacks the field, or the longest prompt with its context does
        not fit the model.
    """
    field, tokenizer = teaching.teacher_context or "", policy.tokenizer
    texts = [
        data.prompt_text(_told(records[i], field, i), tokenizer)
        for i in range(len(records))
    ]
    length = data.lengths(
        texts, tokenizer, percentile=100.0, multiple=setting.MULTIPLE
    ).prompt
    if length + max_tokens > policy.config.max_length:
        raise InputError(
            f"teacher_context: the longest prompt behind its {field} has {length} "
            f"tokens, which with max_tokens {max_tokens} do not fit the "
            f"{policy.config.max_length} of the model"
        )

    def guide(prompts: Prompts) -> Prompts:
        shown = data.encode_prompts(
            [texts[int(i)] for i in np.asarray(prompts.index)],
            tokenizer,
            length=length,
        )
        return dataclasses.replace(prompts, guide=shown.tokens, guide_mask=shown.mask)

    return guide
