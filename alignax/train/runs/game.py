"""Preference games on one's own prompts: a policy that no other is preferred to."""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from alignax import controllers
from alignax.pipeline import data, hosts, rewards
from alignax.pipeline import rollout as rollouts
from alignax.train import evaluation, game, reward_folders, supervised
from alignax.train import policy as policies
from alignax.train.policy import Policy
from alignax.train.runs import measure as measures
from alignax.train.runs import rows, setting
from alignax.train.runs.options import Data, Flat, Model, Output
from alignax.train.runs.setting import Result, Sets
from alignax.train.supervised import SFT
from alignax.types import InputError, Params, Rollout

FORMATS = ("completions", "prompts")
SHOWN = ("preference", "kl", "length", "memory")
Judge = Callable[[Rollout, Rollout, np.ndarray, int], np.ndarray]
"""``(rollout, opponents, record numbers [G], K) -> [G, K, L]``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A preference game against oneself, under the KL from the model."""

    model: Annotated[Model, Flat]
    data: Annotated[Data, Flat]
    judge: str | None = None
    """What prefers: FILE.py:function (first, second, records) -> the probability, from
    0 to 1, that the first completion is preferred. Or give rewards."""
    reward: tuple[str, ...] = ()
    """Rewards whose difference prefers, spelled as those of train rl, model:FOLDER
    among them."""
    reward_scale: float = 1.0
    """The log-odds of a preference for one more unit of reward (Bradley-Terry); inf
    prefers the higher reward outright."""
    method: Literal[
        "nash_md", "nash_ema", "nash_mp", "ipo_md", "sppo", "inpo", "xpo"
    ] = "nash_md"
    """Who the opponent is, and the loss: a mixture with the reference (nash_md,
    ipo_md), one's moving average (nash_ema), mirror prox's inner loop (nash_mp), the
    policy of some steps ago, which writes both sides (sppo, inpo), or the reference
    (xpo)."""
    mixture: float = 0.125
    """Share of the reference in the opponent of nash_md and ipo_md; 0 plays against
    oneself (online IPO, with ipo_md)."""
    decay: float = 0.99
    """What the moving average of nash_ema keeps of itself at each step."""
    eta: float | None = None
    """Step size of nash_mp, one over the strength of its second KL, by default 10; and
    of inpo, at most 1 / beta and by default a third of that."""
    inner_steps: int = 10
    """Steps of nash_mp towards each proximal point, and for which sppo and inpo play
    against the same policy."""
    alpha: float = 1e-5
    """Weight of xpo's bonus for what the reference does not say."""
    beta: float = 0.1
    """Strength of the KL from the model; with sppo, from the policy of inner_steps
    ago."""
    target_kl: float | None = None
    """The KL to hold by adapting beta, in nats a completion; None leaves beta as it
    is."""
    completions: int = 4
    """Completions of each prompt."""
    opponents: int = 4
    """The opponent's completions of each prompt; all are compared with all."""
    prompt_length: int | None = None
    """Tokens of the longest prompt; longer ones are left out. By default the data's
    percentile."""
    max_tokens: int | None = None
    """Tokens of the longest completion. By default half more than the data's
    completions have, where it has some, else 256, as far as the context goes."""
    training: Annotated[SFT, Flat] = SFT(
        steps=200, batch_size=8, learning_rate=None, warmup=None
    )
    microbatches: int = 4
    """Parts that a batch is scanned in, to save memory; the gradient is the same."""
    output: Annotated[Output, Flat] = Output(out=Path("runs/game"))

    def __post_init__(self):
        rows.check(self.prompt_length, self.training.batch_size, self.microbatches)
        if (self.judge is None) == (not self.reward):
            raise InputError(
                "judge or reward, one of the two, must say what is preferred: "
                "--judge FILE.py:function, or --reward as of train rl"
            )
        for name in ("completions", "opponents", "inner_steps", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        for name in ("reward_scale", "eta", "beta", "target_kl"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be positive, got {value}")
        if not self.alpha >= 0:
            raise InputError(f"alpha must not be negative, got {self.alpha}")
        if self.method == "inpo" and (self.eta or 0) * self.beta > 1:
            raise InputError(
                f"eta must be at most 1 / beta = {1 / self.beta:g} with inpo, got "
                f"{self.eta}"
            )
        for name in ("mixture", "decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )


def method_of(config: Config) -> game.Method:
    """The method with its options.

    Args:
      config: the options.

    Returns:
      the method.
    """
    if config.method == "nash_ema":
        return game.nash_ema(decay=config.decay)
    if config.method == "nash_mp":
        eta = 10.0 if config.eta is None else config.eta
        return game.nash_mp(eta=eta, inner_steps=config.inner_steps)
    if config.method == "inpo":
        eta = 1 / (3 * config.beta) if config.eta is None else config.eta
        return game.inpo(eta=eta, inner_steps=config.inner_steps)
    if config.method == "sppo":
        return game.sppo(inner_steps=config.inner_steps)
    if config.method == "xpo":
        return game.xpo(alpha=config.alpha)
    maker = game.nash_md if config.method == "nash_md" else game.ipo_md
    return maker(mixture=config.mixture)


def by_rewards(
    records: data.Records, reward: rewards.Reward, tokenizer: data.Tokenizer, scale
) -> Judge:
    """Preferences ``σ(scale (r − r'))``, a half at a tie; NaN where a reward is.

    Args:
      records: all that prompts are made of.
      reward: of a completion.
      tokenizer: decodes the completions.
      scale: the log-odds of a unit; inf for the higher one outright.

    Returns:
      the judge.
    """

    def judge(rollout, opponents, numbers, completions):
        def values(side, count):
            texts = data.decode_rows(side.tokens, side.attended, tokenizer)
            asked = np.repeat(numbers, count)
            found = [{"index": int(n), **records[int(n)]} for n in asked]
            return rewards.checked(reward(texts, found), asked).reshape(-1, count)

        count = len(opponents.tokens) // len(numbers)
        gaps = values(rollout, completions)[:, :, None]
        gaps = gaps - values(opponents, count)[:, None, :]
        if np.isinf(scale):
            return np.where(np.isnan(gaps), gaps, (np.sign(gaps) + 1) / 2)
        return np.asarray(jax.nn.sigmoid(jnp.asarray(scale * gaps)))

    return judge


def by_file(records: data.Records, name: str, tokenizer: data.Tokenizer) -> Judge:
    """The user's own preferences, asked once for all pairs of a batch.

    Args:
      records: all that prompts are made of.
      name: ``FILE.py:function``.
      tokenizer: decodes the completions.

    Returns:
      the judge.

    Raises:
      InputError: the function is missing, cannot be called, or answers otherwise.
    """
    function = rewards.load_function(name, "judge")
    try:
        inspect.signature(function).bind([], [], [])
    except TypeError as error:
        raise InputError(
            f"judge: {name} cannot be called with (first, second, records): {error}."
        ) from error

    def judge(rollout, opponents, numbers, completions):
        own, other = (
            data.decode_rows(side.tokens, side.attended, tokenizer)
            for side in (rollout, opponents)
        )
        count = len(other) // len(numbers)
        shape = (len(numbers), completions, count)
        places = [(g, k, m) for g, k, m in np.ndindex(*shape)]
        first = [own[g * completions + k] for g, k, _ in places]
        second = [other[g * count + m] for g, _, m in places]
        asked = [{"index": int(n), **records[int(n)]} for n in numbers]
        found = np.asarray(
            function(first, second, [asked[g] for g, *_ in places]), np.float32
        )
        if found.shape != (len(places),) or not np.all((found >= 0) & (found <= 1)):
            raise InputError(
                f"judge: {name} must give a probability from 0 to 1 for each of the "
                f"{len(places)} pairs, got shape {list(found.shape)}"
                + (f", {found.min():g} to {found.max():g}" if found.size else "")
            )
        return found.reshape(shape)

    return judge


def run(config: Config) -> Result:
    """Play, and write all that the folder is to hold.

    The learning rate is by default 2e-6 of all parameters and 2e-5 of adapters, as of
    ``runs.rl``.

    Args:
      config: the options.

    Returns:
      the state at the end, the policy with the trained parameters, the folder and the
      rows of its log.

    Raises:
      InputError: an option, the data, the judge or the model's folder is bad.
      RunError: the run cannot go on.
    """
    out = config.output
    setting.check(out, config.model)
    tokenizer = setting.tokenizer_of(config.model)
    with contextlib.ExitStack() as stack:
        reward = None
        if config.reward:
            reward = stack.enter_context(reward_folders.open_rewards(config.reward))

        def judge_of(records: data.Records) -> Judge:
            if reward is None:
                return by_file(records, config.judge or "", tokenizer)
            return by_rewards(records, reward, tokenizer, config.reward_scale)

        sets = setting.read(config.data, FORMATS, tokenizer, seed=out.seed)
        policy = setting.open_model(config.model, seed=out.seed)
        rate = 2e-5 if policy.lora else 2e-6
        config = rows.settled_prompts(config, sets, policy, rate=rate)
        count = max(config.completions, config.opponents) * config.training.batch_size
        length = (config.prompt_length or 0) + (config.max_tokens or 0)
        policy = setting.checkpointed(
            policy, config.model, tokens=count // config.microbatches * length
        )
        return _run(config, sets, policy, judge_of)


def _run(
    config: Config,
    sets: Sets,
    policy: Policy,
    judge_of: Callable[[data.Records], Judge],
) -> Result:
    out, tokenizer, method = config.output, policy.tokenizer, method_of(config)
    key, tx = jax.random.key(out.seed), supervised.optimiser(config.training)

    def sampler(apply_fn, _):
        return game.make_sampler(
            method,
            apply_fn,
            completions=config.completions,
            opponents=config.opponents,
            max_tokens=config.max_tokens or 1,
            eos_id=tokenizer.end_ids,
            pad_id=tokenizer.pad_id,
            jit=False,
        )

    def stepper(_, hidden_fn):
        score = rollouts.score_by_hidden(hidden_fn)
        count = config.microbatches
        return game.make_step(method, score, tx, microbatches=count, jit=False)

    sample = policies.jitted(policy, sampler, name="sample")
    move = policies.jitted(policy, stepper, name="step", donate=True)
    judge, known = judge_of(sets.train), {"tokens": 0}

    def play(state, prompts):
        contest = sample(state, prompts)
        numbers = np.asarray(prompts.index)
        own, other = hosts.fetch((contest.rollout, contest.opponents))
        verdicts = judge(own, other, numbers, config.completions)
        known["tokens"] = int(np.sum(np.asarray(own.trained)))
        return move(state, contest.judged(verdicts))

    beta: Any = config.beta
    if config.target_kl is not None:
        beta = controllers.adaptive_kl(beta=beta, target=config.target_kl)
    state, log = rows.train(
        config,
        out,
        model=config.model,
        kind="game",
        steps=config.training.steps,
        shown=SHOWN,
        state=policies.placed(
            policy, game.init_state(method, policy.params, tx, key, beta=beta)
        ),
        batches=rows.prompts_of(config, sets, policy, size=config.training.batch_size),
        step=play,
        drawn=("win_rate", "kl"),
        evaluate=_against_the_model(config, sets.held_out, policy, judge_of),
        counted=lambda: known["tokens"],
    )
    setting.export(policy, state.params, out, config.model)
    return Result(state, policy._replace(params=state.params), out.out, log)


def _against_the_model(
    config: Config,
    records: data.Records | None,
    policy: Policy,
    judge_of: Callable[[data.Records], Judge],
):
    """``state -> metrics``: one completion of each held-out prompt, and whether it is
    preferred to one of the model that the run began from."""
    if records is None:
        return None
    some = [
        records[i] for i in range(min(len(records), config.output.evaluate_prompts))
    ]
    tokenizer, judge = policy.tokenizer, judge_of(some)
    prompts = data.encode_prompts(
        [data.prompt_text(record, tokenizer) for record in some],
        tokenizer,
        length=config.prompt_length or 1,
        on_long="drop",
    )
    plain = evaluation.make_writer(
        policy, max_tokens=config.max_tokens or 1, completions=1
    )
    write = evaluation.make_evaluator(policy, plain, completions=1)
    first: Params = policy.params
    keys = jax.random.split(jax.random.key(config.output.seed + 1))
    theirs: list[Rollout] = []

    def evaluate(state):
        if not theirs:
            theirs.append(hosts.fetch(plain(first, keys[0], prompts)))
        rollout, kl = hosts.fetch(write(state.params, first, keys[1], prompts))
        wins = judge(rollout, theirs[0], np.asarray(prompts.index), 1)[:, 0, 0]
        found = {
            "win_rate": wins,
            "kl": kl,
            "length": np.sum(np.asarray(rollout.trained), axis=-1),
            "finished": rollout.finished,
        }
        return measures.means(found)

    return evaluate
