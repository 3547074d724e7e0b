"""Rewards: numbers against Python's own, hostile texts, and real labels."""

import json
import math
import time
from fractions import Fraction
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignax.pipeline.rewards import (
    calculate,
    check_marks,
    checked,
    exact_match,
    execute_marks,
    extract_answer,
    format_match,
    marks_reward,
    numeric_match,
    parse_number,
    weighted_sum,
)
from alignax.types import InputError

SOLUTIONS = (
    Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "model_solutions.jsonl"
)


def assert_rewards(rewards, expected):
    assert isinstance(rewards, np.ndarray)
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards, np.array(expected, np.float32))


# Answers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6 * 7\n#### 42", "42"),
        ("#### 1\n#### 2\nthanks", "2"),
        ("####   42 apples  \n", "42 apples"),
        ("####", None),
        ("#### \n3", None),
        ("42", None),
        ("", None),
    ],
)
def test_extract_answer(text, expected):
    assert extract_answer(text) == expected


def test_extract_answer_with_another_marker():
    assert extract_answer("a A: 1\nA: 18", marker="\nA:") == "18"
    with pytest.raises(InputError, match="marker"):
        extract_answer("x", marker="")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", 42),
        (" 42 apples ", 42),
        ("42 apples.", 42),
        ("42.", 42),
        ("$1,234.50", Fraction("1234.5")),
        ("$ 18.00.", 18),
        ("-$5", -5),
        ("$-5", -5),
        ("+5", 5),
        ("- 5", -5),
        ("−7", -7),
        ("3.0", 3),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("-3 / 4 cup", Fraction(-3, 4)),
        ("1,000,000", 10**6),
        ("50%", 50),
        ("50 % off", 50),
        ("12€", 12),
        ("5 USD", 5),
        ("$5/hour", 5),
        ("20-year", 20),
        ("90°", 90),
        ("5 m", 5),
        ("9 m²", 9),
        ("007", 7),
        ("(5)", None),
        ("about 5", None),
        ("five", None),
        ("", None),
        ("-", None),
        (".", None),
        ("$", None),
        ("--5", None),
        ("-$-5", None),
        ("1/0", None),
        ("1e5", None),
        ("2^3", None),
        ("3:30", None),
        ("5 1/2", None),
        ("5½", None),
        ("5²", None),
        ("5 百", None),
        ("1,23", None),
        ("1,2345", None),
        ("12,34,567", None),
        ("1.2.3", None),
        ("3/4/5", None),
        ("2 + 2", None),
        ("4 = 4", None),
        ("2 million", None),
        ("$1.5M", None),
        ("3 Dozen eggs", None),
        ("3 and a half", None),
        ("5 or six", None),
        ("5 (in total)", 5),
        ("5 (dozen)", None),
        ("10k", None),
        ("3 or 4", None),
        ("٣", None),
        ("nan", None),
        ("inf", None),
        ("0x10", None),
        ("__import__('os')", None),
    ],
)
def test_parse_number(text, expected):
    assert parse_number(text) == expected


@given(
    number=st.decimals(
        min_value=-(10**15), max_value=10**15, allow_nan=False, places=4
    ),
    sign=st.sampled_from(["", "$", "€"]),
    unit=st.sampled_from(["", " apples", "%", ".", " km/h", " (in total)"]),
)
@settings(deadline=None)
def test_what_python_formats_is_read_back(number, sign, unit):
    want = Fraction(number)
    assert parse_number(f"{number:f}{unit}") == want
    assert parse_number(f"{number:,f}{unit}") == want
    assert parse_number(f"{sign}{number:,f}{unit}") == want
    assert parse_number(f"{want.numerator}/{want.denominator}") == want


@given(st.integers(-(10**30), 10**30))
@settings(deadline=None)
def test_integers_with_separators_are_read_back(number):
    assert parse_number(f"{number:,}") == number
    assert parse_number(f"{number}") == number


ALPHABET = "0123456789.,-+*/()%$=<># \nabxe½²٣"


