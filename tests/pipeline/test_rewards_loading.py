"""Rewards by their spelling: built in, of a user's file, in processes of their own."""

import inspect
import json
import re
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from alignax import advantages
from alignax.pipeline import rewards
from alignax.pipeline.data import reasoning_gym_records
from alignax.pipeline.rewards import builtin
from alignax.types import InputError, RunError

OWN = """
import os, sys, time

def brevity(completions, records, *, scale=1.0):
    return [-scale * len(text) for text in completions]

def moody(completions, records):
    print("to the log, not to the protocol")
    text = completions[0]
    if "hang" in text: time.sleep(600)
    if "leave" in text: os._exit(3)
    if "stop" in text: sys.exit(4)
    if any("raise" in text for text in completions): raise ValueError("as asked")
    return [float("nan") if "nan" in text else records[0]["x"] for text in completions]

def short(completions, records):
    return [1.0] * (len(completions) + 1)

def words(completions, records):
    return ["good"] * len(completions)

def judge(prompts, completions, *, rubric):
    return [len(prompt) + len(rubric) for prompt in prompts]

number = 3
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(OWN)
    return path


def test_own_functions_and_weights(own):
    """Options bind to keywords; a sum by hand."""
    texts = ["7", "77"]
    records = [{"answer": "7", "prompt": "abc"}] * 2
    reward = rewards.load_rewards(
        [f"0.5*{own}:brevity,scale=2", "-3 * exact", f"judge:{own}:judge,rubric=xy"]
    )
    np.testing.assert_allclose(reward(texts, records), [-1 - 3 + 5, -2 + 5])


def test_bad_spellings_are_refused_by_name(own, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    for text, message in (
        ("exactly", "FILE.py:function would do, or one of exact, numeric"),
        (f"{own}:missing", "'missing' is no function .* brevity, moody"),
        (f"{own}:number", "'number' is a int"),
        (f"{own}", "FILE.py:function would do"),
        ("nowhere.py:f", "there is no file 'nowhere.py'"),
        (f"{tmp_path}/broken.py:f", "as it was loaded: ZeroDivisionError"),
        (f"{own}:brevity,sale=2", "cannot be called with .*sale"),
        (f"judge:{own}:judge", "rubric=TEXT would do"),
        ("exact,column=a", "exact has no option 'column'; it has field"),
        ("length", "length needs the option 'target'"),
        ("length,target=0", "1 or more"),
        ("length,target=x", "target=x was given; an integer"),
        ("overlong,most=5,buffer=6", "buffer=6 was given"),
        ("format,pattern=(", "no regular expression"),
        ("1e*exact", "a number before the star"),
        ("inf*exact", "one of exact|a number before the star"),
    ):
        with pytest.raises(InputError, match=message):
            rewards.load_rewards([text])
    for text, message in (
        (f"{own}:short", r"mine.py:short: an array of shape \(2,\).*1 completions"),
        (f"{own}:words", "mine.py:words: .* one real number for each"),
        ("exact,field=key", "exact: record 4 has no field 'key'; it has 'index'"),
        ("numeric", "numeric: the answer of record 4 is not a number: 'x'"),
        ("reasoning_gym,field=answer", "record 4 is of the data set None"),
    ):
        with pytest.raises(InputError, match=message):
            rewards.load_rewards([text])(["a"], [{"index": 4, "answer": "x"}])
    with pytest.raises(InputError, match="on_error"):
        rewards.load_rewards(["exact"], on_error="zero")


def test_one_that_raises_costs_its_completion(own, capsys):
    """The record is named; the others have their rewards; asked to, the run ends."""
    texts, records = ["a", "raise", "b"], [{"index": i, "x": i} for i in (5, 6, 7)]
    values = rewards.load_rewards([f"2*{own}:moody"])(texts, records)
    np.testing.assert_allclose(values, [10, np.nan, 14])
    said = "mine.py:moody failed for record 6 (completion 1): ValueError: as asked"
    assert said in capsys.readouterr().err
    with pytest.raises(RunError, match="failed for record 6"):
        rewards.load_rewards([f"{own}:moody"], on_error="raise")(texts, records)


LAST = {
    "3 + 4 = 7": 7,
    "it is -5.": -5,
    "5-3": 3,
    "$1,234.50 a year": 1234.5,
    "1/2": 0.5,
    "h2o": None,
    "1e5": None,
    "": None,
    "7/0": None,
    "9" * 500: None,
}


@pytest.mark.parametrize(("text", "number"), LAST.items())
def test_last_number(text, number):
    assert rewards.last_number(text) == number


def test_lengths_and_forms():
    """DAPO's penalty on words is that of the maths; ``format`` reads no long text."""
    texts = ["w " * n for n in range(0, 13, 2)]
    theirs = advantages.overlong_penalty(jnp.arange(0, 13, 2), max_length=10, buffer=4)
    ours = rewards.overlong(most=10, buffer=4)(texts, [{}] * 7)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    long = "a" * 3000
    assert rewards.matching(pattern="a+")([long, "aa"], [{}, {}]).tolist() == [0, 1]


