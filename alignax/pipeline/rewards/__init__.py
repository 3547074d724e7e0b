"""Rewards of texts, on the host: ``(completions, records) -> [N] float32``.

``load_rewards`` makes them of their spellings, ``in_workers`` does so in processes of
their own. Numbers are compared as exact fractions, never as floats, and nothing is ever
evaluated: a small parser with bounded depth and length does the sums, so a hostile
completion costs microseconds and scores zero.
"""

from alignax.pipeline.rewards.answers import (
    extract_answer,
    last_number,
    parse_number,
)
from alignax.pipeline.rewards.builtin import (
    exact_answer,
    matching,
    math_answer,
    numeric_answer,
    overlong,
    reasoning_gym_answer,
    sentiment,
    target_length,
)
from alignax.pipeline.rewards.calculator import (
    Mark,
    calculate,
    check_marks,
    execute_marks,
    marks_reward,
)
from alignax.pipeline.rewards.fluency import fluency, fluency_of, review
from alignax.pipeline.rewards.judges import (
    Judge,
    Rubric,
    judge_preferences,
    judged,
    refine_rubric,
    with_preamble,
)
from alignax.pipeline.rewards.loading import (
    BUILTIN,
    load_function,
    load_reward,
    load_rewards,
)
from alignax.pipeline.rewards.matches import (
    Reward,
    checked,
    exact_match,
    format_match,
    numeric_match,
    weighted_sum,
)
from alignax.pipeline.rewards.workers import in_workers

__all__ = [
    "BUILTIN",
    "Judge",
    "Mark",
    "Reward",
    "Rubric",
    "calculate",
    "check_marks",
    "checked",
    "exact_answer",
    "exact_match",
    "execute_marks",
    "extract_answer",
    "fluency",
    "fluency_of",
    "format_match",
    "in_workers",
    "judge_preferences",
    "judged",
    "last_number",
    "load_function",
    "load_reward",
    "load_rewards",
    "marks_reward",
    "matching",
    "math_answer",
    "numeric_answer",
    "numeric_match",
    "overlong",
    "parse_number",
    "reasoning_gym_answer",
    "refine_rubric",
    "review",
    "sentiment",
    "target_length",
    "weighted_sum",
    "with_preamble",
]
