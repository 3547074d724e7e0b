"""Policy gradients on one's own prompts and rewards."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from alignax.pipeline import data, metrics, rewards
from alignax.train import (
    ahead,
    dynamic,
    loop,
    reward_folders,
    tasks,
)
from alignax.train import policy as policies
from alignax.train.options import RL, algorithm_of, reads_beta
from alignax.train.policy import Policy
from alignax.train.runs import (
    alarms,
    alignment,
    rows,
    setting,
    teaching,
    watch,
    writing,
)
from alignax.train.runs import measure as measures
from alignax.train.runs import parts as parts_of
from alignax.train.runs.alarms import Alarms
from alignax.train.runs.options import Data, Flat, Model, Output
from alignax.train.runs.setting import Result, Sets
from alignax.train.runs.teaching import Teaching, reads_rewards, worthless
from alignax.train.runs.writing import Writing
from alignax.types import InputError, Prompts

PHASE = "rl"
RUN_FOLDER = Path("runs/rl")
SHOWN = ("reward", "kl", "entropy", "length", "finished", "signal", "memory")
FORMATS = ("completions", "prompts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A policy gradient under a divergence from the model that it begins from."""

    model: Annotated[Model, Flat]
    data: Annotated[Data, Flat]
    reward: tuple[str, ...] = ()
    """What a completion is worth: FILE.py:function (completions, records) -> numbers,
    or a built-in such as exact, numeric, reasoning_gym, sentiment or length,target=40,
    or model:FOLDER of a trained reward model (docs/data.md has all of them);
    several are added up, each with its weight in front: 0.2*format,pattern=REGEX.
    Methods that learn from a teacher alone need none."""
    right_at: float = 0.5
    """A completion counts as right from this reward on: in the marks of samples, in
    the metric right, and for methods that ask."""
    reward_errors: Literal["nan", "raise"] = "nan"
    """What a reward that raises does: nan says which record it was and goes on,
    raise ends the run."""
    reward_failed: float | None = None
    """What a completion gets whose reward failed; by default its batch updates
    nothing."""
    reward_processes: int = 0
    """Worker processes that compute rewards, with a time limit each; 0 computes them
    in this one, without."""
    reward_timeout: float = 10.0
    """Seconds for one completion in a worker process."""
    prompt_length: int | None = None
    """Tokens of the longest prompt; longer ones are left out. By default the data's
    percentile."""
    max_tokens: int | None = None
    """Tokens of the longest completion. By default half more than the data's
    completions have, where it has some, else 256, as far as the context goes."""
    teaching: Annotated[Teaching, Flat] = Teaching()
    writing: Annotated[Writing, Flat] = Writing()
    rounds: int = 0
    """Rounds of further prompts in a step, at the most, in place of those whose
    completions all have one reward (DAPO's dynamic sampling)."""
    ahead: int = 0
    """Batches that are sampled while the host computes rewards; their tokens are as
    many steps behind the policy."""
    rl: Annotated[RL, Flat] = RL(
        method="grpo",
        steps=200,
        prompts=8,
        completions=8,
        microbatches=4,
        learning_rate=None,
        warmup=None,
    )
    alarm: Alarms = Alarms()
    output: Annotated[Output, Flat] = Output(out=RUN_FOLDER)

    def __post_init__(self):
        reads = reads_rewards(algorithm_of(self.rl)) or self.teaching.teacher_sibling
        if not self.reward and reads:
            raise InputError(
                "reward must be one or more, such as numeric or FILE.py:function"
            )
        for name in ("prompt_length", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        for name in ("rounds", "ahead"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"{name} must not be negative, got {getattr(self, name)}"
                )
        parts = self.writing.tool is None and self.writing.part_tokens is not None
        if parts and (self.ahead or self.rounds):
            raise InputError(
                "part_tokens must be left out with ahead or rounds: completions that "
                "go on from step to step have their own prompts"
            )
        alignment.check(self.teaching, self.rl, self.writing)
        if self.reward_processes < 0 or not self.reward_timeout > 0:
            raise InputError(
                "reward_processes must not be negative and reward_timeout positive, "
                f"got {self.reward_processes} and {self.reward_timeout}"
            )


def learning_rate(config: Config) -> float:
    """By default 2e-6 of all parameters, as GRPO's reports have it (1e-6 in DeepSeek's
    and TRL's), and ten times as much of adapters ("LoRA Without Regret").

    Args:
      config: the options.

    Returns:
      the learning rate.
    """
    given = config.rl.learning_rate
    return (2e-5 if config.model.lora.rank else 2e-6) if given is None else given


def run(config: Config) -> Result:
    """Train a policy by its own samples, and write all that the folder is to hold.

    Args:
      config: the options.

    Returns:
      the state at the end, the policy with the trained parameters, the folder and the
      rows of its log.

    Raises:
      InputError: an option, the data, the model's folder or a reward is bad.
      RunError: the run cannot go on.
    """
    out = config.output
    setting.check(out, config.model)
    with contextlib.ExitStack() as stack:
        reward = worthless
        if config.reward:
            reward = stack.enter_context(
                reward_folders.open_rewards(
                    config.reward,
                    processes=config.reward_processes,
                    timeout=config.reward_timeout,
                    on_error=config.reward_errors,
                )
            )
        sets, policy, config = opened(config)
        return trained(config, sets, policy, reward)


def opened(config: Config) -> tuple[Sets, Policy, Config]:
    """The records, the policy, and the options with all that was left open filled in.

    Args:
      config: the options.

    Returns:
      the three.

    Raises:
      InputError: an option, the data or the model's folder is bad.
    """
    tokenizer = setting.tokenizer_of(config.model)
    sets = setting.read(config.data, FORMATS, tokenizer, seed=config.output.seed)
    policy = setting.open_model(config.model, seed=config.output.seed)
    config = settled(config, sets, policy)
    count = config.rl.prompts * config.rl.completions // config.rl.microbatches
    length = (config.prompt_length or 0) + (config.max_tokens or 0)
    policy = setting.checkpointed(policy, config.model, tokens=count * length)
    return sets, policy, config


def settled(config: Config, sets: Sets, policy: Policy) -> Config:
    """The options with all that was left open filled in.

    Args:
      config: the options.
      sets: the records.
      policy: of the model.

    Returns:
      the options.

    Raises:
      InputError: a prompt and a completion do not fit the model's context.
    """
    given = config.max_tokens
    prompt_length, max_tokens = setting.lengths_of(
        config.data,
        sets,
        policy,
        prompt_length=config.prompt_length,
        max_tokens=given,
    )
    if given is None and config.writing.beyond(max_tokens):
        room = policy.config.max_length - prompt_length
        room -= config.writing.at_once(max_tokens)
        max_tokens = max(min(max_tokens, room), 1)
    asked = {"prompt_length": prompt_length, "max_tokens": max_tokens}
    beyond = config.writing.beyond(max_tokens)
    if beyond:
        asked["draft_tokens" if config.writing.draft else "part_tokens"] = beyond
    setting.fits(policy, asked, config.model.folder)
    rl = dataclasses.replace(config.rl, learning_rate=learning_rate(config))
    return dataclasses.replace(
        config, prompt_length=prompt_length, max_tokens=max_tokens, rl=rl
    )


class Task(NamedTuple):
    """What makes a run another one than of rewards alone."""

    kind: str = PHASE
    shown: tuple[str, ...] = SHOWN
    recorded: Any = None
    """The options that are written and compared, where not these."""
    judge: tasks.Judge | None = None
    """What says the rewards of training, where not the reward that is measured."""
    said: Callable[[], dict[str, Any]] = dict
    """More metrics of the step that was judged last."""
    weights: tuple[float, ...] = ()
    """Of the teachers, where these are experts, and their options do not say."""
    mixture: bool = False
    """Whether experts are a mixture and not a product."""


PLAIN = Task()


def trained(
    config: Config,
    sets: Sets,
    policy: Policy,
    reward: rewards.Reward,
    task: Task = PLAIN,
) -> Result:
    """Train a policy on records, all options settled.

    Args:
      config: of ``opened``.
      sets: likewise.
      policy: likewise.
      reward: of completions.
      task: what is not as ``alignax train rl`` has it.

    Returns:
      as ``run``.
    """
    out, tokenizer, train = config.output, policy.tokenizer, sets.train
    key = jax.random.key(out.seed)
    prompt_length, max_tokens = config.prompt_length or 1, config.max_tokens or 1
    writing.check_processes(config.writing, rounds=config.rounds)
    tool = writing.tool_of(
        config.writing.tool, reward, tokenizer, right_at=config.right_at
    )
    algorithm = algorithm_of(config.rl)
    parts, tell = parts_of.made(
        config, train, policy, tool, weights=task.weights, mixture=task.mixture
    )

    def ask(record):
        return data.prompt_text(record, tokenizer)

    batches = rows.prompts_of(config, sets, policy, size=config.rl.prompts)
    guide = rows.guide_of(sets, tokenizer, max_tokens)
    if algorithm.sampling.taught is not None:
        guide = teaching.guide_of(config.teaching, train, policy, max_tokens=max_tokens)
    known = {"tokens": 0}

    judged = task.judge or tasks.judge_texts(
        train, reward, tokenizer, on_failed=config.reward_failed
    )

    def judge(rollout, numbers):
        fields = judged(rollout, numbers)
        values = np.asarray(fields["rewards"], np.float32)
        known["tokens"] = int(np.sum(np.asarray(rollout.trained)))
        return {"right": values >= config.right_at} | fields

    plain = tasks.host_step(
        watch.same_tokens(parts),
        judge,
        guide=guide,
        further=_further(config, train, ask, tokenizer),
        rounds=config.rounds,
        ahead=config.ahead,
        tell=tell,
    )

    def saying(state, batch):
        state, found = plain(state, batch)
        if reward is worthless:
            # Of rewards, which there are none of.
            del found["signal"]
        return state, found | task.said()

    alarmed = alarms.alarmed(saying, config.alarm, reads_beta=reads_beta(algorithm))
    step = watch.watched(alarmed, lambda _: known["tokens"])
    held = (
        None
        if sets.held_out is None
        else measures.held_out(
            sets.held_out,
            policy,
            reward,
            config.rl,
            config.writing,
            out,
            right_at=config.right_at,
            prompt_length=prompt_length,
            max_tokens=max_tokens,
            tool=tool,
        )
    )
    blank = np.zeros((config.rl.prompts, prompt_length), np.int32)
    shapes = Prompts(tokens=blank, mask=blank == 0, index=np.arange(len(blank)))
    phase = loop.Phase(name=task.kind, steps=config.rl.steps, shown=task.shown)
    recorded = config if task.recorded is None else task.recorded
    patience = config.model.mesh.timeout
    with loop.open_log(out.out, [phase], resume=out.resume, timeout=patience) as writer:
        setting.begin(
            recorded, out, kind=task.kind, model=config.model, phase=task.kind
        )
        state = loop.train(
            policies.placed(
                policy,
                parts.init(
                    policy.params,
                    jax.random.fold_in(key, 2),
                    records=len(train),
                    prompts=shapes if guide is None else guide(shapes),
                ),
            ),
            ahead.windows(batches, ahead=config.ahead) if config.ahead else batches,
            step.step,
            phase=phase,
            number=0,
            out=out.out,
            config=setting.compared(recorded),
            writer=writer,
            evaluate=None
            if held is None
            else lambda state: held.measure(state.params).summary(),
            evaluate_every=out.evaluate_every,
            save_every=out.save_every,
        )
        step.finish()
    setting.export(policy, state.params, out, config.model)
    log = metrics.read(out.out)
    if held is not None:
        # Sampled by all processes, written by the first.
        both = {
            "before": held.measure(policy.params),
            "after": held.measure(state.params),
        }
        if jax.process_index() == 0:
            path = out.out / "samples.md"
            measures.write_samples(path, held.texts, held.records, both)
            names = ("reward", "right", "kl")
            measures.draw(out.out / "curves.png", log, task.kind, names)
    return Result(state, policy._replace(params=state.params), out.out, log)


def _further(config: Config, train: data.Records, ask, tokenizer: data.Tokenizer):
    """What draws further prompts, where rounds of them are asked for."""
    if not config.rounds:
        return None
    every = data.encode_prompts(
        [ask(train[i]) for i in range(len(train))],
        tokenizer,
        length=config.prompt_length or 1,
        on_long="drop",
    )
    return dynamic.from_all(every, size=config.rl.prompts, seed=config.output.seed)
