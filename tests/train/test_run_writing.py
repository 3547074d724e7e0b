"""`alignax train rl` with tools, forced beginnings and completions in parts."""

import jax.numpy as jnp
import numpy as np
import pytest

from alignax.pipeline import data, metrics
from alignax.train import turns
from alignax.train.runs import writing
from alignax.train.runs.writing import Writing
from alignax.types import InputError
from tests.train.test_runs import arguments, home, main, refused

__all__ = ["home"]

TOOL = """
seen = []

def reply(texts, records, turn):
    seen.append((turn, len(texts)))
    assert all("answer" in record for record in records)
    return ["ok" if turn == 0 else None] * len(texts)

def two(texts, records):
    return texts
"""


@pytest.fixture(scope="module")
def tool(home):
    file = home / "tool.py"
    file.write_text(TOOL)
    return file


@pytest.mark.slow
def test_a_tool_answers_in_training_and_on_what_is_held_out(home, tool, tmp_path):
    more = ("--tool", f"{tool}:reply", "--stop", *"aeiou13579", "--prefix", "x")
    sizes = (
        "--chat=False",
        "--max-tokens",
        "40",
        "--part-tokens",
        "30",
        "--prompt-length",
        "16",
    )
    main(arguments(home, "rl", "prompts", tmp_path / "run", *more, *sizes))
    rows = metrics.read(tmp_path / "run")
    np.testing.assert_allclose(metrics.column(rows, "rl/ratio")[1], 1, atol=1e-5)
    samples = (tmp_path / "run" / "samples.md").read_text()
    # What the tool said is read in the completions, behind the forced beginning.
    assert "ok" in samples
    assert "> x" in samples


@pytest.mark.slow
def test_a_draft_that_is_the_policy_is_believed_until_it_learns(home, tmp_path):
    """Adapters are nothing at first: all is accepted, three tokens a pass where there
    are three to write. What is trained is what the policy would have sampled: the first
    update's ratio is 1, at a temperature and a truncation and in slots too."""
    more = ("--draft", str(home / "model"), "--draft-tokens", "2", "--lora.rank", "2")
    more += ("--temperature", "0.9", "--top-k", "50", "--learning-rate", "0.1")
    more += ("--max-tokens", "8", "--prompt-length", "16", "--chat=False")
    more += ("--slots", "3")
    main(arguments(home, "rl", "prompts", tmp_path / "run", *more))
    rows = metrics.read(tmp_path / "run")
    np.testing.assert_allclose(metrics.column(rows, "rl/ratio")[1], 1, atol=1e-5)
    accepted = metrics.column(rows, "rl/draft_accepted")[1]
    assert accepted[0] > 0.99 > accepted[-1] > 0
    blocks = metrics.column(rows, "rl/draft_block")[1]
    assert 3 >= blocks[0] > 2 > 1 <= blocks[-1] < blocks[0]


@pytest.mark.slow
def test_long_completions_go_on_in_the_next_steps(home, tmp_path):
    more = ("--max-tokens", "12", "--part-tokens", "5", "--prompt-length", "16")
    more += ("--steps", "5", "--chat=False")
    main(arguments(home, "rl", "prompts", tmp_path / "run", *more))
    rows = metrics.read(tmp_path / "run")
    length = metrics.column(rows, "rl/length")[1]
    # Nothing is trained before all rows of a group have ended; then more than a part.
    assert length[0] == 0
    assert max(length) > 5


def test_a_completion_is_divided_among_its_turns():
    assert Writing().at_once(100) == 100
    assert Writing(tool="calculator", turns=3).at_once(100) == 34
    assert Writing(part_tokens=60).at_once(40) == 40
    assert Writing(part_tokens=60).beyond(40) == 0
    assert Writing(part_tokens=60).beyond(90) == 60
    with pytest.raises(InputError, match="turns must be at least 1, got 0"):
        Writing(turns=0)


def test_what_is_told_is_a_turn_of_the_template(home):
    tokenizer = data.load_tokenizer(str(home / "model"))
    messages = [("user", "a"), ("assistant", "b"), ("user", "again")]
    whole = tokenizer.chat([{"role": r, "content": c} for r, c in messages])
    assert whole.endswith("b" + turns.told(tokenizer, "again"))
    plain = data.load_tokenizer(str(home / "bare"))
    assert turns.told(plain, "again") == "again"