@given(st.text() | st.text(alphabet=ALPHABET))
@settings(deadline=None, max_examples=300)
def test_nothing_raises_on_any_text(text):
    parse_number(text)
    calculate(text)
    extract_answer(text)
    check_marks(text)
    check_marks(f"<<{text}>>")
    execute_marks(f"<<{text}=>>")
    format_match([text])
    numeric_match([text, "#### " + text], ["1", "1"])


@pytest.mark.parametrize(
    "text",
    [
        "9" * 10**6,
        "1," * 10**6,
        "-" * 10**6,
        "(" * 10**6,
        "1+" * 10**6 + "1",
        " " * 10**6 + "x",
        "5" + " " * 10**6 + "x",
        "<<" * 10**6,
        "<<1+1=" * 10**5,
        "<<" + "9" * 10**6 + "=" + "9" * 10**6 + ">>",
        "<<1+1=2>>" * 2000,
        "####" * 10**5,
        "1/" * 10**6,
        "5 " + "a " * 190 + "=",
        "9*" * 400 + "9",
        "1/" * 400 + "7",
        "(" * 45 + "1" + ")" * 45,
    ],
    ids=range(17),
)
def test_hostile_texts_take_no_time(text):
    start = time.process_time()
    parse_number(text)
    calculate(text)
    extract_answer(text)
    marks_reward([text])
    execute_marks(text)
    format_match([text])
    numeric_match([text], ["1"])
    # Linear work on two megabytes; anything worse takes minutes.
    assert time.process_time() - start < 2


# Matches ----------------------------------------------------------------------


def test_exact_match():
    assert_rewards(exact_match(["7", " 7\n", "7.0", ""], ["7"] * 4), [1, 1, 0, 0])
    with pytest.raises(InputError, match="answers: 1 were given for 2 completions"):
        exact_match(["1", "2"], ["1"])


def test_numeric_match():
    texts = ["#### 1,000.0", "#### $1000", "1000", "#### 999", "#### no", "1000 ####"]
    assert_rewards(numeric_match(texts, ["1000"] * 6), [1, 1, 0, 0, 0, 0])
    solution = "<<500*2=1000>>\n#### 1,000"
    assert_rewards(numeric_match(texts, [solution] * 6), [1, 1, 0, 0, 0, 0])
    plain = numeric_match([" 1/2", "0.5", "x"], ["0.50"] * 3, marker=None)
    assert_rewards(plain, [1, 1, 0])
    assert_rewards(numeric_match([], []), [])


def test_numeric_match_is_exact():
    near = "0.33333333333333333333333333333333333"
    assert_rewards(numeric_match([near], ["1/3"], marker=None), [0])
    assert_rewards(numeric_match(["0.1"], [repr(0.1)], marker=None), [1])
    assert_rewards(numeric_match([str(2**53 + 1)], [str(2**53)], marker=None), [0])


def test_an_answer_that_is_no_number_is_named():
    with pytest.raises(InputError, match=r"record 1 is not a number: 'blue'.*'####' N"):
        numeric_match(["#### 1", "#### 2"], ["1", "blue"])
    with pytest.raises(InputError, match=r"record 0 is not a number: 'x #### '"):
        numeric_match(["#### 1"], ["x #### "])
    with pytest.raises(InputError, match=r"record 0 .*a number would do\.$"):
        numeric_match(["1"], ["x\n#### 1"], marker=None)
    with pytest.raises(InputError, match="answers: 0 were given for 1 completions"):
        numeric_match(["1"], [])


def test_format_match():
    texts = [
        "so\n#### 42",
        "#### $42 a day\n",
        "so #### 42",
        "#### 42\nIndeed.",
        "#### 41\n#### 42",
        "#### blue",
        "42",
        "",
    ]
    assert_rewards(format_match(texts), [1, 1, 0, 0, 0, 0, 0, 0])
    with pytest.raises(InputError, match="marker"):
        format_match(["x"], marker="")


