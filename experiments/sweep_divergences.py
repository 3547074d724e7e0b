"""β × divergence × seed on the demo's task, the numbers vmapped into one program.

    alignax sweep experiments/sweep_divergences.yaml

One run trains the demo's decoder on its sums (``experiments.grpo_arithmetic``) under a
divergence at one strength, from a reference that all runs share. Runs that differ in
``beta`` and ``seed`` alone are rows of one program: ``alignax sweep`` finds that in
``VMAPPED`` and calls ``batch``. The reward is the probability of the right answer,
exact; the KL is exact over the next token, at sampled prefixes.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignax import cli, divergences
from alignax.cli.sweeps import folder
from alignax.models import decoder, functional
from alignax.pipeline import checkpoint, data, metrics, rollout
from alignax.train import assembly, loop, supervised
from alignax.train.options import RL, divergence_of
from alignax.train.supervised import SFT
from alignax.types import InputError
from experiments import grpo_arithmetic as demo

VMAPPED = ("beta", "seed")
MAX_TOKENS = 4
MEASURED = 4
"""Completions of each held-out problem that the KL is measured on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One divergence, one strength, one seed."""

    out: Path = Path("runs/sweep_divergence")
    """The folder of ``metrics.jsonl``."""
    resume: bool = False
    """Run again what is in the folder."""
    reference: Path = Path("runs/sweep_divergences/reference")
    """The folder of phase one's model; made by the first run, which others wait for."""
    divergence: str = "reverse_kl"
    """From the reference."""
    beta: float = 0.1
    """Its strength."""
    seed: int = 0
    """Of the samples."""
    steps: int = 80
    """Rollouts."""
    prompts: int = 16
    """Problems a rollout."""
    completions: int = 4
    """Answers a problem."""
    learning_rate: float = 4e-3
    """At its peak."""
    evaluate_every: int = 20
    """Steps between measurements."""
    held_out: int = 128
    """Problems to measure on."""
    hidden_size: int = 32
    """Width of the decoder."""
    sft: SFT = SFT(steps=2500, learning_rate=1e-2)

    def __post_init__(self):
        divergence_of(self.divergence)
        if not 0 < self.beta < np.inf:
            raise InputError(f"beta must be positive and finite, got {self.beta}")
        if not 1 <= self.evaluate_every <= self.steps:
            raise InputError(
                "evaluate_every must be from 1 to the number of steps, got "
                f"{self.evaluate_every} of {self.steps}"
            )
        self.demo()

    def demo(self) -> demo.Config:
        """The demo's configuration, of the problems and the model."""
        return demo.Config(
            held_out=self.held_out, hidden_size=self.hidden_size, sft=self.sft
        )


class World(NamedTuple):
    """Model, reference and problems, the same for all runs."""

    apply_fn: Any
    hidden_fn: Any
    reference: Any
    tokenizer: data.Tokenizer
    train: Any
    """Prompts of all problems to train on, and their answers as rows of tokens."""
    answers: jax.Array
    held: Any
    answered: Any
    """Held-out prompts, and these with their answers."""


def world(config: Config) -> World:
    """The demo's task; phase one is run where ``reference`` does not hold it yet."""
    own, tokenizer = config.demo(), data.byte_tokenizer()
    train, held_out = demo.problems(own)
    width = 2 * own.terms + 1
    length = width + MAX_TOKENS
    model = demo.model_config(own, tokenizer.vocab_size, length)
    apply_fn = functional.make_apply(model)
    with folder.locked(config.reference.with_suffix(".lock"), wait=True):
        if not config.reference.is_dir():
            params = taught(own, model, apply_fn, tokenizer, train, length)
            checkpoint.save_model(config.reference, model.to_dict(), params)
        saved, reference = checkpoint.load_model(config.reference)
    if decoder.DecoderConfig.from_dict(saved) != model:
        raise InputError(f"reference: {config.reference} holds another model")
    questions = [record["question"] for record in held_out]
    right_ones = [record["answer"] for record in held_out]
    rows = [[*tokenizer.encode(r["answer"]), tokenizer.eos_id] for r in train]
    answers = np.full((len(rows), MAX_TOKENS), -1)
    for i, row in enumerate(rows):
        answers[i, : len(row)] = row
    return World(
        apply_fn,
        functional.make_hidden(model),
        reference,
        tokenizer,
        data.encode_prompts([r["question"] for r in train], tokenizer, length=width),
        jnp.array(answers),
        data.encode_prompts(questions, tokenizer, length=width),
        data.encode_supervised(questions, right_ones, tokenizer, length=length),
    )


