"""Maximum likelihood of one's own answers (SFT)."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import jax

from alignax import references
from alignax.pipeline import data
from alignax.train import answers, options, supervised
from alignax.train import policy as policies
from alignax.train.runs import payoffs, rows, setting
from alignax.train.runs.options import Data, Flat, Model, Output
from alignax.train.runs.setting import Result
from alignax.train.supervised import SFT
from alignax.types import InputError

FORMATS = ("messages", "completions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Maximum likelihood of answers behind their prompts."""

    model: Annotated[Model, Flat]
    data: Annotated[Data, Flat]
    length: int | None = None
    """Tokens of the longest prompt with its answer; longer ones are left out. By
    default the data's percentile."""
    training: Annotated[SFT, Flat] = SFT(
        steps=300, batch_size=16, learning_rate=None, warmup=None
    )
    objective: Literal["likelihood", "otr", "f_sft", "ps_kd", "steer"] = "likelihood"
    """What is learned of an answer's tokens: their likelihood; one-token rollouts
    (otr), where other tokens that the policy might draw lose; an implicit reward
    (f_sft), by which answers that the policy has taken up weigh less; targets that
    are partly what the policy said in its last pass (ps_kd); or likelihood under a
    reverse KL to the first policy, with a bonus for entropy (steer)."""
    divergence: str = "pearson"
    """How f_sft matches the answers; total_variation is likelihood."""
    beta: float = 0.1
    """Strength of f_sft's and steer's regularisation towards the first policy."""
    entropy_bonus: float = 0.0
    """Weight of each token's entropy in steer."""
    past_weight: float = 0.8
    """Weight of the past in ps_kd's targets in the last pass, to which it rises from
    none in the first."""
    past_every: int | None = None
    """Steps of a pass of ps_kd; by default one through the data."""
    payoff_temperature: float | None = None
    """Draw the answers of each prompt in proportion to exp(reward / this) once, before
    training, as many as there are (RAML); by default each is learned as often as it
    stands in the data."""
    payoff_bins: int | None = None
    """Say before each prompt in which of this many bins of rewards its answer is, as in
    quality: 5/5, to ask for the best afterwards (Quark, STEER)."""
    payoff_field: str = "reward"
    """Field of the records with an answer's reward."""
    microbatches: int = 4
    """Parts that a batch is scanned in, to save memory; the gradient is the same."""
    output: Annotated[Output, Flat] = Output(out=Path("runs/supervised"))

    def __post_init__(self):
        rows.check(self.length, self.training.batch_size, self.microbatches)
        options.divergence_of(self.divergence)
        if not self.beta > 0:
            raise InputError(f"beta must be positive, got {self.beta}")
        if not 0 < self.past_weight <= 1:
            raise InputError(f"past_weight must be in (0, 1], got {self.past_weight}")
        if self.past_every is not None and self.past_every < 1:
            raise InputError(f"past_every must be at least 1, got {self.past_every}")
        if self.entropy_bonus < 0 or (
            self.entropy_bonus > 0 and self.objective != "steer"
        ):
            raise InputError(
                "entropy_bonus must not be negative, and is of the objective steer "
                f"alone, got {self.entropy_bonus} with {self.objective}"
            )
        if self.payoff_bins is not None and self.payoff_bins < 2:
            raise InputError(f"payoff_bins must be at least 2, got {self.payoff_bins}")
        if self.payoff_temperature is not None and not self.payoff_temperature > 0:
            raise InputError(
                f"payoff_temperature must be positive, got {self.payoff_temperature}"
            )


def _by_reward(config: Config, sets: setting.Sets) -> setting.Sets:
    """The answers of each prompt drawn, and told, by what they are worth."""
    field, bins = config.payoff_field, config.payoff_bins
    for name in ("payoff_temperature", "payoff_bins"):
        if getattr(config, name) is not None and sets.format == "messages":
            raise InputError(
                f"{name} is of records of a prompt and a completion, got messages"
            )
    if config.payoff_temperature is not None:
        drawn = payoffs.resampled(
            rows.listed(sets.train),
            temperature=config.payoff_temperature,
            field=field,
            seed=config.output.seed,
        )
        kept = len({id(record) for record in drawn})
        setting.say(f"answers by reward: {kept} of {len(drawn)} are learned from")
        sets = sets._replace(train=drawn)
    if bins is not None:
        train = rows.listed(sets.train)
        edges = payoffs.edges_of(payoffs.rewards_of(train, field), bins)
        setting.say(
            f"{len(edges) + 1} bins of {field}, from "
            f"{', '.join(f'{edge:.4g}' for edge in edges)} on"
        )
        sets = sets._replace(train=payoffs.told(train, edges, field))
        if sets.held_out is not None:
            held = rows.listed(sets.held_out)
            sets = sets._replace(held_out=payoffs.told(held, edges, field))
    return sets