def test_sentiment_rises_with_praise():
    reward = rewards.load_reward("sentiment")
    texts = [
        "An awful film.",
        "A film.",
        "A good film.",
        "A great, good film!",
    ]
    assert (np.diff(reward(texts, [{}] * 4)) > 0).all()


def test_the_gold_reward_punishes_what_hacks_the_proxy():
    """Lists, repetition, no sentences: the lexicon likes them, the gold one not."""
    honest = "The food was good, and I would come back for the fish."
    hacks = [
        "great wonderful amazing excellent superb fantastic lovely",
        "Great, wonderful, amazing, excellent, superb, fantastic, lovely food!",
        "I love love love love love love love the food.",
        "the food grat wunderful amazng love love happy best",
    ]
    records = [{"thing": "the food in a small restaurant"}] * 5
    proxy, gold = (
        rewards.load_reward(name)([honest, *hacks], records)
        for name in ("sentiment", "review")
    )
    assert (proxy[1:] > proxy[0]).all()
    assert (gold[1:] < gold[0] / 2).all()
    off = "The music was good, and I would come back for the band."
    elsewhere = rewards.load_reward("review")([off], records[:1])
    assert elsewhere < gold[0], "the same praise of another thing"
    prose = (
        "He had not seen the city before, so he walked along the river until it was "
        "dark. The old bridge, which the guide had praised, was closed."
    )
    assert rewards.fluency_of(prose) > 0.9
    assert rewards.fluency_of("Yes.") == 0


def test_math_verify_reads_latex_and_evaluates_nothing():
    reward = rewards.load_reward("math_verify")
    texts = [
        r"So $\frac{2}{4}$.",
        r"\boxed{x+1}",
        "is 0.5",
        "$3$",
        "__import__('os')",
    ]
    answers = ["1/2", "1+x", r"\frac{1}{2}", "4", "2"]
    records = [{"answer": answer} for answer in answers]
    assert reward(texts, records).tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("name", ["chain_sum", "word_sorting", "countdown"])
def test_scores_are_reasoning_gyms_own(name):
    """On its answers, tagged and bare, and on wrong ones."""
    gym = pytest.importorskip("reasoning_gym")
    records = reasoning_gym_records(name, size=4, seed=1)
    theirs = gym.create_dataset(name, size=4, seed=1)
    texts = [
        records[0]["answer"] + " ",
        f"I say <answer>{records[1]['answer']}</answer> now",
        "1",
        f"it is {records[3]['answer']}",
    ]
    scored = rewards.load_reward("reasoning_gym")(texts, records)
    np.testing.assert_allclose(
        scored[:3],
        [
            theirs.score_answer(answer, theirs[i])
            for i, answer in enumerate(
                (records[0]["answer"], records[1]["answer"], "1")
            )
        ],
    )
    assert scored[0] == 1
    assert scored[3] < 1, "strict"
    if name == "chain_sum":
        # The lenient one.
        assert rewards.load_reward("numeric")(texts, records).tolist() == [1, 1, 0, 1]
    if name == "countdown":
        hostile = ["__import__('os').getcwd()", "9**9**9**9"]
        assert not rewards.load_reward("reasoning_gym")(hostile, records[:2]).any()


