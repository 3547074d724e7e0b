"""Who teaches a run of policy gradients: another model, or the policy told more."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignax import divergences
from alignax.algorithms import Algorithm, stages
from alignax.pipeline import data
from alignax.train import folders, vocabularies
from alignax.train.policy import Policy
from alignax.train.runs import setting
from alignax.train.runs.options import Dtype
from alignax.types import InputError, Prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teaching:
    """A teacher of the tokens that the policy writes, or several."""

    teacher: tuple[Path, ...] = ()
    """Another model's folder, of any size, with the policy's vocabulary. The divergence
    is then measured from it in place of the reference, whatever the method (opd, kdrl);
    g_opd and rto read both. Several folders teach together."""
    teacher_weights: tuple[float, ...] = ()
    """Weights of several teachers, in their order, which are divided by their sum; by
    default equal."""
    teacher_field: str | None = None
    """Field of the records that names the one teacher of each prompt, by the last part
    of its folder, in place of weights."""
    align_text: bool = False
    """The teacher may have any tokenizer, its own reads what the policy has written,
    and the two are compared by the chunks of text that both write whole; of opd
    alone. Off, a teacher of another vocabulary is refused."""
    teacher_dtype: Dtype = "float32"
    """Of the teachers' parameters and computation."""
    teacher_context: str | None = None
    """Field of the records, such as solution, that the policy is shown before the
    prompt where it is its own teacher (opsd, sdft, sdpo), and does not see as it
    writes."""
    teacher_sibling: bool = False
    """In place of a field the policy is shown one of its own completions of the prompt
    that was right, by the reward (sdpo); prompts without one teach nothing."""

    def __post_init__(self):
        weights, count = self.teacher_weights, len(self.teacher)
        if weights and len(weights) != count:
            raise InputError(
                f"teacher_weights must be one for each of the {count} teachers, got "
                f"{', '.join(map(str, weights))}"
            )
        if not all(0 < weight < math.inf for weight in weights):
            raise InputError(
                "teacher_weights must be positive and finite, got "
                f"{', '.join(map(str, weights))}"
            )
        if self.align_text and count != 1:
            raise InputError(
                f"align_text is of one teacher, whose folder must be given, got {count}"
            )
        names = [folder.name for folder in self.teacher]
        if self.teacher_field is None:
            return
        if weights:
            raise InputError(
                "teacher_weights must be left out with teacher_field, by which each "
                "prompt has one teacher"
            )
        if count < 2 or len(set(names)) < count:
            raise InputError(
                "teacher_field names one of several teachers by the last part of its "
                f"folder, which must differ, got {', '.join(names) or 'none'}"
            )


def reads_rewards(algorithm: Algorithm) -> bool:
    """Whether a method learns from rewards, and not from a teacher alone."""
    return algorithm.shape is not stages.no_rewards


def worthless(completions: Sequence[str], records: Any) -> np.ndarray:
    """The reward where a teacher alone says what is good.

    Args:
      completions: any.
      records: theirs.

    Returns:
      zeros.
    """
    return np.zeros(len(completions), np.float32)


def open_teachers(
    teaching: Teaching, algorithm: Algorithm, policy: Policy
) -> list[Policy]:
    """The teachers of a run, of other models; none where there are none.

    Args:
      teaching: the options.
      algorithm: the method.
      policy: the student.

    Returns:
      the other models' policies.

    Raises:
      InputError: the method needs what is not given, or cannot use what is; or the
        teacher has another vocabulary.
    """
    itself = algorithm.sampling.taught is not None
    told = (teaching.teacher_context is not None) + teaching.teacher_sibling
    if itself and told != 1:
        raise InputError(
            "teacher_context must be given, or else teacher_sibling: the method's "
            "teacher is the policy itself, shown a field of the record such as "
            "solution, or one of its own completions that was right"
        )
    if not itself and teaching.teacher_sibling:
        raise InputError(
            "teacher_sibling is of methods whose teacher is the policy itself, opsd, "
            "sdft and sdpo"
        )
    if not itself and teaching.teacher_context is not None:
        raise InputError(
            "teacher_context is of methods whose teacher is the policy itself, opsd, "
            f"sdft and sdpo, got {teaching.teacher_context!r}"
        )
    if not teaching.teacher:
        if not itself and not reads_rewards(algorithm):
            raise InputError(
                "teacher must be given: the method learns from another model alone; "
                "a folder of the policy's vocabulary would do"
            )
        return []
    if itself:
        raise InputError(
            f"teacher must be left out, got {teaching.teacher[0]}: the method's "
            "teacher is the policy itself; opd would do"
        )
    return [_opened(teaching, folder, policy) for folder in teaching.teacher]


