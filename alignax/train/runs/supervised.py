"""Maximum likelihood of one's own answers (SFT)."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import jax

from alignax import references
from alignax.pipeline import data
from alignax.train import options, supervised
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
    objective: Literal["likelihood", "otr", "f_sft", "ps_kd"] = "likelihood"
    """What is learned of an answer's tokens: their likelihood; one-token rollouts
    (otr), where other tokens that the policy might draw lose; an implicit reward
    (f_sft), by which answers that the policy has taken up weigh less; or targets that
    are partly what the policy said in its last pass (ps_kd)."""
    divergence: str = "pearson"
    """How f_sft matches the answers; total_variation is likelihood."""
    beta: float = 0.1
    """Strength of f_sft's regularisation towards the first policy."""
    past_weight: float = 0.8
    """Weight of the past in ps_kd's targets in the last pass, to which it rises from
    none in the first."""
    past_every: int | None = None
    """Steps of a pass of ps_kd; by default one through the data."""
    payoff_temperature: float | None = None
    """Draw the answers of each prompt in proportion to exp(reward / this) once, before
    training, as many as there are (RAML); by default each is learned as often as it
    stands in the data."""
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
        if self.payoff_temperature is not None and not self.payoff_temperature > 0:
            raise InputError(
                f"payoff_temperature must be positive, got {self.payoff_temperature}"
            )


def _drawn(config: Config, sets: setting.Sets) -> list[Any]:
    """The answers of each prompt by what they are worth."""
    if sets.format == "messages":
        raise InputError(
            "payoff_temperature is of records of a prompt and a completion, got "
            "messages"
        )
    records = payoffs.resampled(
        rows.listed(sets.train),
        temperature=config.payoff_temperature or 1.0,
        field=config.payoff_field,
        seed=config.output.seed,
    )
    kept = len({id(record) for record in records})
    setting.say(f"answers by reward: {kept} of {len(records)} are learned from")
    return records


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
    setting.check(out)
    tokenizer = setting.tokenizer_of(config.model)
    sets = setting.read(config.data, FORMATS, tokenizer, seed=out.seed)
    if config.payoff_temperature is not None:
        sets = sets._replace(train=_drawn(config, sets))
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
    answers = {
        "prompt": lambda record: texts(record)[0],
        "answer": lambda record: texts(record)[1],
    }
    batches = data.supervised_batches(
        sets.train,
        tokenizer,
        **answers,
        batch_size=config.training.batch_size,
        length=length,
        seed=out.seed,
        on_long="drop",
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
        loss = supervised.one_token_rollouts(apply_fn)
        if config.objective == "f_sft":
            div = options.divergence_of(config.divergence)
            loss = supervised.implicit_reward(score, div, beta=config.beta)
        elif config.objective == "ps_kd":
            loss = supervised.progressive(
                hidden_fn, most=config.past_weight, every=every, steps=steps
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
        state=supervised.init_state(
            policy.params,
            tx,
            key,
            reference=policy.params if config.objective in ("f_sft", "ps_kd") else None,
        ),
        batches=batches,
        step=policies.jitted(policy, step, name="step", donate=True),
        held_out=rows.held_out(sets, encoded, out, count=config.training.batch_size),
        measured=policies.jitted(policy, losses, name="measured"),
        drawn=("loss",),
    )
    setting.export(policy, state.params, out, config.model)
    return Result(state, policy._replace(params=state.params), out.out, log)
