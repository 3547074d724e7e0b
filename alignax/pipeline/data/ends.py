"""Where tokens end in their text, and what two tokenisations of one text share."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

from alignax.pipeline.data.tokenizers import Tokenizer

DAMAGED = "\ufffd"
"""What decoding puts in the place of bytes that are no character."""


class Ends(NamedTuple):
    """A text, and for each of its tokens the number of its characters that are complete
    or begun with that token; of a token that decoding drops, and from there on, there
    is nothing."""

    text: str
    ends: list[int]


def make_ends(tokenizer: Tokenizer) -> Callable[[Sequence[int]], Ends]:
    """``ids -> Ends``, by decoding: for any tokenizer that decodes what it encodes.

    The tokens of one character all end where it ends. A token is decoded behind the one
    before it, as some decoders write a text's first token in another way.

    Args:
      tokenizer: of the ids.

    Returns:
      the function; it keeps what it has decoded.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> tokenizer = byte_tokenizer()
      >>> make_ends(tokenizer)(tokenizer.encode("aé!"))
      Ends(text='aé!', ends=[1, 2, 2, 3])
      >>> make_ends(tokenizer)([97, 257, 98])
      Ends(text='a', ends=[1])
    """

    @lru_cache(maxsize=2**16)
    def decoded(ids: tuple[int, ...]) -> str:
        return tokenizer.decode(ids)

    first = tuple(tokenizer.encode("a"))

    def ends_of(ids: Sequence[int]) -> Ends:
        text, ends, behind, begin = "", [], 0, 0
        for place, token in enumerate(ids):
            if decoded((*first, int(token))) == decoded(first):
                break
            window = tuple(int(i) for i in ids[behind : place + 1])
            known = decoded(window[: begin - behind])
            added = decoded(window)[len(known) :]
            whole = added.rstrip(DAMAGED)
            ends.append(len(text) + len(whole) + (whole != added))
            if whole == added:
                text, behind, begin = text + added, begin, place + 1
        else:
            place = len(ids)
        left = tuple(int(i) for i in ids[behind:place])
        known = decoded(left[: begin - behind])
        return Ends(text + decoded(left)[len(known) :], ends)

    return ends_of


class Aligned(NamedTuple):
    """Ends of two tokenisations of one text, each up to where the texts are the same;
    the end of the sequence is a character of its own behind it."""

    ends: list[int]
    """Of the tokens that were given, from the first on."""
    other: list[int]
    """Of the other tokenizer's tokens."""
    other_ids: list[int]


def make_align(
    tokenizer: Tokenizer, other: Tokenizer
) -> Callable[[Sequence[int], bool, int], Aligned]:
    """``(ids, finished, room) -> Aligned``: another tokenizer's tokens of a text.

    What is not the same text to both is left out, and all that follows: bytes that are
    no character, tokens that decoding drops, a text that the other does not encode as
    it is, or only beyond its room. Where the text was cut, its last tokens are left out
    unless they are one for both: what would have followed may have changed the other's.

    Args:
      tokenizer: of the ids; any of its ends is the other's ``eos_id``.
      other: the other one.

    Returns:
      the function of a completion's tokens, whether it came to its end, and the most
      tokens that there may be of the other.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> align = make_align(byte_tokenizer(), byte_tokenizer())
      >>> align([97, 98, 258], True, 8)
      Aligned(ends=[1, 2, 3], other=[1, 2, 3], other_ids=[97, 98, 258])
    """
    ours, theirs = make_ends(tokenizer), make_ends(other)

    def align(ids: Sequence[int], finished: bool, room: int) -> Aligned:
        ids = [int(i) for i in ids]
        ended = bool(ids) and ids[-1] in tokenizer.end_ids
        body = ids[:-1] if ended else ids
        mine = ours(body)
        encoded = other.encode(mine.text)
        read = theirs(encoded[: max(room - ended, 0)])
        same = _shared(mine.text.partition(DAMAGED)[0], read.text)
        whole = len(same) == len(mine.text) and len(mine.ends) == len(body)
        whole = whole and len(read.ends) == len(encoded)
        ends, others = (
            [end for end in side.ends if end <= len(same)] for side in (mine, read)
        )
        encoded = encoded[: len(others)]
        if whole and ended:
            end = len(same) + 1
            return Aligned([*ends, end], [*others, end], [*encoded, other.eos_id])
        if not (whole and finished) and len(same) == len(mine.text):
            before = max(set(ends) & set(others) - {len(same)}, default=0)
            last = [sum(end > before for end in side) for side in (ends, others)]
            if last != [1, 1]:
                ends, others = (
                    [end for end in side if end < len(same)] for side in (ends, others)
                )
        return Aligned(ends, others, encoded[: len(others)])

    return align


def _shared(one: str, other: str) -> str:
    """What two texts begin with."""
    pairs = zip(one, other, strict=False)
    return one[: sum(takewhile(bool, (a == b for a, b in pairs)))]
