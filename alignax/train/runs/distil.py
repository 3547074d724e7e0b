"""A student that learns a teacher's distributions, on its own prompts."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from alignax import distillation as objectives
from alignax import divergences
from alignax.pipeline import data, hosts, rewards
from alignax.pipeline import rollout as rollouts
from alignax.train import (
    distillation,
    evaluation,
    folders,
    options,
    reward_folders,
    supervised,
    vocabularies,
)
from alignax.train import policy as policies
from alignax.train.policy import Policy
from alignax.train.runs import measure as measures
from alignax.train.runs import rows, setting
from alignax.train.runs.options import Data, Dtype, Flat, Model, Output
from alignax.train.runs.setting import Result, Sets
from alignax.train.supervised import SFT
from alignax.types import ApplyFn, HiddenFn, InputError, Params, Rollout

FORMATS = ("completions", "prompts")
SHOWN = ("loss", "length", "finished", "memory")
Objective = Literal["divergence", "top_k", "balanced", "plackett_luce", "tvd"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A divergence from a teacher's next-token distributions."""

    model: Annotated[Model, Flat]
    teacher: Path
    """The teacher's folder, of any kind that --model takes: of any size and family,
    with the student's vocabulary."""
    data: Annotated[Data, Flat]
    objective: Objective = "divergence"
    """What is learned at each token: a divergence over all of the vocabulary; one over
    the top-k tokens and the rest as one; forward and reverse KL balanced by which of
    the two is surer (BD-KD); the teacher's ranking (plackett_luce); or the total
    variation by its policy gradient on the student's own samples (tvd, TVD++)."""
    divergence: str = "jensen_shannon"
    """From the student to the teacher, such as forward_kl, reverse_kl, alpha:0.5 or
    jensen_shannon:0.1; of the objectives divergence and top_k."""
    temperature: float = 1.0
    """Divides both models' logits in the loss."""
    top_k: int = 64
    """Tokens that the objective top_k tells apart."""
    support: Literal["student", "teacher"] = "teacher"
    """Whose likeliest tokens these are."""
    own_samples: float = 0.5
    """Share of the completions that the student writes itself; the others are the
    data's, or the teacher's where it has none. 1 is on-policy distillation, 0 learns
    from what is given; between them is GKD."""
    prompt_length: int | None = None
    """Tokens of the longest prompt; longer ones are left out. By default the data's
    percentile."""
    max_tokens: int | None = None
    """Tokens of the longest completion. By default half more than the data's
    completions have, where it has some, else 256, as far as the context goes."""
    reward: tuple[str, ...] = ()
    """What a held-out completion is worth, to measure only; spelled as those of train
    rl."""
    right_at: float = 0.5
    """A held-out completion counts as right from this reward on."""
    teacher_dtype: Dtype = "float32"
    """Of the teacher's parameters and computation."""
    training: Annotated[SFT, Flat] = SFT(
        steps=300, batch_size=16, learning_rate=None, warmup=None
    )
    microbatches: int = 4
    """Parts that a batch is scanned in, to save memory; the gradient is the same."""
    output: Annotated[Output, Flat] = Output(out=Path("runs/distil"))

    def __post_init__(self):
        rows.check(self.prompt_length, self.training.batch_size, self.microbatches)
        options.divergence_of(self.divergence)
        if not 0 <= self.own_samples <= 1:
            raise InputError(f"own_samples must be from 0 to 1, got {self.own_samples}")
        for name in ("top_k", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if not self.temperature > 0:
            raise InputError(f"temperature must be positive, got {self.temperature}")
        if self.objective == "tvd":
            if self.own_samples < 1:
                raise InputError(
                    "own_samples must be 1 with the objective tvd, whose gradient is "
                    f"of the student's own samples, got {self.own_samples}"
                )
            if self.microbatches > 1 or self.temperature != 1:
                raise InputError(
                    "microbatches and temperature must be 1 with the objective tvd, "
                    "which is standardised over the whole batch of what was sampled, "
                    f"got {self.microbatches} and {self.temperature}"
                )


def loss_of(
    config: Config, apply_fn: Any, hidden_fn: Any, teacher: tuple[ApplyFn, HiddenFn]
) -> distillation.TokenLoss:
    """The objective of a student's functions.

    Args:
      config: the options.
      apply_fn: the student.
      hidden_fn: the student up to its head.
      teacher: its functions, of the same vocabulary.

    Returns:
      the loss of each token.
    """
    other, other_hidden = teacher
    div = options.divergence_of(config.divergence)
    if config.objective == "divergence":
        return distillation.by_divergence(
            hidden_fn, other_hidden, div, temperature=config.temperature
        )
    if config.objective == "tvd":
        return distillation.by_samples(
            rollouts.score_by_hidden(hidden_fn),
            rollouts.score_by_hidden(other_hidden),
            objectives.tvd_surrogate,
        )

    def of_logits(logits, logits_ref, tokens, mask):
        del mask
        if config.objective == "top_k":
            return objectives.coarse(
                div, logits, logits_ref, k=config.top_k, support=config.support
            )
        if config.objective == "balanced":
            return objectives.balanced(logits, logits_ref, weigh=objectives.surer)
        return objectives.pld(logits, logits_ref, tokens)

    return distillation.by_logits(
        apply_fn, other, of_logits, temperature=config.temperature
    )


def run(config: Config) -> Result:
    """Teach a student, and write all that the folder is to hold.

    The learning rate is by default 1e-5 of all parameters and 2e-4 of adapters, as of
    ``runs.supervised``.

    Args:
      config: the options.

    Returns:
      the state at the end, the policy with the trained parameters, the folder and the
      rows of its log.

    Raises:
      InputError: an option, the data, the teacher or the model's folder is bad.
      RunError: the run cannot go on.
    """
    out = config.output
    setting.check(out, config.model)
    tokenizer = setting.tokenizer_of(config.model)
    sets = setting.read(config.data, FORMATS, tokenizer, seed=out.seed)
    policy = setting.open_model(config.model, seed=out.seed)
    teacher = folders.open_policy(
        config.teacher,
        param_dtype=config.teacher_dtype,
        dtype=config.teacher_dtype,
        mesh=policy.mesh,
    )
    columns = vocabularies.check_same(
        policy,
        teacher,
        config.teacher,
        instead=", or `train rl --method opd --align-text`, which takes any",
    )
    rate = 2e-4 if policy.lora else 1e-5
    config = rows.settled_prompts(config, sets, policy, rate=rate)
    count = config.training.batch_size // config.microbatches
    length = (config.prompt_length or 0) + (config.max_tokens or 0)
    setting.fits(
        teacher,
        {
            "prompt_length": config.prompt_length or 1,
            "max_tokens": config.max_tokens or 1,
        },
        config.teacher,
    )
    policy = setting.checkpointed(policy, config.model, tokens=count * length)
    policy, teacher = (vocabularies.cropped(x, columns) for x in (policy, teacher))
    with contextlib.ExitStack() as stack:
        reward = None
        if config.reward:
            reward = stack.enter_context(reward_folders.open_rewards(config.reward))
        return _run(config, sets, policy, teacher, reward)


def _run(
    config: Config,
    sets: Sets,
    policy: Policy,
    teacher: Policy,
    reward: rewards.Reward | None,
) -> Result:
    out, tokenizer = config.output, policy.tokenizer
    key, tx = jax.random.key(out.seed), supervised.optimiser(config.training)
    taught = policies.whole(teacher, teacher.params)
    others = teacher.whole_fns or (teacher.apply_fn, teacher.hidden_fn)
    ends = {"eos_id": tokenizer.end_ids, "pad_id": tokenizer.pad_id}
    most = config.max_tokens or 1

    def sampler(apply_fn, _):
        return distillation.make_sampler(
            apply_fn,
            others[0],
            own_share=config.own_samples,
            max_tokens=most,
            jit=False,
            **ends,
        )

    def stepper(apply_fn, hidden_fn):
        loss = loss_of(config, apply_fn, hidden_fn, others)
        count = config.microbatches
        return distillation.make_step(loss, tx, microbatches=count, jit=False)

    sample = policies.jitted(policy, sampler, name="sample")
    move = policies.jitted(policy, stepper, name="step", donate=True)
    guide = rows.guide_of(sets, tokenizer, most)
    known = {"tokens": 0}

    def learn(state, prompts):
        if guide is not None and config.own_samples < 1:
            prompts = guide(prompts)
        rollout = sample(state, taught, prompts)
        known["tokens"] = int(np.sum(np.asarray(hosts.fetch(rollout.trained))))
        return move(state, taught, rollout)

    state, log = rows.train(
        config,
        out,
        model=config.model,
        kind="distil",
        steps=config.training.steps,
        shown=SHOWN,
        state=policies.placed(policy, supervised.init_state(policy.params, tx, key)),
        batches=rows.prompts_of(config, sets, policy, size=config.training.batch_size),
        step=learn,
        drawn=("reverse_kl", "forward_kl", "right"),
        evaluate=_held_out(
            config, sets.held_out, policy, teacher, taught, others, reward
        ),
        counted=lambda: known["tokens"],
    )
    setting.export(policy, state.params, out, config.model)
    return Result(state, policy._replace(params=state.params), out.out, log)


def _plain(policy: Policy, params: Params, fns: tuple[ApplyFn, HiddenFn]) -> Policy:
    """The policy of all parameters, its adapters merged."""
    bare = policy._replace(params=params, base=None, lora=None)
    return policies.with_functions(bare, *fns)


def _held_out(
    config: Config,
    records: data.Records | None,
    policy: Policy,
    teacher: Policy,
    taught: Params,
    others: tuple[ApplyFn, HiddenFn],
    reward: rewards.Reward | None,
) -> Callable[[Any], dict[str, float]] | None:
    """``state -> metrics``: both KLs a completion, each exact over the vocabulary at
    the prefixes of whoever comes first in it, and the student's rewards."""
    if records is None:
        return None
    tokenizer, most = policy.tokenizer, config.output.evaluate_prompts
    some = [records[i] for i in range(min(len(records), most))]
    prompts = data.encode_prompts(
        [data.prompt_text(record, tokenizer) for record in some],
        tokenizer,
        length=config.prompt_length or 1,
        on_long="drop",
    )
    asked = [some[int(i)] for i in np.asarray(prompts.index)]
    longest = config.max_tokens or 1
    write, write_theirs = (
        evaluation.make_writer(x, max_tokens=longest, completions=1)
        for x in (policy, _plain(teacher, taught, others))
    )
    keys = jax.random.split(jax.random.key(config.output.seed + 1))

    def between(div):
        def build(_, hidden_fn):
            token = distillation.by_divergence(hidden_fn, others[1], div)

            def of(params, taught, rollout):
                found = token(params, taught, rollout)
                return jnp.sum(jnp.where(rollout.trained, found, 0), axis=-1)

            return of

        return policies.jitted(policy, build, name=div.name)

    reverse, forward = (
        between(divergences.reverse_kl()),
        between(divergences.forward_kl()),
    )
    theirs: list[Rollout] = []

    def evaluate(state):
        if not theirs:
            theirs.append(write_theirs(taught, keys[0], prompts))
        own = write(state.params, keys[1], prompts)
        found = {
            "reverse_kl": reverse(state.params, taught, own),
            "forward_kl": forward(state.params, taught, theirs[0]),
        }
        found, own = hosts.fetch((found, own))
        found |= {
            "length": np.sum(np.asarray(own.trained), axis=-1),
            "finished": own.finished,
        }
        if reward is not None:
            texts = data.decode_rows(own.tokens, own.attended, tokenizer)
            values = rewards.checked(reward(texts, asked), np.asarray(prompts.index))
            found |= {"reward": values, "right": values >= config.right_at}
        return measures.means(found)

    return evaluate
