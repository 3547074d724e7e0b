"""Texts that end a completion: inside the sampler, and on what others sampled."""

import dataclasses
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Int

from alignax.pipeline.data import Tokenizer
from alignax.types import InputError, Rollout


def table(stops: Sequence[str], tokenizer: Tokenizer) -> Int[np.ndarray, "S V"]:
    """An automaton over tokens that finds the first of some texts.

    Its states are the beginnings of the texts; each token leads from one to the next by
    all of its characters, so that a text is found however the tokens cut it, and
    wherever in a token it ends. One lookup a token and row: no host is asked.

    Args:
      stops: ASCII texts; longer than a token or shorter.
      tokenizer: decodes the tokens.

    Returns:
      int16 ``[S, V]`` for ``rollout.generate``: the state after each token. State 0 is
      the start, S − 1 a text that has been found.

    Raises:
      InputError: a text is empty, or not ASCII: a token may be a part of a character.

    Reference:
      Aho, Corasick, "Efficient string matching", CACM 18(6), 1975.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> found = table(["ab"], byte_tokenizer())
      >>> found[:, ord("a")].tolist(), found[:, ord("b")].tolist()
      ([1, 1, 2], [0, 2, 2])
    """
    stops = _checked(stops)
    beginnings = sorted({s[:i] for s in stops for i in range(len(s))}, key=len)
    number, end = {text: i for i, text in enumerate(beginnings)}, len(beginnings)
    known = set("".join(stops))

    @cache
    def after(state: int, letter: str) -> int:
        if state == end:
            return end
        if letter not in known:
            return 0
        text = beginnings[state] + letter
        if any(text.endswith(stop) for stop in stops):
            return end
        return next(
            number[text[i:]] for i in range(len(text) + 1) if text[i:] in number
        )

    # What a token adds behind a letter: at the start some tokenizers drop a space.
    first = tokenizer.encode("a")
    before = len(tokenizer.decode(first))
    states = np.arange(end + 1, dtype=np.int16)
    result = np.zeros((end + 1, tokenizer.vocab_size), np.int16)
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.decode([*first, token])[before:]
        if known.isdisjoint(piece):
            result[:, token] = np.where(states == end, end, states if not piece else 0)
            continue
        for state in range(end + 1):
            now = state
            for letter in piece:
                now = after(now, letter)
            result[state, token] = now
    return result


def _checked(stops: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stops, str):
        raise InputError(f"stops must be several texts, got the one text {stops!r}")
    for stop in stops:
        if not stop or not stop.isascii():
            raise InputError(
                f"stops must be texts of ASCII characters, at least one each, got "
                f"{stop!r}; cut finds other texts on the host"
            )
    return tuple(dict.fromkeys(stops))


def cut(rollout: Rollout, stops: Sequence[str], tokenizer: Tokenizer) -> Rollout:
    """A rollout whose completions end with the token that completes a text.

    Of the text of the policy's own tokens; what follows is neither attended nor
    trained, and the row has finished.

    Args:
      rollout: B rows.
      stops: any texts.
      tokenizer: decodes the tokens.

    Returns:
      the rollout, on the host.
    """
    fields = ("attended", "trained", "finished")
    attended, trained, finished = (np.array(getattr(rollout, x)) for x in fields)
    tokens = np.asarray(rollout.tokens)
    for row in range(len(tokens)):
        places = np.flatnonzero(trained[row])
        length = _first(tokens[row, places].tolist(), stops, tokenizer)
        if length is not None:
            last = places[length - 1]
            attended[row, last + 1 :] = trained[row, last + 1 :] = False
            finished[row] = True
    logp = rollout.logp_behaviour
    return dataclasses.replace(
        rollout,
        attended=attended,
        trained=trained,
        finished=finished,
        logp_behaviour=None if logp is None else np.where(trained, logp, 0),
    )


def _first(tokens: list[int], stops: Sequence[str], tokenizer: Tokenizer) -> int | None:
    """How many tokens it takes until a text is there; None if it never is."""

    def there(length):
        text = tokenizer.decode(tokens[:length])
        return any(stop in text for stop in stops)

    if not there(len(tokens)):
        return None
    low, high = 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if there(middle) else (middle + 1, high)
    return low
