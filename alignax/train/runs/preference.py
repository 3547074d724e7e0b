"""Learning from one's own pairs or labels: any loss of ``alignax.preference``."""

import contextlib
import dataclasses
import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from alignax import controllers, references
from alignax import preference as pf
from alignax.pipeline import data, rewards
from alignax.pipeline.data import PairRows
from alignax.train import options, preference, reward_folders, supervised
from alignax.train import pairs as pair_rows
from alignax.train import policy as policies
from alignax.train.policy import Policy
from alignax.train.runs import rows, setting
from alignax.train.runs.options import Data, Flat, Model, Output
from alignax.train.runs.setting import Result, Sets
from alignax.train.supervised import SFT
from alignax.types import HiddenFn, InputError

FORMATS = ("pairs", "labelled")
BETAS = {"ipo": 0.05, "ipo_averaged": 0.5, "ln_dpo": 5.0, "simpo": 5.0, "alpha_po": 5.0}
"""What beta is by default where it is not 0.1: it has another scale where margins are
means over tokens, or targets of sums."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A preference loss, under a divergence from the model that it begins from."""

    model: Annotated[Model, Flat]
    data: Annotated[Data, Flat]
    loss: str = "dpo"
    """The loss: dpo, ipo, simpo, kto, orpo, tdpo2 … of pairs; kto, apo_zero or bco of
    labelled completions, as the data has it."""
    divergence: str | None = None
    """Takes f-DPO with this divergence, such as forward_kl, jensen_shannon or
    alpha:0.5, in place of DPO's reverse KL."""
    beta: float | None = None
    """Strength of the regularisation; by default 0.1, or what suits the scale of a
    loss: 0.05 of ipo, 5 of simpo and ln_dpo."""
    target_kl: float | None = None
    """The forward KL to hold by adapting beta, in nats a completion; None leaves beta
    as it is."""
    reference: Literal["fixed", "moving_average", "periodic_reset"] = "fixed"
    """Which policy the loss measures from: the first one, its moving average, or the
    policy of every so many steps ago (TR-DPO)."""
    reference_every: int = 50
    """Steps between two resets of the reference."""
    reference_decay: float = 0.99
    """What the moving average keeps of itself at each step."""
    reward: tuple[str, ...] = ()
    """Rewards of both sides, for losses that need them (copg, rebel): spelled as those
    of train rl, model:FOLDER among them."""
    length: int | None = None
    """Tokens of the longest prompt with its answer; longer ones are left out. By
    default the data's percentile."""
    training: Annotated[SFT, Flat] = SFT(
        steps=300, batch_size=16, learning_rate=None, warmup=None
    )
    microbatches: int = 4
    """Parts that a batch is scanned in, to save memory; the gradient is the same."""
    output: Annotated[Output, Flat] = Output(out=Path("runs/preference"))

    def __post_init__(self):
        rows.check(self.length, self.training.batch_size, self.microbatches)
        known = {**pf.LOSSES, **pf.LABEL_LOSSES}
        if self.loss not in known:
            near = difflib.get_close_matches(self.loss, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(
                f"loss must be one of {', '.join(known)}, got {self.loss!r}{hint}"
            )
        if self.divergence is not None:
            if self.loss not in ("dpo", "f_dpo"):
                raise InputError(
                    f"divergence is f-DPO's to choose, got {self.divergence} with the "
                    f"loss {self.loss}; leave one of them out"
                )
            options.divergence_of(self.divergence)
        for name in ("beta", "target_kl"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} must be positive and finite, got {value}")


def loss_of(config: Config, format: str) -> pf.PairLoss:
    """The loss, of pairs or of labels.

    Args:
      config: the options.
      format: ``pairs`` or ``labelled``.

    Returns:
      the loss with what it needs.

    Raises:
      InputError: there is none of that name for such data, or f-DPO's divergence has
        no such loss.
    """
    if format == "labelled":
        if config.loss not in pf.LABEL_LOSSES or config.divergence is not None:
            raise InputError(
                f"loss must be one of {', '.join(pf.LABEL_LOSSES)} for data with "
                f"labels, got {config.loss}; data with chosen and rejected would do"
            )
        return pf.LABEL_LOSSES[config.loss]
    if config.divergence is None:
        return pf.LOSSES[config.loss]
    div = options.divergence_of(config.divergence)
    loss = pf.PairLoss(partial(pf.f_dpo, div))
    # It refuses what has no such loss where it is first called.
    zeros = jnp.zeros(1)
    loss(pf.Pair(zeros, zeros, zeros, zeros, zeros + 1, zeros + 1), beta=1.0)
    return loss


def run(config: Config) -> Result:
    """Train a policy by preferences, and write all that the folder is to hold.

    The learning rate is by default 5e-7 of all parameters, as DPO's and Zephyr's, and
    ten times as much of adapters.

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
    loss = loss_of(config, sets.format)
    if "rewards" in loss.needs and not config.reward:
        raise InputError(
            f"reward: the loss {config.loss} needs rewards of both sides; numeric, "
            "FILE.py:function or model:FOLDER would do"
        )
    if not loss.reference and config.target_kl is not None:
        raise InputError(
            f"target_kl has nothing to act on, got {config.target_kl}: the loss "
            f"{config.loss} has no reference"
        )
    policy = setting.open_model(config.model, seed=out.seed)

    def texts(record):
        of = data.pair_texts if sets.format == "pairs" else data.labelled_texts
        return of(record, tokenizer)

    rate = 5e-6 if policy.lora else 5e-7
    config = rows.settled(config, config.training, sets, texts, policy, rate=rate)
    config = dataclasses.replace(
        config, beta=config.beta or BETAS.get(config.loss, 0.1)
    )
    count = 2 * config.training.batch_size // config.microbatches
    tokens = count * (config.length or 1)
    policy = setting.checkpointed(policy, config.model, tokens=tokens)
    with contextlib.ExitStack() as stack:
        reward = None
        if "rewards" in loss.needs:
            reward = stack.enter_context(reward_folders.open_rewards(config.reward))
        return _run(config, sets, policy, loss, reward)


def _run(
    config: Config,
    sets: Sets,
    policy: Policy,
    loss: pf.PairLoss,
    reward: rewards.Reward | None,
) -> Result:
    out, tokenizer = config.output, policy.tokenizer
    length, size = config.length or 1, config.training.batch_size
    tx, key = supervised.optimiser(config.training), jax.random.key(out.seed)
    beta, controller = config.beta or 0.1, None
    if config.target_kl is not None:
        controller = controllers.adaptive_kl(beta=beta, target=config.target_kl)
    rule = {
        "fixed": references.fixed,
        "moving_average": lambda: references.moving_average(
            decay=config.reference_decay
        ),
        "periodic_reset": lambda: references.periodic_reset(
            every=config.reference_every
        ),
    }[config.reference]()
    parts = {
        "microbatches": config.microbatches,
        "controller": controller,
        "rule": rule,
    }
    pairs = sets.format == "pairs"

    def stepper(_, hidden_fn):
        score = supervised.score_by_hidden(hidden_fn)
        if not pairs:
            return preference.make_label_step(loss, score, tx, **parts)
        laws = pair_rows.laws_by_hidden(hidden_fn)
        return preference.make_step(loss, score, tx, laws=laws, **parts)

    step = policies.jitted(policy, stepper, name="step", donate=True)
    if pairs:
        step = _completed(step, loss, sets, policy, reward)

    state, log = rows.train(
        config,
        out,
        model=config.model,
        kind="preference",
        steps=config.training.steps,
        shown=("loss", "accuracy", "margin", "forward_kl", "memory"),
        state=policies.placed(
            policy,
            preference.init_state(
                policy.params,
                tx,
                key,
                beta=controller or beta,
                reference=policy.params if loss.reference or loss.needs else None,
                rule=rule,
            ),
        ),
        batches=rows.preferences(sets, tokenizer, length, size, out.seed),
        step=step,
        held_out=rows.held_out(
            sets, rows.encoder(sets.format, tokenizer, length), out, count=size
        ),
        measured=partial(
            policies.jitted(policy, _measured, name="measured"), policy.params
        ),
        drawn=("accuracy", "forward_kl"),
    )
    setting.export(policy, state.params, out, config.model)
    return Result(state, policy._replace(params=state.params), out.out, log)


def _measured(_, hidden_fn: HiddenFn) -> Callable[..., rows.Sums]:
    """``(reference, params, batch) -> sums``."""
    score = supervised.score_by_hidden(hidden_fn)

    def measured(reference, params, batch) -> rows.Sums:
        if isinstance(batch, PairRows):
            now, first = (
                pair_rows.pair_logp(score, p, batch) for p in (params, reference)
            )
            u, v = (jnp.sum(a - b, axis=-1) for a, b in zip(now, first, strict=True))
            one = jnp.ones(len(u))
            found = {"accuracy": u > v, "margin": u - v, "forward_kl": -(u + v) / 2}
            return {name: (x, one) for name, x in found.items()}
        now, first = (score(p, batch.rows) for p in (params, reference))
        ratio = jnp.sum(now - first, axis=-1)
        one = jnp.ones(len(ratio))
        right = jnp.where(batch.desirable, ratio > 0, ratio < 0)
        return {"accuracy": (right, one), "forward_kl": (-ratio, one)}

    return measured


def _completed(
    step: Callable[..., Any],
    loss: pf.PairLoss,
    sets: Sets,
    policy: Policy,
    reward: rewards.Reward | None,
) -> Callable[..., Any]:
    """A step whose pairs bring what the loss needs beside their tokens."""

    def activations(_, hidden_fn):
        """SparsePO's, of the reference's last layer; none for the first token."""

        def of(params, side):
            out = hidden_fn(params, side.tokens[:, 1:], mask=side.mask[:, 1:])
            return pf.activation_weights(out.hidden[:, None], side.loss_mask[:, 1:])

        return of

    weights = partial(
        policies.jitted(policy, activations, name="weights"), policy.params
    )

    def text(answer):
        return answer if isinstance(answer, str) else answer[-1]["content"]

    def both(reward, pairs):
        numbers = np.asarray(pairs.chosen.index).tolist()
        records = [{"index": n, **sets.train[n]} for n in numbers]
        return tuple(
            jnp.asarray(reward([text(record[side]) for record in records], records))
            for side in ("chosen", "rejected")
        )

    def completed(state, pairs):
        if reward is not None:
            pairs = pairs._replace(rewards=both(reward, pairs))
        if "weights" in loss.needs:
            pairs = pairs._replace(weights=tuple(map(weights, pairs[:2])))
        return step(state, pairs)

    return completed
