"""A reward model from one's own pairs, or from labels."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from alignax import preference as pf
from alignax.models import heads
from alignax.pipeline import data, metrics
from alignax.pipeline.data import PairRows
from alignax.train import folders, reward_folders, reward_model, supervised
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
        if self.model.lora.rank:
            raise InputError(
                f"lora.rank has no use for a reward model, whose head is fresh, got "
                f"{self.model.lora.rank}; leave it out"
            )
        if self.model.remat not in ("auto", "none"):
            raise InputError(
                f"remat is not there for reward models, got {self.model.remat}; raise "
                "microbatches to save memory"
            )
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
    learning rate is by default 1e-5, as InstructGPT's and TRL's reward models have it.

    Args:
      config: the options.

    Returns:
      the state at the end, the trained model, the folder and the rows of its log.

    Raises:
      InputError: an option, the data or the model's folder is bad.
      RunError: the run cannot go on.
    """
    out = config.output
    setting.check(out)
    tokenizer = setting.tokenizer_of(config.model)
    sets = setting.read(config.data, FORMATS, tokenizer, seed=out.seed)
    policy = setting.open_model(config.model, seed=out.seed)
    pairs = sets.format == "pairs"

    def texts(record):
        of = data.pair_texts if pairs else data.labelled_texts
        return of(record, tokenizer)

    config = rows.settled(config, config.training, sets, texts, policy, rate=1e-5)
    length, size = config.length or 1, config.training.batch_size
    key, tx = jax.random.key(out.seed), supervised.optimiser(config.training)
    params = heads.reward_from_policy(policy.config, policy.params, key)
    reward_fn, step = heads.make_reward(policy.config), None
    if pairs:
        loss = partial(pf.bradley_terry_loss, centring=config.centring)
        step = reward_model.make_step(
            loss, reward_fn, tx, microbatches=config.microbatches
        )
    else:
        step = reward_model.make_label_step(
            pf.binary_feedback_loss, reward_fn, tx, microbatches=config.microbatches
        )

    def measured(params, batch) -> rows.Sums:
        if isinstance(batch, PairRows):
            w, l = reward_model.pair_rewards(reward_fn, params, batch)
            one = jnp.ones(len(w))
            return {"accuracy": (w > l, one), "margin": (w - l, one)}
        logits = reward_model.rewards_of(reward_fn, params, batch.rows)
        return {"accuracy": ((logits > 0) == batch.desirable, jnp.ones(len(logits)))}

    state, log = rows.train(
        config,
        out,
        model=config.model,
        kind="reward",
        steps=config.training.steps,
        shown=("loss", "accuracy", "margin", "memory"),
        state=supervised.init_state(params, tx, key),
        batches=rows.preferences(sets, tokenizer, length, size, out.seed),
        step=step,
        held_out=rows.held_out(
            sets, rows.encoder(sets.format, tokenizer, length), out, count=size
        ),
        measured=jax.jit(measured),
        drawn=("accuracy",),
    )
    folder = out.out / "model"
    source = folders.find(config.model.folder).base
    if jax.process_index() == 0:
        reward_folders.save(folder, policy.config, state.params, source=source)
    model = reward_folders.RewardModel(policy.config, state.params, tokenizer)
    return Result(state, model, out.out, log)
