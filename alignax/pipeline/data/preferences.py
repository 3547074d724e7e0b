"""Preference records: pairs, conversations and labelled completions.

The field's formats:

====================  ==========================================================
fields                a record
====================  ==========================================================
``PAIRS``             ``prompt``, ``chosen``, ``rejected``: texts, or messages
``CONVERSATIONS``     ``chosen``, ``rejected``: messages, alike but for the last
``UNPAIRED``          ``prompt``, ``completion``, and a ``label`` true or false
====================  ==========================================================

Messages become texts through the tokenizer's chat template, the answer as a ``Turn``
that ends as the template ends it; plain answers get ``eos_id``.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from alignax.pipeline.data.rows import Turn, encode_supervised
from alignax.pipeline.data.tokenizers import Tokenizer
from alignax.types import InputError, Supervised

PAIRS = ("prompt", "chosen", "rejected")
CONVERSATIONS = ("chosen", "rejected")
UNPAIRED = ("prompt", "completion", "label")
TEXTS = {"messages", *PAIRS, *UNPAIRED}


Sides = tuple[Array, Array]


class PairRows(NamedTuple):
    """N pairs for teacher forcing; both sides have one width and one ``index``.

    The rest is what some losses need, of the chosen side and of the rejected:
    ``logp_ref [N, S - 1]`` under the reference, ``weights [N, S - 1]`` of tokens,
    ``rewards [N]``.
    """

    chosen: Supervised
    rejected: Supervised
    logp_ref: Sides | None = None
    weights: Sides | None = None
    rewards: Sides | None = None


class UnpairedRows(NamedTuple):
    """N completions for teacher forcing, with their labels ``desirable [N]``;
    ``logp_ref [N, S - 1]`` under the reference, where it is stored."""

    rows: Supervised
    desirable: Bool[Array, " N"]
    logp_ref: Array | None = None


def check_on_bad(on_bad: str) -> None:
    if on_bad not in ("error", "drop"):
        raise InputError(f'on_bad: {on_bad!r} was given; "error" or "drop" would do.')


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Types of the fields, and that a pair says something."""
    for field, value in record.items():
        if field not in TEXTS:
            continue  # a reward's
        if field == "label":
            if not isinstance(value, bool) and value not in (0, 1):
                raise InputError(
                    f"{where}, field 'label': {value!r}; true or false would do."
                )
        elif isinstance(value, str) and field != "messages":
            if field in ("prompt", "chosen") and not value:
                raise InputError(f"{where}, field {field!r}: an empty text.")
        elif not _are_messages(value):
            raise InputError(
                f"{where}, field {field!r}: a {type(value).__name__}; "
                + ("" if field == "messages" else "a text would do, or ")
                + 'messages such as [{"role": "user", "content": "…"}].'
            )
    if "chosen" not in record or "rejected" not in record:
        return
    if not isinstance(record["chosen"], str) and not record["chosen"][-1]["content"]:
        raise InputError(f"{where}, field 'chosen': its last message is empty.")
    if record["chosen"] == record["rejected"]:
        raise InputError(
            f"{where}, field 'rejected': the same as 'chosen'; a pair must differ."
        )
    if "prompt" not in record:
        for field in CONVERSATIONS:
            if isinstance(record[field], str) or len(record[field]) < 2:
                raise InputError(
                    f"{where}, field {field!r}: without a 'prompt', messages would do, "
                    "the prompt's and the answer's."
                )
        if record["chosen"][:-1] != record["rejected"][:-1]:
            raise InputError(
                f"{where}, field 'rejected': its messages must be those of 'chosen' "
                "but for the last one."
            )


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(
            isinstance(m, Mapping)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in value
        )
    )


def written_prompt(prompt: Any, tokenizer: Tokenizer, where: str) -> str:
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat is None:
        raise InputError(
            f"{where}, field 'prompt': messages, and the tokenizer has no chat "
            "template; texts would do, or a tokenizer that has one."
        )
    if prompt[-1]["role"] == "assistant":
        raise InputError(
            f"{where}, field 'prompt': its last message is the assistant's; one that "
            "it answers would do."
        )
    return tokenizer.chat(prompt)


def written_answer(
    prompt: Any, answer: Any, tokenizer: Tokenizer, where: str, field: str
) -> str | Turn:
    """What the template writes after the prompt: the answer and its end of turn."""
    if isinstance(answer, str):
        return answer
    if answer[-1]["role"] != "assistant":
        raise InputError(
            f"{where}, field {field!r}: its last message is of role "
            f"{answer[-1]['role']!r}; one of the assistant's would do."
        )
    if isinstance(prompt, str):
        raise InputError(
            f"{where}, field {field!r}: messages, and the prompt is a text; both as "
            "texts or both as messages would do."
        )
    if tokenizer.conversation is None:
        raise InputError(
            f"{where}, field {field!r}: messages, and the tokenizer has no chat "
            "template; texts would do, or a tokenizer that has one."
        )
    before = written_prompt(prompt, tokenizer, where)
    whole = tokenizer.conversation([*prompt, *answer])
    if whole.startswith(before):
        return Turn(whole.removeprefix(before))
    # Some templates open a turn otherwise than they write one that is past.
    content = answer[-1]["content"].strip()
    if content not in whole:
        raise InputError(
            f"{where}, field {field!r}: the chat template does not write the answer "
            "as it stands; texts of prompt and answer would do."
        )
    return Turn(whole[whole.rindex(content) :])


