"""How much a text looks like English sentences: a reward to hold back from training.

It is no grammar checker. It counts what optimising a lexicon does to a text: lists of
praise, repetition, words that are none, sentences that do not end.
"""

import functools
import re
from collections.abc import Sequence

import numpy as np

from alignax.pipeline.rewards.builtin import fields_of, needed, sentiment
from alignax.pipeline.rewards.matches import Reward
from alignax.types import InputError

_MOST = 4_000  # characters that are read
_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")
# Words of the closed classes, which hold a sentence together and no list has.
_CLOSED = """a about after all also although am an and any are as at be because been
    before being but by can could did do does down each even every for from had has have
    he her here him his how i if in into is it its it's just like may me might more most
    much must my no nor not of off on once one only or other our out over own rather she
    should since so some such than that the their them then there these they this those
    though through to too under until up us very was we were what when where which while
    who whom whose why will with without would yet you your don't didn't doesn't isn't
    wasn't can't couldn't i'm i've they're you're that's there's"""
_FUNCTION = frozenset(_CLOSED.split())


@functools.lru_cache(maxsize=1)
def _dictionary() -> frozenset[str]:
    try:
        import spellchecker
    except ImportError as error:
        raise needed("pyspellchecker", "fluency") from error
    return frozenset(spellchecker.SpellChecker().word_frequency.dictionary)


def fluency_of(text: str) -> float:
    """The product of five shares, each 1 for ordinary prose.

    Words that a spelling dictionary has (squared); content words that are not repeated;
    function words (full from a quarter to three quarters of all); the longest run of
    content words (full up to four); and the form: a capital at the beginning, a stop at
    the end. A text of fewer than three words gets 0.

    Args:
      text: any; its first 4,000 characters are read.

    Returns:
      from 0 to 1.

    Raises:
      InputError: the package ``pyspellchecker`` is missing.
    """
    known = _dictionary()
    text = text[:_MOST].strip()
    words = _WORD.findall(text.lower().replace("’", "'"))
    if len(words) < 3:
        return 0.0
    spelled = np.mean([word in known or word in _FUNCTION for word in words])
    content = [word for word in words if word not in _FUNCTION]
    distinct = len(set(content)) / len(content) if content else 0.0
    function = 1 - len(content) / len(words)
    held = min(1.0, function / 0.25, (1 - function) / 0.25)
    longest, run = 0, 0
    for word in words:
        run = 0 if word in _FUNCTION else run + 1
        longest = max(longest, run)
    form = (text[0].isupper() + (text[-1] in ".!?" or text[-2:] in ('."', '!"'))) / 2
    return float(spelled**2 * distinct * held * min(1.0, 4 / max(longest, 1)) * form)


def fluency() -> Reward:
    """``fluency_of`` every completion.

    Returns:
      the reward.

    Raises:
      InputError: the package is missing.
    """
    _dictionary()

    def reward(completions, records):
        return np.array([fluency_of(text) for text in completions], np.float32)

    return reward


def review(*, topic: str = "thing") -> Reward:
    """A review that is positive, in sentences, and about its thing: a gold reward.

    ``(1 + sentiment) / 2 · fluency · (1 + about) / 2`` with ``about`` the share of the
    thing's content words that the completion has. Lists of praise, repetition and one
    text for every prompt score low, where ``sentiment`` alone gives them the most.

    Args:
      topic: the field that names the thing, as ``data.review_prompts`` has it.

    Returns:
      the reward, from 0 to 1.

    Raises:
      InputError: a package is missing; and the reward, for records without the field.
    """
    compound, fluent = sentiment(), fluency()

    def about(text: str, thing: str) -> float:
        wanted = set(_WORD.findall(thing.lower())) - _FUNCTION
        return len(wanted & set(_WORD.findall(text.lower()))) / max(len(wanted), 1)

    def reward(completions: Sequence[str], records):
        things = fields_of(records, topic, "review")
        if not all(isinstance(thing, str) for thing in things):
            raise InputError(f"review: the field {topic!r} must be a text.")
        on_topic = np.array(
            [about(t, thing) for t, thing in zip(completions, things, strict=True)]
        )
        positive = (1 + compound(completions, records)) / 2
        score = positive * fluent(completions, records) * (1 + on_topic) / 2
        return score.astype(np.float32)

    return reward
