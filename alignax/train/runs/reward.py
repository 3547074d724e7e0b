"""A reward model from one's own pairs, or from labels."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from alignax import preference as pf
from alignax.pipeline import data, metrics
from alignax.pipeline.data import PairRows
from alignax.train import folders, reward_folders, reward_model, supervised
from alignax.train import policy as policies
from alignax.train.runs import rows, setting
from alignax.train.runs.options import Data, Flat, Model, Output
from alignax.train.supervised import SFT
from alignax.types import InputError, TrainState

FORMATS = ("pairs", "labelled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A reward model: a policy's body with one output, at a completion's last token."""

    model: Annotated[Model, Flat]
    data: Annotated[Data, Flat]
    length: int | None = None
    """Tokens of the longest prompt with its answer; longer ones are left out. By
    default the data's percentile."""
    centring: float = 0.01
    """Strength of the pull of a pair's rewards towards a sum of 0, which fixes their
    constant; of pairs only."""
    training: Annotated[SFT, Flat] = SFT(
        steps=300, batch_size=16, learning_rate=None, warmup=None
    )
    microbatches: int = 4
    """Parts that a batch is scanned in, to save memory; the gradient is the same."""
    output: Annotated[Output, Flat] = Output(out=Path("runs/reward"))

    def __post_init__(self):
        rows.check(self.length, self.training.batch_size, self.microbatches)
        if not self.centring >= 0:
            raise InputError(f"centring must not be negative, got {self.centring}")


class Result(NamedTuple):
    """What a run leaves to a notebook."""

    state: TrainState
    model: reward_folders.RewardModel
    folder: Path
    metrics: list[metrics.Row]


def run(config: Config) -> Result:
    """Train a reward model, and write a folder that ``--reward model:FOLDER`` reads.

    Pairs train it by the Bradley-Terry likelihood, labels by the logistic one. The
    learning rate is by default 1e-5, as InstructGPT's and TRL's reward models have it,
    and ten times as much of adapters, beside which the head is trained.

    Args:
      config: the options.

    Returns:
      the state at the end, the trained model, the folder and the rows of its log.

    Raises:
      InputError: an option, the data or the model's folder is bad.
      RunError: the run cannot go on.
    """
    out = config.output
    setting.check(out, config.model)
    tokenizer = setting.tokenizer_of(config.model)
    sets = setting.read(config.data, FORMATS, tokenizer, seed=out.seed)
    policy = setting.open_model(config.model, seed=out.seed)
    pairs = sets.format == "pairs"

    def texts(record):
        of = data.pair_texts if pairs else data.labelled_texts
        return of(record, tokenizer)

    rate = 1e-4 if policy.lora else 1e-5
    config = rows.settled(config, config.training, sets, texts, policy, rate=rate)
    length, size = config.length or 1, config.training.batch_size
    key, tx = jax.random.key(out.seed), supervised.optimiser(config.training)
    count = (2 if pairs else 1) * size // config.microbatches
    model = setting.checkpointed(
        reward_model.as_policy(policy, key), config.model, tokens=count * length
    )

    def stepper(_, hidden_fn):
        reward_fn, parts = reward_model.by_hidden(hidden_fn), config.microbatches
        if pairs:
            loss = partial(pf.bradley_terry_loss, centring=config.centring)
            return reward_model.make_step(loss, reward_fn, tx, microbatches=parts)
        return reward_model.make_label_step(
            pf.binary_feedback_loss, reward_fn, tx, microbatches=parts
        )

    def measured(_, hidden_fn):
        reward_fn = reward_model.by_hidden(hidden_fn)

        def of(params, batch) -> rows.Sums:
            if isinstance(batch, PairRows):
                w, l = reward_model.pair_rewards(reward_fn, params, batch)
                one = jnp.ones(len(w))
                return {"accuracy": (w > l, one), "margin": (w - l, one)}
            logits = reward_model.rewards_of(reward_fn, params, batch.rows)
            right = (logits > 0) == batch.desirable
            return {"accuracy": (right, jnp.ones(len(logits)))}

        return of

    state, log = rows.train(
        config,
        out,
        model=config.model,
        kind="reward",
        steps=config.training.steps,
        shown=("loss", "accuracy", "margin", "memory"),
        state=policies.placed(model, supervised.init_state(model.params, tx, key)),
        batches=rows.preferences(sets, tokenizer, length, size, out.seed),
        step=policies.jitted(model, stepper, name="step", donate=True),
        held_out=rows.held_out(
            sets, rows.encoder(sets.format, tokenizer, length), out, count=size
        ),
        measured=policies.jitted(model, measured, name="measured"),
        drawn=("accuracy",),
    )
    folder = out.out / "model"
    source = folders.find(config.model.folder).base
    params = policies.whole(model, state.params)
    reward_folders.save(folder, policy.config, params, source=source)
    trained = reward_folders.RewardModel(policy.config, params, tokenizer)
    return Result(state, trained, out.out, log)
