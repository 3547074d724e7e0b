"""Widths of rows from the data: percentiles of lengths in tokens."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from alignax.pipeline.data.rows import Turn, answer_ids, prompt_ids
from alignax.pipeline.data.tokenizers import Tokenizer
from alignax.types import InputError


class Lengths(NamedTuple):
    """Widths in tokens, and the share of the records that does not fit them.

    ``completion`` is of answers with their ends (0 without answers), ``row`` of prompt
    and answer together; the share is of records whose prompt or answer is longer.
    """

    prompt: int
    completion: int
    row: int
    left_out: float


def lengths(
    texts: Iterable[str | Sequence[str | Turn]],
    tokenizer: Tokenizer,
    *,
    percentile: float = 100.0,
    multiple: int = 1,
) -> Lengths:
    """The widths that hold ``percentile`` of the prompts, and of the answers.

    Args:
      texts: for each record its prompt, or its prompt and answers, as ``prompt_text``,
        ``supervised_texts`` and ``pair_texts`` make them.
      tokenizer: encodes them.
      percentile: between 0 and 100; 100 holds the longest.
      multiple: widths are rounded up to one of it.

    Returns:
      the widths.

    Raises:
      InputError: no record, or an option out of range.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> lengths([("1+1=", "2"), ("10+10=", "20")], byte_tokenizer())
      Lengths(prompt=7, completion=3, row=10, left_out=0.0)
    """
    if not 0 < percentile <= 100 or multiple < 1:
        raise InputError(
            f"percentile: {percentile} was given, and multiple {multiple}; a number "
            "above 0 and up to 100, and at least 1, would do."
        )
    prompts, answers = [], []
    for record in texts:
        prompt, *rest = [record] if isinstance(record, str) else record
        prompts.append(len(prompt_ids(str(prompt), tokenizer)))
        ends = [len(answer_ids(answer, tokenizer)) for answer in rest]
        answers.append(max(ends, default=0))
    if not prompts:
        raise InputError("texts: no record was given; one or more would do.")

    def width(counts: Sequence[int]) -> int:
        # One that occurs, so that no record falls between two widths.
        top = np.percentile(counts, percentile, method="inverted_cdf")
        return -(-int(top) // multiple) * multiple

    rows = [a + b for a, b in zip(prompts, answers, strict=True)]
    prompt, completion = width(prompts), width(answers)
    out = (np.array(prompts) > prompt) | (np.array(answers) > completion)
    return Lengths(prompt, completion, width(rows), float(out.mean()))