def test_a_retry_is_asked_for_below_the_reward(home):
    tokenizer = data.load_tokenizer(str(home / "bare"))

    def reward(texts, records):
        return jnp.array([0.0, 1.0])

    tool = writing.tool_of("retry=Again:", reward, tokenizer, right_at=0.5)
    assert tool(["1", "2"], [{}, {}], 0) == ["Again:", None]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--tool", "abacus"), ["tool: 'abacus'", "calculator"]),
        (("--tool", "{}:nothing"), ["tool: 'nothing' is no function", "reply"]),
        (("--tool", "{}:two"), ["(texts, records, turn)"]),
        (("--part-tokens", "2", "--ahead", "1"), ["part_tokens must be left out"]),
        (("--draft", "x", "--part-tokens", "2"), ["draft must be left out with tool"]),
        (("--draft", "x", "--draft-tokens", "0"), ["draft_tokens must be at least 1"]),
        (
            ("--draft", "x", "--prompt-length", "80", "--max-tokens", "14"),
            ["prompt_length + max_tokens + draft_tokens must fit the 96"],
        ),
        (
            ("--max-tokens", "70", "--part-tokens", "60"),
            ["part_tokens must fit the 96"],
        ),
    ],
)
def test_bad_writing_is_refused(home, tool, tmp_path, capsys, more, said):
    more = [x.format(tool) for x in more]
    message = refused(capsys, arguments(home, "rl", "prompts", tmp_path / "x", *more))
    assert all(words in message for words in said)


ENGINE = """
import numpy as np
from alignax.train.engines import Engine, Written

def uniform(folder):
    names = []
    def generate(prompts, *, completions, max_tokens, temperature, end_ids, seed):
        assert "model.embed_tokens.weight" in names
        rng = np.random.default_rng(seed)
        def one():
            tokens = rng.integers(3, 259, max_tokens).tolist()
            return Written(tokens, [-np.log(259.0)] * max_tokens, False)
        return [[one() for _ in range(completions)] for _ in prompts]
    def load(weights):
        names.extend(name for name, _ in weights)
    return Engine(generate, load)

def none(folder):
    return 3
"""


@pytest.mark.slow
def test_another_librarys_engine_writes(home, tmp_path, capsys):
    """A model of no size is near the uniform law; what is not is in the log."""
    file = home / "engine.py"
    file.write_text(ENGINE)
    args = arguments(home, "rl", "prompts", tmp_path / "run")
    main([*args, "--engine", f"{file}:uniform", "--method", "tis"])
    rows = [row for row in metrics.read(tmp_path / "run") if "rl/sampler_kl" in row]
    assert len(rows) == 3
    assert all(0 < row["rl/sampler_kl"] < 1 for row in rows)
    np.testing.assert_allclose([row["rl/ratio"] for row in rows], 1, rtol=1e-3)
    args = arguments(home, "rl", "prompts", tmp_path / "other")
    for more, said in {
        ("--engine", f"{file}:none"): "must return",
        ("--engine", f"{file}:uniform", "--top-k", "3"): "left out with top_k",
        ("--engine", "vllm"): "vllm is not installed",
        ("--engine", "vllm", "--tool", "calculator"): "left out with tool",
    }.items():
        assert said in refused(capsys, [*args, *more])


@pytest.mark.slow
def test_alarms_do_as_they_are_told(home, tmp_path, capsys):
    def run(name, *more):
        args = arguments(home, "rl", "prompts", tmp_path / name, "--method", "grpo")
        args[args.index("--learning-rate") + 1] = "0.05"
        return [*args, "--divergence", "reverse_kl", "--beta", "0.01", *more]

    main(run("raised", "--alarm.kl", "1e-9", "--alarm.action", "raise_beta"))
    betas = [
        row["rl/beta"] for row in metrics.read(tmp_path / "raised") if "rl/beta" in row
    ]
    # The first step is at the reference, where rounding alone may sound.
    np.testing.assert_allclose(betas[2] / betas[1], 2, rtol=1e-6)
    assert "beta is doubled from" in capsys.readouterr().err
    said = refused(
        capsys, run("stopped", "--alarm.entropy", "50", "--alarm.action", "stop")
    )
    assert "stopped by its alarm: entropy" in said
    assert "below 50 nats a token" in said
    said = refused(capsys, run("none", "--alarm.action", "stop"))
    assert "alarm.action stop has nothing to act on" in said
    args = arguments(home, "rl", "prompts", tmp_path / "bare", "--method", "tis")
    args += ["--alarm.kl", "1", "--alarm.action", "raise_beta"]
    assert "the method has no divergence" in refused(capsys, args)