def pair_texts(
    record: Mapping[str, Any], tokenizer: Tokenizer, *, where: str = "record"
) -> tuple[str, str | Turn, str | Turn]:
    """A record's prompt, chosen and rejected completion as texts.

    Of messages each completion is a ``Turn``: all that the chat template writes after
    the prompt, as TRL trains it.

    Args:
      record: of ``PAIRS`` or ``CONVERSATIONS``.
      tokenizer: its chat template makes texts of messages.
      where: what errors call the record.

    Returns:
      three texts.

    Raises:
      InputError: a field is bad; the message names it.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> record = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
      >>> pair_texts(record, byte_tokenizer())
      ('1+1=', '2', '3')
    """
    check_record(record, where)
    answers = [record[field] for field in CONVERSATIONS]
    if "prompt" in record:
        prompt = record["prompt"]
    else:
        prompt, answers = answers[0][:-1], [answer[-1:] for answer in answers]
    chosen, rejected = (
        written_answer(prompt, answer, tokenizer, where, field)
        for answer, field in zip(answers, CONVERSATIONS, strict=True)
    )
    return written_prompt(prompt, tokenizer, where), chosen, rejected


def encode_pairs(
    texts: Sequence[tuple[str, str | Turn, str | Turn]],
    tokenizer: Tokenizer,
    *,
    length: int,
    indices: Sequence[int] | None = None,
    on_long: str = "error",
) -> PairRows:
    """Pairs of texts as token rows of one width.

    Args:
      texts: N triples of ``pair_texts``.
      tokenizer: encodes them.
      length: S, the width of the rows: prompt, answer and end-of-sequence.
      indices: the N record numbers; 0 to N - 1 where not given.
      on_long: ``"error"``, or ``"truncate"`` as in ``encode_supervised``.

    Returns:
      ``PairRows`` of ``[N, S]``.

    Raises:
      InputError: a row is too long or a prompt empty.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> rows = encode_pairs([("1+1=", "2", "3")], byte_tokenizer(), length=8)
      >>> rows.rejected.tokens[rows.rejected.loss_mask].tolist()
      [51, 258]
    """
    _check_kept(on_long)
    prompts = [prompt for prompt, _, _ in texts]
    sides = [[text[i] for text in texts] for i in (1, 2)]
    encode = partial(encode_supervised, length=length, indices=indices, on_long=on_long)
    chosen, rejected = (encode(prompts, side, tokenizer) for side in sides)
    return PairRows(chosen, rejected)


def _check_kept(on_long: str) -> None:
    """To drop a row would part it from its other side, or from its label."""
    if on_long == "drop":
        raise InputError(
            'on_long: "drop" was given; "error" or "truncate" would do here, and the '
            'batches\' own "drop".'
        )


def labelled_texts(
    record: Mapping[str, Any], tokenizer: Tokenizer, *, where: str = "record"
) -> tuple[str, str | Turn]:
    """A labelled record's prompt and completion as texts.

    Args:
      record: of ``UNPAIRED``.
      tokenizer: its chat template makes texts of messages.
      where: what errors call the record.

    Returns:
      two texts.

    Raises:
      InputError: a field is bad; the message names it.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> record = {"prompt": "1+1=", "completion": "2", "label": True}
      >>> labelled_texts(record, byte_tokenizer())
      ('1+1=', '2')
    """
    check_record(record, where)
    return (
        written_prompt(record["prompt"], tokenizer, where),
        written_answer(
            record["prompt"], record["completion"], tokenizer, where, "completion"
        ),
    )


def encode_unpaired(
    texts: Sequence[tuple[str, str | Turn]],
    labels: Sequence[bool],
    tokenizer: Tokenizer,
    *,
    length: int,
    indices: Sequence[int] | None = None,
    on_long: str = "error",
) -> UnpairedRows:
    """Labelled completions as token rows.

    Args:
      texts: N couples of ``labelled_texts``.
      labels: N of them.
      tokenizer: encodes them.
      length: S, the width of the rows: prompt, answer and end-of-sequence.
      indices: the N record numbers; 0 to N - 1 where not given.
      on_long: ``"error"``, or ``"truncate"`` as in ``encode_supervised``.

    Returns:
      ``UnpairedRows`` of ``[N, S]``.

    Raises:
      InputError: a row is too long or a prompt empty.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> texts = [("1+1=", "2")]
      >>> encode_unpaired(texts, [True], byte_tokenizer(), length=8).desirable.tolist()
      [True]
    """
    _check_kept(on_long)
    prompts, answers = [p for p, _ in texts], [a for _, a in texts]
    rows = encode_supervised(
        prompts, answers, tokenizer, length=length, indices=indices, on_long=on_long
    )
    return UnpairedRows(rows, jnp.asarray([bool(x) for x in labels], bool))
