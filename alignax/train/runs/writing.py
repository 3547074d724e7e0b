"""How the completions of a run are written: a forced beginning, tools, parts."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
from jaxtyping import Array, Float

from alignax.pipeline import data, rewards
from alignax.train import assembly, drafts, folders, stops, turns
from alignax.train import partial as parts_of_completions
from alignax.train.assembly import Parts
from alignax.train.options import RL
from alignax.train.policy import Policy
from alignax.train.turns import Environment
from alignax.train.vocabularies import check_same
from alignax.types import InputError, Rollout

TOOLS: dict[str, tuple[Environment, tuple[str, ...]]] = {
    "calculator": (turns.calculator, ("=",))
}
"""Tools by name, each with the texts at which a turn stops for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """What else than one plain turn a completion is made of."""

    stop: tuple[str, ...] = ()
    """Texts that end a completion, or a turn, beside the model's own end, such as
    </answer>."""
    prefix: str = ""
    """A text that every completion begins with, such as <think>: read by the model and
    not trained."""
    tool: str | None = None
    """What answers the policy between its turns: calculator, which computes <<48/2= and
    goes on behind any other equals sign; retry=TEXT, which says so where the reward is
    below right_at; or FILE.py:function (texts, records, turn) -> texts, None at the
    end. Answers are read and not trained."""
    turns: int = 4
    """Turns of the policy in a completion, with a tool, at the most."""
    answer_tokens: int = 32
    """Tokens of a tool's answer; a longer one cuts its completion."""
    part_tokens: int | None = None
    """Tokens that are written at once: of a turn, with a tool, by default the
    completion's divided among its turns; without one of a step, which leaves longer
    completions to be gone on with in the next steps (partial rollouts)."""
    draft: Path | None = None
    """The folder of a small model of the same vocabulary that drafts what the policy
    then accepts or replaces: the same law, with fewer passes of the policy. It stays as
    it is."""
    draft_tokens: int = 4
    """How many tokens are drafted at a time."""
    engine: str | None = None
    """Another library that writes the completions with the policy's weights: vllm, on
    the same GPU, or FILE.py:function (folder) -> alignax.train.engines.Engine. What it
    says of its draws is what ratios correct for with methods such as tis; sampler_kl
    in the log says how far it is from the trainer."""

    def __post_init__(self):
        for name in ("turns", "answer_tokens", "part_tokens", "draft_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.draft and (self.tool is not None or self.part_tokens is not None):
            raise InputError(
                "draft must be left out with tool or part_tokens: what is written in "
                "turns or over several steps is sampled without one"
            )
        for name in ("tool", "part_tokens", "draft"):
            if self.engine is not None and getattr(self, name) is not None:
                raise InputError(
                    f"engine must be left out with {name}: it writes one turn in one "
                    "step"
                )

    def at_once(self, max_tokens: int) -> int:
        """Tokens that are written at once of a completion of ``max_tokens``."""
        if self.part_tokens is not None:
            return min(self.part_tokens, max_tokens)
        return max_tokens if self.tool is None else -(-max_tokens // self.turns)

    def beyond(self, max_tokens: int) -> int:
        """Tokens of the context that a completion asks for beyond its own."""
        if self.draft is not None:
            return min(self.draft_tokens, max_tokens)
        once = self.at_once(max_tokens)
        return once if self.tool is not None or once < max_tokens else 0


def tool_of(
    text: str | None,
    reward: rewards.Reward,
    tokenizer: data.Tokenizer,
    *,
    right_at: float,
) -> Environment | None:
    """A tool from its spelling.

    Args:
      text: as ``Writing.tool`` has it.
      reward: the run's, for ``retry``.
      tokenizer: the policy's; its chat template makes ``retry``'s text a turn.
      right_at: the reward from which on nothing is left to try.

    Returns:
      the environment; None of none.

    Raises:
      InputError: there is none of that name, or the file's function cannot be called.
    """
    if text is None:
        return None
    if text in TOOLS:
        return TOOLS[text][0]
    if text.startswith("retry="):
        said = turns.told(tokenizer, text.removeprefix("retry="))
        return turns.hints(reward, lambda *_: said, right=right_at)
    if ".py" not in text:
        raise InputError(
            f"tool: {text!r} was given; {', '.join(TOOLS)}, retry=TEXT or "
            "FILE.py:function would do."
        )
    function = rewards.load_function(text, "tool")
    try:
        inspect.signature(function).bind([], [], 0)
    except TypeError as error:
        raise InputError(
            f"tool: {text} cannot be called with (texts, records, turn): {error}."
        ) from error
    return function


def make_parts(
    rl: RL,
    policy: Policy,
    writing: Writing,
    *,
    max_tokens: int,
    teacher: Sequence[Policy] = (),
    teacher_weights: Float[Array, "*R N"] | None = None,
    teacher_mixture: bool = False,
    draft: drafts.Draft | None = None,
    told_later: bool = False,
) -> assembly.Parts:
    """``assembly.of_policy``, for what is written at once.

    Args:
      rl: the options of the method.
      policy: to train.
      writing: how.
      max_tokens: of a completion.
      teacher: other models, as in ``assembly.of_policy``.
      teacher_weights: as in ``assembly.make``.
      teacher_mixture: likewise.
      draft: of ``open_draft``.
      told_later: likewise.

    Returns:
      the parts; ``sampled`` makes their sampler that of whole completions.

    Raises:
      InputError: as ``assembly.make``.
    """
    tokenizer = policy.tokenizer
    texts = writing.stop
    if writing.tool in TOOLS:
        texts += tuple(x for x in TOOLS[writing.tool][1] if x not in texts)
    return assembly.of_policy(
        rl,
        policy,
        max_tokens=writing.at_once(max_tokens),
        stops=stops.table(texts, tokenizer) if texts else None,
        teacher=teacher,
        teacher_weights=teacher_weights,
        teacher_mixture=teacher_mixture,
        draft=draft,
        told_later=told_later,
        prefix=tokenizer.encode(writing.prefix) if writing.prefix else (),
    )


def open_draft(writing: Writing, policy: Policy, *, length: int) -> drafts.Draft | None:
    """The draft of a run, on the policy's devices; None without one.

    Args:
      writing: the options.
      policy: to train.
      length: tokens of the longest prompt and completion.

    Returns:
      the draft.

    Raises:
      InputError: it has another vocabulary, or no room for as many tokens and those
        that are drafted.
    """
    folder = writing.draft
    if folder is None:
        return None
    precision = {"param_dtype": policy.config.dtype, "dtype": policy.config.dtype}
    small = folders.open_policy(folder, mesh=policy.mesh, **precision)
    check_same(policy, small, folder, names=("model", "draft"))
    most = length + writing.draft_tokens
    if most > small.config.max_length:
        raise InputError(
            f"prompt_length + max_tokens + draft_tokens must fit the "
            f"{small.config.max_length} tokens of {folder}, got {most}"
        )
    return drafts.Draft(small, writing.draft_tokens, folder)


def sampled(
    parts: Parts,
    writing: Writing,
    tool: Environment | None,
    records: data.Records,
    tokenizer: data.Tokenizer,
    *,
    max_tokens: int,
) -> Parts:
    """Parts that sample whole completions, of several turns or steps.

    Args:
      parts: of ``make_parts``.
      writing: how.
      tool: of ``tool_of``.
      records: all that prompts are made of.
      tokenizer: the policy's.
      max_tokens: of a completion.

    Returns:
      the parts.

    Raises:
      InputError: the method samples by a rule of its own.
    """
    if tool is not None:
        write = _writer(parts, writing, tool, records, tokenizer, max_tokens)
        return parts._replace(sample=turns.make_sampler(parts, write))
    if writing.at_once(max_tokens) < max_tokens:
        return parts_of_completions.in_parts(parts, max_tokens=max_tokens)
    return parts


def _writer(parts, writing, tool, records, tokenizer, max_tokens):
    return turns.make_writer(
        parts,
        tool,
        records,
        tokenizer,
        turns=writing.turns,
        max_tokens=max_tokens,
        answer_tokens=writing.answer_tokens,
    )


def check_processes(writing: Writing, *, rounds: int) -> None:
    """Refuse what looks at rows between two programs, and so needs all of them.

    Args:
      writing: how completions are written.
      rounds: of further prompts in a step.

    Raises:
      InputError: there are several processes, and it is asked for.
    """
    given = {
        "tool": writing.tool is not None,
        "part_tokens": writing.part_tokens is not None,
        "rounds": rounds > 0,
    }
    bad = [name for name, asked in given.items() if asked]
    if bad and jax.process_count() > 1:
        raise InputError(
            f"{bad[0]} is not there on several processes; leave it out, or run on one"
        )


def to_measure(
    rl: RL,
    policy: Policy,
    writing: Writing,
    tool: Environment | None,
    records: data.Records,
    *,
    max_tokens: int,
) -> Callable[..., Rollout] | None:
    """``(params, key, prompts) -> rollout``: one completion of each, of the whole law.

    Args:
      rl: the options of the method.
      policy: to measure.
      writing: how.
      tool: of ``tool_of``.
      records: that the prompts' index counts in.
      max_tokens: of a completion.

    Returns:
      what writes; None where it is one plain turn.
    """
    if tool is None and not writing.prefix:
        return None
    rl = dataclasses.replace(rl, temperature=1.0, top_k=None, top_p=None)
    if tool is None:
        writing = dataclasses.replace(writing, part_tokens=None)
    parts = make_parts(rl, policy, writing, max_tokens=max_tokens)
    if tool is None:
        return partial(parts.generate, completions=1)
    parts = parts._replace(completions=1)
    return _writer(parts, writing, tool, records, policy.tokenizer, max_tokens)
