"""Judges with a rubric that changes, played by a fake one."""

import numpy as np
import pytest

from alignax.pipeline.rewards import judges
from alignax.types import InputError
from tests.close import EPS


def fake(prompts, completions, *, rubric):
    """Likes length, unless told to be brief."""
    lengths = np.array([len(text) for text in completions], np.float32)
    return -lengths if "brief" in rubric else lengths


def meta(rubric, prompts, completions, scores):
    """A meta reward model that sees its judge being gamed by length."""
    gamed = np.corrcoef([len(text) for text in completions], scores)[0, 1] > 0.9
    return f"{rubric} Be brief." if gamed else rubric


TEXTS = ["a", "bbb", "cc"]
PROMPTS = ["?"] * 3


def test_a_rubric_evolves_until_it_holds():
    """MPO, arXiv 2504.20157: gamed, the rubric is rewritten once, and then kept."""
    rubric = judges.Rubric(text="Be right.")
    assert isinstance(fake, judges.Judge)
    scores = judges.judged(fake, PROMPTS, TEXTS, rubric=rubric)
    assert TEXTS[int(np.argmax(scores))] == "bbb"
    rubric = judges.refine_rubric(meta, rubric, PROMPTS, TEXTS, scores)
    assert (rubric.version, rubric.text) == (1, "Be right. Be brief.")
    scores = judges.judged(fake, PROMPTS, TEXTS, rubric=rubric)
    assert TEXTS[int(np.argmax(scores))] == "a"
    assert judges.refine_rubric(meta, rubric, PROMPTS, TEXTS, scores) is rubric


def test_preferences_are_antisymmetric_and_do_not_overflow():
    """σ of the gap, both ways round."""
    rubric = judges.Rubric(text="")
    first, second = ["x" * 2000, "a"], ["", "a"]
    p = judges.judge_preferences(fake, ["?"] * 2, first, second, rubric=rubric)
    q = judges.judge_preferences(fake, ["?"] * 2, second, first, rubric=rubric)
    np.testing.assert_allclose(p, [1, 0.5], rtol=4 * EPS)
    np.testing.assert_allclose(p + q, 1, rtol=4 * EPS)


def test_preambles_tell_the_policy_its_rubric():
    """One policy for many rubrics."""
    texts = judges.with_preamble(["1+1?"], judges.Rubric(text="Be brief."))
    assert texts == ["Be brief.\n\n1+1?"]


def test_bad_answers_are_named():
    """A judge that returns too little or NaN, a rubric of nothing."""
    rubric = judges.Rubric(text="")
    with pytest.raises(InputError, match="prompts"):
        judges.judged(fake, ["?"], TEXTS, rubric=rubric)
    for answer in (np.zeros(2), np.full(3, np.nan)):
        judge = lambda *_, rubric, answer=answer: answer  # noqa: E731
        with pytest.raises(InputError, match="judge: it returned"):
            judges.judged(judge, PROMPTS, TEXTS, rubric=rubric)
    with pytest.raises(InputError, match="refine: it returned"):
        judges.refine_rubric(lambda *_: " ", rubric, PROMPTS, TEXTS, np.zeros(3))