def test_verifiers_that_evaluate_are_refused():
    """Every one whose module evaluates Python is known here, or only its generator."""
    pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    evaluates = re.compile(r"\beval\(|\bexec\(|sympify\(|(?<!def )\bparse_expr\(")
    found = {
        name
        for name, (kind, _) in DATASETS.items()
        if evaluates.search(inspect.getsource(sys.modules[kind.__module__]))
    }
    generators = {"basic_arithmetic", "codeio", "propositional_logic"}
    assert found - generators == builtin.EVALUATE | builtin.SUMS
    for name in generators:
        source = inspect.getsource(DATASETS[name][0].score_answer)
        assert not re.search(r"\beval\(|\bexec\(|sympy", source), name
    entry = {"metadata": {"source_dataset": "n_queens"}}
    with pytest.raises(InputError, match="evaluates answers as Python code"):
        rewards.load_reward("reasoning_gym")(["1"], [{"entry": entry}])


def test_workers_that_cannot_start_say_why(own):
    with (
        pytest.raises(InputError, match="'missing' is no function"),
        rewards.in_workers([f"{own}:missing"], processes=1, timeout=1.0),
    ):
        pass
    for options in ({"processes": 0, "timeout": 1.0}, {"processes": 1, "timeout": 0.0}):
        with (
            pytest.raises(InputError, match="processes: "),
            rewards.in_workers(["exact"], **options),
        ):
            pass


# A package of theirs leaves a file open.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_every_verifier_scores_its_own_answers():
    """All of the package's, but for those that are refused."""
    pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import DATASETS, create_dataset

    reward, refused = rewards.load_reward("reasoning_gym"), []
    for name in DATASETS:
        try:
            records = reasoning_gym_records(name, size=1, seed=3)
            # A few have many answers and name none.
            text = records[0]["answer"] or "1"
            if name == "graph_color":
                text = json.dumps(records[0]["entry"]["metadata"]["possible_answer"])
            found = reward([text, "1"], records * 2)
        except InputError:
            refused.append(name)
            continue
        theirs = create_dataset(name, size=1, seed=3)
        expected = []
        for answer in (text.strip(), "1"):
            try:
                expected.append(theirs.score_answer(answer, theirs[0]))
            except Exception:  # theirs wants well-formed answers
                expected.append(0.0)
        np.testing.assert_allclose(found, expected, err_msg=name)
    assert set(refused) == builtin.EVALUATE | {"arc_agi", "rearc", "composite"}


@pytest.mark.slow
def test_workers_survive_what_rewards_do(own, capsys):
    """Hanging, leaving, raising, NaN: each costs its own completion, named once."""
    texts = ["a", "hang", "b", "leave", "raise", "nan", "stop", "c"]
    records = [{"index": 10 + i, "x": i, "y": np.float32(1)} for i in range(8)]
    with rewards.in_workers([f"{own}:moody"], processes=2, timeout=1.5) as reward:
        begun = time.monotonic()
        values = reward(texts, records)
        assert time.monotonic() - begun < 30
        np.testing.assert_allclose(values[[0, 2, 7]], [0, 2, 7])
        assert np.isnan(values[[1, 3, 4, 5, 6]]).all()
        err = capsys.readouterr().err
        for number, why in (
            (11, "no answer within 1.5 s"),
            (13, r"its process ended \(exit code 3\)"),
            (14, "ValueError: as asked"),
            (16, "SystemExit: 4"),
        ):
            assert re.search(rf"failed for record {number} \(.*{why}", err)
        # The pool is whole again, and what it refuses is refused here.
        np.testing.assert_allclose(reward(["a"] * 4, records[:4]), range(4))
        with pytest.raises(InputError, match="a set, which cannot go to a worker"):
            reward(["a"], [{"x": {1}}])
    alone = rewards.load_rewards(["2*numeric", f"{own}:brevity"])
    given = ["12", "so 13", "."], [{"answer": 12}, {"answer": "13"}, {"answer": 1}]
    with rewards.in_workers(
        ["2*numeric", f"{own}:brevity"], processes=1, timeout=9.0, on_error="raise"
    ) as reward:
        np.testing.assert_array_equal(reward(*given), alone(*given))
        with pytest.raises(InputError, match="numeric: record 0 has no field 'answer'"):
            reward(["1"], [{"key": json.dumps(1)}])
    # One raises while another hangs: the context does not wait for it.
    begun = time.monotonic()
    with (
        rewards.in_workers(
            [f"{own}:moody"], processes=2, timeout=600.0, on_error="raise"
        ) as reward,
        pytest.raises(RunError, match=r"record 14 .* as asked"),
    ):
        reward(["raise", "hang"], records[4:6])
    assert time.monotonic() - begun < 30