def _opened(teaching: Teaching, folder: Path, policy: Policy) -> Policy:
    teacher = folders.open_policy(
        folder,
        param_dtype=teaching.teacher_dtype,
        dtype=teaching.teacher_dtype,
        mesh=policy.mesh,
    )
    if teaching.align_text:
        return teacher
    columns = vocabularies.check_same(
        policy,
        teacher,
        folder,
        instead=", or `train rl --method opd --align-text`, which takes any",
    )
    if teacher.config.vocab_size != columns or policy.config.vocab_size != columns:
        raise InputError(
            f"teacher must have a head of the policy's {policy.config.vocab_size} "
            f"rows, got {teacher.config.vocab_size} in {folder}: the tokens "
            "are the same, what pads them is not; `alignax train distil` takes it"
        )
    return teacher


def weights_of(
    teaching: Teaching, algorithm: Algorithm, records: data.Records
) -> Float[Array, "*R N"] | None:
    """How much each of several teachers says of each record's completions.

    Args:
      teaching: the options.
      algorithm: the method.
      records: all that prompts are made of.

    Returns:
      ``[N]`` of all records, or ``[R, N]`` with a one for each record's own teacher;
      None where one teaches.

    Raises:
      InputError: a record names no teacher, or weights are asked of a divergence that
        sampled tokens do not add up to.
    """
    names = [folder.name for folder in teaching.teacher]
    if len(names) < 2:
        return None
    if teaching.teacher_field is None:
        regulariser = algorithm.regulariser
        if (
            regulariser is not None
            and not regulariser.over_vocabulary
            and regulariser.divergence != divergences.reverse_kl()
        ):
            raise InputError(
                f"divergence {regulariser.divergence.name} from several teachers at "
                "once is not what sampled tokens say of their product; reverse_kl, "
                "form exact in the loss, or teacher_field would do"
            )
        weights = np.asarray(teaching.teacher_weights or [1.0] * len(names), np.float32)
        return jnp.asarray(weights / weights.sum())
    whose = []
    for number in range(len(records)):
        name = records[number].get(teaching.teacher_field)
        if name not in names:
            raise InputError(
                f"teacher_field: record {number} has {name!r} in the field "
                f"{teaching.teacher_field!r}; the teachers are {', '.join(names)}"
            )
        whose.append(names.index(name))
    return jnp.eye(len(names), dtype=jnp.float32)[jnp.asarray(whose)]


def _told(record: Mapping[str, Any], field: str, number: int) -> dict[str, Any]:
    """The record whose prompt begins with the field's text."""
    text = record.get(field)
    if not isinstance(text, str) or not text:
        raise InputError(
            f"teacher_context: record {number} has no text in the field {field!r}; its "
            f"fields are {', '.join(record)}"
        )
    return with_text(record, text)


def with_text(record: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A record whose prompt begins with a text and an empty line.

    Args:
      record: with a prompt, a text or messages; of messages the last one is changed.
      text: to begin with.

    Returns:
      the record.
    """
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
    if teaching.teacher_sibling:
        # What was right is known when all is written: until then the prompt stands in.
        return lambda prompts: dataclasses.replace(
            prompts, guide=prompts.tokens, guide_mask=prompts.mask
        )
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
