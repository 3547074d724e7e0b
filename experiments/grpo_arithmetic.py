"""The main job: a small decoder learns sums while staying close to its reference.

    python -m experiments.grpo_arithmetic --out runs/arithmetic

Phase one teaches a decoder, by maximum likelihood, to answer ``17+25=`` imperfectly.
That is the reference. Phase two optimises the policy by GRPO under a reverse KL,
once for each ``beta``. A completion is right when it is the answer's digits and the
end, nothing else; so the reference's probability p of being right is known exactly
for each held-out problem, and with it the best that is possible:
``p e^{1/β} / (1 − p + p e^{1/β})`` at the optimum, ``1 − (1 − p)^n`` for best-of-n.

Written to ``out``: ``frontier.png``, ``metrics.jsonl`` (and TensorBoard), samples
before and after, and each policy as a model that ``alignax`` loads again.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alignax import cli, exact
from alignax.models import decoder, functional
from alignax.pipeline import checkpoint, data, metrics, plots
from alignax.types import Batch, InputError
from experiments import grpo, loop, sft


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """GRPO on generated sums, with its frontier."""

    out: Path = Path("runs/arithmetic")
    """Folder of all that is written."""
    resume: bool = False
    """Go on with the run in ``out``, as if it had never been stopped."""
    seed: int = 0
    """Of the problems' split, the parameters, the data's order and the samples."""
    largest: int = 99
    """Largest operand of the sums and differences."""
    held_out: int = 256
    """Problems kept from training, to measure on."""
    betas: tuple[float, ...] = (0.3, 0.1, 0.03)
    """Strengths of the regularisation: one run of phase two for each."""
    evaluate_every: int = 25
    """Steps of phase two between measurements on the held-out problems."""
    save_every: int = 50
    """Steps between checkpoints."""
    hidden_size: int = 128
    """Width of the decoder."""
    num_layers: int = 3
    """Layers of the decoder."""
    sft: sft.SFT = sft.SFT()
    grpo: grpo.GRPO = grpo.GRPO()

    def __post_init__(self):
        if not 4 <= self.largest <= 999:
            raise InputError(f"largest must be between 4 and 999, got {self.largest}")
        sums = 2 * (self.largest + 1) ** 2
        if not 1 <= self.held_out <= sums // 2:
            raise InputError(
                f"held_out must be between 1 and {sums // 2}, half of the {sums} "
                f"problems, got {self.held_out}"
            )
        if not self.betas or min(self.betas) <= 0:
            raise InputError(f"betas must be positive numbers, got {self.betas}")
        if len(set(self.betas)) < len(self.betas):
            raise InputError(f"betas must differ, got {self.betas}")
        for name in ("evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


def problems(config: Config) -> tuple[list[dict], list[dict]]:
    """All sums and differences, shuffled: those to train on, those held out."""
    numbers = range(config.largest + 1)
    everything = [
        {"question": f"{a}{sign}{b}=", "answer": str(a + b if sign == "+" else a - b)}
        for a in numbers
        for b in numbers
        for sign in "+-"
    ]
    order = np.random.default_rng(config.seed).permutation(len(everything))
    shuffled = [everything[i] for i in order]
    return shuffled[config.held_out :], shuffled[: config.held_out]


def model_config(config: Config, tokenizer: data.Tokenizer, length: int):
    return decoder.DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=config.hidden_size // 4,
        mlp_size=3 * config.hidden_size,
        max_length=length,
    )


def main(config: Config) -> None:
    loop.check_folder(config.out, resume=config.resume)
    tokenizer = data.byte_tokenizer()
    train_set, held_out = problems(config)
    # The widest problem and answer, each with one special token.
    widest = len(str(config.largest))
    prompt_length, max_tokens = 2 * widest + 3, widest + 2
    model = model_config(config, tokenizer, prompt_length + max_tokens)
    apply_fn = functional.make_apply(model)
    key = jax.random.key(config.seed)

    phases = [loop.Phase(name="sft", steps=config.sft.steps)] + [
        loop.Phase(name=f"beta_{beta:g}", steps=config.grpo.steps)
        for beta in config.betas
    ]
    saved = dataclasses.asdict(config)
    del saved["out"], saved["resume"]
    starts = loop.starts(phases)
    resume_step = loop.resume_step(config.out, phases) if config.resume else None
    writer = metrics.Writer(config.out, resume_step=resume_step)
    settings = {
        "config": saved,
        "writer": writer,
        "out": config.out,
        "save_every": config.save_every,
    }

    # Phase one: the reference.
    supervised = {
        "prompt": lambda record: record["question"],
        "answer": lambda record: record["answer"],
    }
    reference = loop.train(
        sft.init_state(config.sft, functional.init(model, key), key),
        data.supervised_batches(
            train_set,
            tokenizer,
            batch_size=config.sft.batch_size,
            length=prompt_length + max_tokens,
            seed=config.seed,
            **supervised,
        ),
        sft.make_train_step(config.sft, apply_fn),
        phase=phases[0],
        number=starts[0],
        **settings,
    ).params

    # Phase two: a policy for each beta, by the same compiled functions.
    tokens = {
        "max_tokens": max_tokens,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
    }
    sample = grpo.make_sampler(config.grpo, apply_fn, **tokens)
    train_step = grpo.make_train_step(config.grpo, apply_fn)
    evaluator = grpo.make_evaluator(config.grpo, apply_fn, completions=4, **tokens)
    held_out_prompts = data.encode_prompts(
        [record["question"] for record in held_out], tokenizer, length=prompt_length
    )
    held_out_answers = data.encode_supervised(
        [record["question"] for record in held_out],
        [record["answer"] for record in held_out],
        tokenizer,
        length=prompt_length + max_tokens,
    )

    @jax.jit
    def log_success(params):
        """``[N]``: log-probability of the right completion of each held-out problem."""
        return jnp.sum(sft.answer_logp(apply_fn, params, held_out_answers), axis=-1)

    def step(state, prompts):
        rollout, logp_ref = sample(state, reference, prompts)
        answers = [train_set[i]["answer"] for i in prompts.index]
        rewards = score(rollout, answers, tokenizer)
        return train_step(
            state, Batch(rollout=rollout, logp_ref=logp_ref, rewards=rewards)
        )

    def evaluate(state):
        rollout, kl = evaluator(
            state.params, reference, jax.random.fold_in(key, 1), held_out_prompts
        )
        kl_mean, kl_half = metrics.mean_and_interval(
            np.asarray(kl).reshape(len(held_out), -1).mean(-1)
        )
        success = np.exp(np.float64(log_success(state.params)))
        return {
            # Exact: the expectation over all completions.
            "reward": success.mean(),
            "kl": kl_mean,
            "kl_half": kl_half,
            "length": np.asarray(rollout.mask).sum(-1).mean(),
        }

    reports = [samples(evaluator, reference, reference, held_out, held_out_prompts, tokenizer)]
    for beta, phase, start in zip(config.betas, phases[1:], starts[1:], strict=True):
        state = loop.train(
            grpo.init_state(config.grpo, reference, beta, jax.random.fold_in(key, 2)),
            data.prompt_batches(
                train_set,
                tokenizer,
                prompt=supervised["prompt"],
                batch_size=config.grpo.prompts,
                length=prompt_length,
                seed=config.seed,
            ),
            step,
            phase=phase,
            number=start,
            evaluate=evaluate,
            evaluate_every=config.evaluate_every,
            **settings,
        )
        checkpoint.save_model(
            config.out / phase.name / "model", model.to_dict(), state.params
        )
        reports.append(
            samples(evaluator, state.params, reference, held_out, held_out_prompts, tokenizer)
        )
    writer.close()
    draw_frontier(config, np.float64(log_success(reference)))


def score(rollout, answers: list[str], tokenizer: data.Tokenizer) -> jax.Array:
    """1 for each completion that is its answer's tokens and the end, else 0."""
    rows = zip(np.asarray(rollout.tokens), np.asarray(rollout.mask), strict=True)
    group = len(rollout.tokens) // len(answers)
    keys = [[*tokenizer.encode(answer), tokenizer.eos_id] for answer in answers]
    return jnp.array(
        [float(row[m].tolist() == keys[i // group]) for i, (row, m) in enumerate(rows)]
    )


def samples(evaluator, params, reference, records, prompts, tokenizer) -> list[str]:
    """The first completion of each of the first held-out problems."""
    rollout, _ = evaluator(params, reference, jax.random.key(0), prompts)
    group = len(rollout.tokens) // len(records)
    texts = data.decode_rows(rollout.tokens[::group], rollout.mask[::group], tokenizer)
    return [
        record["question"] + text for record, text in zip(records, texts, strict=True)
    ]


def write_samples(path: Path, records: list[dict], columns: dict[str, list[str]]):
    """A table: problem, right answer, and each policy's completion."""
    lines = ["problem\tanswer\t" + "\t".join(columns)]
    for i, record in enumerate(records[:40]):
        cells = [column[i].removeprefix(record["question"]) for column in columns.values()]
        lines.append("\t".join([record["question"], record["answer"], *map(repr, cells)]))
    path.write_text("\n".join(lines) + "\n")


def draw_frontier(config: Config, log_p: np.ndarray) -> None:
    """``frontier.png`` from the log: what was reached beside what can be."""
    rows = metrics.read(config.out / "metrics.jsonl")
    runs = []
    for beta in config.betas:
        prefix = f"beta_{beta:g}/eval/"
        points = [row for row in rows if prefix + "kl" in row]
        runs.append(
            (
                f"GRPO, β = {beta:g}",
                *(
                    np.array([row[prefix + name] for row in points])
                    for name in ("kl", "kl_half", "reward")
                ),
                None,
            )
        )
    strengths = np.geomspace(0.02, 20, 200)
    optimum = [exact.binary_optimum(log_p, beta=beta) for beta in strengths]
    counts = [1, 2, 4, 8, 16, 32, 64, 128]
    best = [exact.binary_best_of_n(log_p, n=n) for n in counts]
    plots.frontier(
        config.out / "frontier.png",
        runs,
        optimum=tuple(np.array([[np.mean(k), np.mean(r)] for r, k in optimum]).T),
        best_of_n=(
            counts,
            [float(np.mean(k)) for _, k in best],
            [float(np.mean(r)) for r, _ in best],
        ),
        title="Held-out sums: reward against divergence from the reference",
    )


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