def _pass(config: Config, records: int) -> int:
    """Steps of a pass of the progressive targets."""
    every = config.past_every or max(1, records // config.training.batch_size)
    if config.objective == "ps_kd" and every >= config.training.steps:
        raise InputError(
            f"past_every must be less than the {config.training.steps} steps, got "
            f"{every}{'' if config.past_every else ', a pass through the data'}: the "
            "first pass has no past to learn from"
        )
    return every


def run(config: Config) -> Result:
    """Teach a policy answers, and write all that the folder is to hold.

    The learning rate is by default 1e-5 of all parameters and 2e-4 of adapters, as
    TRL's examples and the LoRA papers have it.

    Args:
      config: the options.

    Returns:
      the state at the end, the policy with the trained parameters, the folder and the
      rows of its log.

    Raises:
      InputError: an option, the data or the model's folder is bad.
      RunError: the run cannot go on.
    """
    out = config.output
    setting.check(out, config.model)
    tokenizer = setting.tokenizer_of(config.model)
    sets = setting.read(config.data, FORMATS, tokenizer, seed=out.seed)
    sets = _by_reward(config, sets)
    if sets.format == "messages":
        sets = sets._replace(
            train=data.each_turn(rows.listed(sets.train)),
            held_out=sets.held_out and data.each_turn(rows.listed(sets.held_out)),
        )
    policy = setting.open_model(config.model, seed=out.seed)

    def texts(record):
        return data.supervised_texts(record, tokenizer)

    rate = 2e-4 if policy.lora else 1e-5
    config = rows.settled(config, config.training, sets, texts, policy, rate=rate)
    length = config.length or 1
    count = config.training.batch_size // config.microbatches
    policy = setting.checkpointed(policy, config.model, tokens=count * length)
    tx, key = supervised.optimiser(config.training), jax.random.key(out.seed)
    written = {
        "prompt": lambda record: texts(record)[0],
        "answer": lambda record: texts(record)[1],
    }
    batches = data.supervised_batches(
        sets.train,
        tokenizer,
        **written,
        batch_size=config.training.batch_size,
        length=length,
        seed=out.seed,
        on_long="drop",
        **rows.WHOLE,
    )

    def encoded(records):
        pairs = [texts(record) for record in records]
        return data.encode_supervised(
            [prompt for prompt, _ in pairs],
            [answer for _, answer in pairs],
            tokenizer,
            length=length,
            on_long="drop",
        )

    every, steps = _pass(config, len(sets.train)), config.training.steps

    def step(apply_fn, hidden_fn):
        score, parts = supervised.score_by_hidden(hidden_fn), config.microbatches
        if config.objective == "likelihood":
            return supervised.make_step(score, tx, microbatches=parts)
        loss = answers.one_token_rollouts(apply_fn)
        if config.objective == "f_sft":
            div = options.divergence_of(config.divergence)
            loss = answers.implicit_reward(score, div, beta=config.beta)
        elif config.objective == "ps_kd":
            loss = answers.progressive(
                hidden_fn, most=config.past_weight, every=every, steps=steps
            )
        elif config.objective == "steer":
            loss = answers.regularised(
                hidden_fn, beta=config.beta, entropy_bonus=config.entropy_bonus
            )
        return supervised.make_loss_step(
            loss,
            tx,
            microbatches=parts,
            reference=references.periodic_reset(every=every)
            if config.objective == "ps_kd"
            else references.fixed(),
        )

    def losses(_, hidden_fn):
        def measured(params, part) -> rows.Sums:
            logp = supervised.score_by_hidden(hidden_fn)(params, part)
            count = part.loss_mask[:, 1:].sum(axis=-1)
            return {"loss": (-logp.sum(axis=-1), count)}

        return measured

    state, log = rows.train(
        config,
        out,
        model=config.model,
        kind="supervised",
        steps=steps,
        shown=("loss", "answer_probability", "memory"),
        state=policies.placed(
            policy,
            supervised.init_state(
                policy.params,
                tx,
                key,
                reference=policy.params
                if config.objective in ("f_sft", "ps_kd", "steer")
                else None,
            ),
        ),
        batches=batches,
        step=policies.jitted(policy, step, name="step", donate=True),
        held_out=rows.held_out(sets, encoded, out, count=config.training.batch_size),
        measured=policies.jitted(policy, losses, name="measured"),
        drawn=("loss",),
    )
    setting.export(policy, state.params, out, config.model)
    return Result(state, policy._replace(params=state.params), out.out, log)
