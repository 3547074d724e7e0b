"""What a record holds: the field's formats, recognised, and their texts.

=============== ========================================= =======================
format          fields                                    for
=============== ========================================= =======================
``pairs``       ``chosen``, ``rejected``, (``prompt``)    preferences, reward models
``labelled``    ``prompt``, ``completion``, ``label``     KTO and its like
``completions`` ``prompt``, ``completion``                maximum likelihood
``messages``    ``messages``                              maximum likelihood
``prompts``     ``prompt``                                policy gradients
=============== ========================================= =======================

A prompt, a completion, ``chosen`` and ``rejected`` are texts, or messages
(``[{"role": "user", "content": "…"}]``). Fields of other names are kept for rewards.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from alignax.pipeline.data.preferences import (
    PAIRS,
    UNPAIRED,
    check_record,
    written_answer,
    written_prompt,
)
from alignax.pipeline.data.records import require
from alignax.pipeline.data.rows import Turn
from alignax.pipeline.data.tokenizers import Tokenizer
from alignax.types import InputError

FORMATS = {
    "pairs": ("chosen", "rejected"),
    "labelled": UNPAIRED,
    "completions": ("prompt", "completion"),
    "messages": ("messages",),
    "prompts": ("prompt",),
}


def format_of(
    record: Mapping[str, Any],
    *,
    formats: Sequence[str] = tuple(FORMATS),
    where: str = "record",
) -> str:
    """Which format a record has: the first whose fields are all there.

    Args:
      record: such as the first of a set.
      formats: names of ``FORMATS``, in the order in which they are tried.
      where: what errors call the record.

    Returns:
      the name.

    Raises:
      InputError: it has none of them; the message names the fields that it has.

    Example:
      >>> format_of({"prompt": "1+1=", "completion": "2"})
      'completions'
    """
    for name in formats:
        if name not in FORMATS:
            raise InputError(
                f"formats: {name!r} was given; {', '.join(FORMATS)} would do."
            )
        if all(record.get(field) is not None for field in FORMATS[name]):
            return name
    wanted = "; ".join(f"{name}: {', '.join(FORMATS[name])}" for name in formats)
    raise InputError(
        f"{where}: the record has the fields {', '.join(map(repr, record)) or 'none'}, "
        f"which make none of the formats that would do here ({wanted}); where they "
        "have other names, say which is which by fields, as in prompt=question."
    )


def check_format(record: Mapping[str, Any], format: str, where: str) -> None:
    """Refuse a record that lacks a field of its format or has a bad one."""
    fields = FORMATS[format]
    if format == "pairs" and record.get("prompt") is not None:
        fields = PAIRS
    require(record, fields, where)
    check_record({field: record[field] for field in fields}, where)
    if format == "messages" and not any(
        m["role"] == "assistant" for m in record["messages"]
    ):
        raise InputError(
            f"{where}, field 'messages': no message of the assistant's to learn."
        )


def prompt_text(
    record: Mapping[str, Any], tokenizer: Tokenizer, *, where: str = "record"
) -> str:
    """A record's prompt as a text; of messages, as the chat template writes it.

    Bound to a tokenizer it is the ``prompt`` of ``prompt_batches``.

    Args:
      record: has a ``prompt``.
      tokenizer: its chat template makes texts of messages.
      where: what errors call the record.

    Returns:
      the text, the opening of the assistant's turn included.

    Raises:
      InputError: there is no prompt, or messages and no template.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> prompt_text({"prompt": "1+1="}, byte_tokenizer())
      '1+1='
    """
    check_format(record, "prompts", where)
    return written_prompt(record["prompt"], tokenizer, where)


def supervised_texts(
    record: Mapping[str, Any], tokenizer: Tokenizer, *, where: str = "record"
) -> tuple[str, str | Turn]:
    """A record's prompt and the answer that is learned.

    Of ``messages`` it is the assistant's last turn; ``each_turn`` makes a record of
    every one.

    Args:
      record: with ``prompt`` and ``completion``, or ``messages``.
      tokenizer: its chat template makes texts of messages.
      where: what errors call the record.

    Returns:
      two texts.

    Raises:
      InputError: a field is bad or missing; the message names it.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> supervised_texts({"prompt": "1+1=", "completion": "2"}, byte_tokenizer())
      ('1+1=', '2')
    """
    kind = format_of(record, formats=("completions", "messages"), where=where)
    check_format(record, kind, where)
    if kind == "completions":
        prompt, answer, field = record["prompt"], record["completion"], "completion"
    else:
        messages, field = _until_last(record["messages"]), "messages"
        prompt, answer = messages[:-1], messages[-1:]
        if not prompt:
            raise InputError(
                f"{where}, field 'messages': the assistant's turn has none before it; "
                "a message of the user's would do."
            )
    return (
        written_prompt(prompt, tokenizer, where),
        written_answer(prompt, answer, tokenizer, where, field),
    )


def _until_last(messages: list[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Without what follows the assistant's last turn."""
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    return messages[: turns[-1] + 1]


def each_turn(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A record for every turn of the assistant's that has one before it.

    Each is then learned behind what a policy would see when it writes it, whatever the
    template does to earlier turns (some leave thoughts out of them); no mask has to
    tell turns apart, at the price of reading a conversation once for each.

    Args:
      records: with ``messages``.

    Returns:
      the records, in order.

    Raises:
      InputError: a record has no messages.

    Example:
      >>> roles = ("user", "assistant", "user", "assistant")
      >>> talk = [{"role": role, "content": role} for role in roles]
      >>> [len(record["messages"]) for record in each_turn([{"messages": talk}])]
      [2, 4]
    """
    turns = []
    for number, record in enumerate(records):
        check_format(record, "messages", f"record {number}")
        messages = record["messages"]
        turns += [
            {**record, "messages": messages[: i + 1]}
            for i, m in enumerate(messages)
            if m["role"] == "assistant" and i > 0
        ]
    return turns


def as_chat(record: Mapping[str, Any], *, system: str | None = None) -> dict[str, Any]:
    """A record of plain texts as one of messages, for a chat model.

    Args:
      record: texts become a turn of the user's (``prompt``) or of the assistant's
        (``completion``, ``chosen``, ``rejected``); messages stay.
      system: a message before the prompt's, where given.

    Returns:
      the record with its other fields.

    Example:
      >>> as_chat({"prompt": "1+1?", "answer": "2"})["prompt"]
      [{'role': 'user', 'content': '1+1?'}]
    """
    changed = dict(record)
    first = [] if system is None else [{"role": "system", "content": system}]
    for field in ("prompt", "completion", "chosen", "rejected"):
        if isinstance(record.get(field), str):
            role = "user" if field == "prompt" else "assistant"
            changed[field] = [{"role": role, "content": record[field]}]
    opening = "prompt" if "prompt" in changed else "messages"
    if first and isinstance(changed.get(opening), list):
        changed[opening] = first + changed[opening]
    return changed