def test_weighted_sum():
    def right(completions, records):
        return exact_match(completions, [r["answer"] for r in records])

    def short(completions, records):
        return np.array([-len(text) for text in completions], np.float32)

    reward = weighted_sum([(2.0, right), (0.25, short)])
    records = [{"answer": "7"}, {"answer": "8"}]
    assert_rewards(reward(["7", "7777"], records), [1.75, -1.0])
    assert_rewards(reward([], []), [])
    nested = weighted_sum([(0.5, reward), (1.0, right)])
    assert_rewards(nested(["7", "7777"], records), [1.875, -0.5])


def test_weighted_sum_refuses_what_it_cannot_add():
    def scalar(completions, records):
        return np.float32(1)

    def unknown(completions, records):
        return np.full(len(completions), np.nan, np.float32)

    with pytest.raises(InputError, match="terms: the weights"):
        weighted_sum([])
    with pytest.raises(InputError, match="terms: the weights"):
        weighted_sum([(math.inf, unknown)])
    with pytest.raises(InputError, match="records: 1 were given for 2 completions"):
        weighted_sum([(1.0, unknown)])(["a", "b"], [{}])
    with pytest.raises(InputError, match=r"reward 1 gave .* shape \(2, 1\)"):
        weighted_sum([(1.0, unknown), (1.0, lambda c, r: np.zeros((2, 1)))])(
            ["a", "b"], [{}, {}]
        )
    with pytest.raises(InputError, match=r"reward 0 gave .* shape \(\)"):
        weighted_sum([(1.0, scalar)])(["a", "b"], [{}, {}])


def test_rewards_that_are_not_finite_are_named(capsys):
    zeros = lambda texts, records: np.zeros(len(texts), np.float32)  # noqa: E731
    nan = lambda texts, records: np.array([1, np.nan, -np.inf], np.float32)  # noqa: E731
    values = weighted_sum([(1.0, zeros), (0.5, nan)])(["a", "b", "c"], [{}] * 3)
    assert_rewards(checked(values, [7, 7, 30]), [0.5, np.nan, -np.inf])
    assert capsys.readouterr().err == (
        "warning: rewards are not finite: nan for record 7 (completion 1), -inf for "
        "record 30 (completion 2)\n"
    )
    # What float32 cannot hold is not finite either.
    checked(np.array([1e300] * 6), np.arange(6))
    assert "1e+300 for record 3 (completion 3), and 2 more" in capsys.readouterr().err


def test_rewards_of_another_shape_or_kind_are_refused(capsys):
    assert_rewards(checked([True, 2], jnp.array([3, 4])), [1, 2])
    assert_rewards(checked(jnp.zeros(2, jnp.bfloat16), [3, 4]), [0, 0])
    for values, named in (
        (np.zeros((16, 1)), r"shape \(16, 1\) and type float64 .* for 16 completions"),
        (np.zeros(4), r"shape \(4,\)"),
        (1.0, r"shape \(\)"),
        (["1"] * 16, r"type <U1"),
        ([None] * 16, r"type object"),
        ([[1.0], [1.0, 2.0]], r"type object"),
    ):
        with pytest.raises(InputError, match=rf"rewards: .*{named}"):
            checked(values, range(16))
    assert not capsys.readouterr().err


# Real data --------------------------------------------------------------------


def test_real_gsm8k_model_solutions_agree_with_their_labels():
    if not SOLUTIONS.exists():
        pytest.skip("the real data model_solutions.jsonl is not beside the repository")
    records = [json.loads(line) for line in SOLUTIONS.read_text().splitlines()]
    pairs = [
        (value["solution"], record["ground_truth"], value["is_correct"])
        for record in records
        for value in record.values()
        if isinstance(value, dict)
    ]
    solutions, truths, labels = map(list, zip(*pairs, strict=True))
    assert len(labels) == 3600
    assert 0 < sum(labels) < 3600
    rewards = numeric_match(solutions, truths, marker="\nA:")
    np.testing.assert_array_equal(rewards, np.array(labels, np.float32))
