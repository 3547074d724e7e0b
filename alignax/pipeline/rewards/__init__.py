"""Rewards of texts, on the host: ``(completions, records) -> [N] float32``.

Numbers are compared as exact fractions, never as floats, and nothing is ever
evaluated: a small parser with bounded depth and length does the sums, so a hostile
completion costs microseconds and scores zero.
"""

from alignax.pipeline.rewards.answers import extract_answer, parse_number
from alignax.pipeline.rewards.calculator import (
    Mark,
    calculate,
    check_marks,
    execute_marks,
    marks_reward,
)
from alignax.pipeline.rewards.judges import (
    Judge,
    Rubric,
    judge_preferences,
    judged,
    refine_rubric,
    with_preamble,
)
from alignax.pipeline.rewards.matches import (
    Reward,
    checked,
    exact_match,
    format_match,
    numeric_match,
    weighted_sum,
)

__all__ = [
    "Judge",
    "Mark",
    "Reward",
    "Rubric",
    "calculate",
    "check_marks",
    "checked",
    "exact_match",
    "execute_marks",
    "extract_answer",
    "format_match",
    "judge_preferences",
    "judged",
    "marks_reward",
    "numeric_match",
    "parse_number",
    "refine_rubric",
    "weighted_sum",
    "with_preamble",
]