def taught(own: demo.Config, model, apply_fn, tokenizer, train, length: int):
    """Phase one of the demo."""
    tx, key = supervised.optimiser(own.sft), jax.random.key(own.seed)
    step = supervised.make_step(supervised.score_by_logits(apply_fn), tx)
    state = supervised.init_state(functional.init(model, key), tx, key)
    batches = data.supervised_batches(
        demo.demonstrations(own, train),
        tokenizer,
        prompt=lambda record: record["question"],
        answer=lambda record: record["answer"],
        batch_size=own.sft.batch_size,
        length=length,
        seed=own.seed,
    )
    for _ in range(own.sft.steps):
        state, _ = step(state, next(batches))
    return state.params


def right(tokens: jax.Array, attended: jax.Array, answers: jax.Array) -> jax.Array:
    """1 for each completion that is its answer's tokens and the end, else 0."""
    return jnp.all(jnp.where(attended, tokens, -1) == answers, axis=-1) * 1.0


def make_run(config: Config, found: World):
    """``(beta, seed) -> {name: [evaluations]}``: one run, in one scan."""
    rl = RL(
        divergence=config.divergence,
        level="sequence",
        form="sampled",
        place="reward",
        steps=config.steps,
        prompts=config.prompts,
        completions=config.completions,
        learning_rate=config.learning_rate,
    )
    ends = {
        "max_tokens": MAX_TOKENS,
        "eos_id": found.tokenizer.end_ids,
        "pad_id": found.tokenizer.pad_id,
    }
    parts = assembly.make(
        rl, found.apply_fn, hidden_fn=found.hidden_fn, jit=False, **ends
    )
    token_kl = rollout.divergence_by_hidden(
        found.hidden_fn, divergences.reverse_kl(), completions=MEASURED
    )
    log_p = supervised.score_by_logits(found.apply_fn)

    def measure(params, key):
        # Problems and their order are the same for all; so are these draws.
        drawn = rollout.generate(
            found.apply_fn, params, key, found.held, completions=MEASURED, **ends
        )
        kl = jnp.where(drawn.trained, token_kl(params, found.reference, drawn), 0)
        success = jnp.exp(jnp.sum(log_p(params, found.answered), axis=-1))
        return {"reward": jnp.mean(success), "kl": jnp.mean(jnp.sum(kl, axis=-1))}

    def iteration(key, state, _):
        draw = jax.random.fold_in(key, state.step)
        count = len(found.answers)
        index = jax.random.choice(draw, count, (config.prompts,), replace=False)
        prompts = jax.tree.map(lambda x: x[index], found.train)
        samples = parts.sample(state, prompts)
        answers = jnp.repeat(found.answers[index], config.completions, axis=0)
        written = samples.rollout
        rewards = right(written.tokens, written.attended, answers)
        state, _ = parts.step(state, samples.rewarded(rewards))
        return state, None

    def run(beta, seed):
        key = jax.random.key(seed)
        state = parts.init(found.reference, key, beta=1.0)
        # The strength is state: a number of the program's, not of its text.
        strength = state.controller._replace(beta=beta)
        state = dataclasses.replace(state, controller=strength)
        fixed = jax.random.key(1)

        def stretch(state, _):
            state, _ = jax.lax.scan(
                lambda state, x: iteration(key, state, x),
                state,
                length=config.evaluate_every,
            )
            return state, measure(state.params, fixed)

        start = measure(state.params, fixed)
        count = config.steps // config.evaluate_every
        _, later = jax.lax.scan(stretch, state, length=count)
        return jax.tree.map(lambda x, xs: jnp.append(x[None], xs), start, later)

    return run


def batch(configs: Sequence[Config]) -> None:
    """Runs that differ in ``VMAPPED`` alone, as one program; each writes its log.

    Raises:
      InputError: they differ in more.
    """
    first = configs[0]

    def common(config: Config):
        own = {name: getattr(first, name) for name in (*VMAPPED, "out", "resume")}
        return dataclasses.replace(config, **own)

    if any(common(config) != first for config in configs):
        raise InputError(f"runs of one program differ in {', '.join(VMAPPED)} alone")
    for config in configs:
        loop.check_folder(config.out, resume=config.resume)
    run = make_run(first, world(first))
    betas = jnp.array([config.beta for config in configs], jnp.float32)
    seeds = jnp.array([config.seed for config in configs], jnp.uint32)
    curves = jax.device_get(jax.jit(jax.vmap(run))(betas, seeds))
    for row, config in enumerate(configs):
        with metrics.Writer(config.out, tensorboard=False) as writer:
            for number in range(curves["reward"].shape[1]):
                values = {f"eval/{k}": float(v[row, number]) for k, v in curves.items()}
                writer.log(number * config.evaluate_every, values)


def main(config: Config) -> None:
    batch([config])
    last = metrics.read(config.out)[-1]
    print(f"reward {last['eval/reward']:.3f} at a KL of {last['eval/kl']:.3f} nats")


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
