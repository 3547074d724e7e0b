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
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alignax import exact
from alignax.models import decoder, functional
from alignax.pipeline import checkpoint, data, metrics, plots
from alignax.types import Batch, InputError
from experiments import grpo, loop, sft
from experiments.grpo import GRPO
from experiments.sft import SFT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """GRPO on generated sums, with its frontier."""

    out: Path = Path("runs/arithmetic")
    """Folder of all that is written."""
    resume: bool = False
    """Go on with the run in ``out``, as if it had never been stopped."""
    seed: int = 0
    """Of the problems' split, the parameters, the data's order and the samples."""
    terms: int = 3
    """Digits that a problem adds and subtracts."""
    held_out: int = 256
    """Problems kept from training, to measure on."""
    mistakes: float = 0.5
    """Share of phase one's demonstrations that are off by one or two."""
    betas: tuple[float, ...] = (0.3, 0.1, 0.03)
    """Strengths of the regularisation: one run of phase two for each."""
    evaluate_every: int = 25
    """Steps of phase two between measurements on the held-out problems."""
    save_every: int = 50
    """Steps between checkpoints."""
    hidden_size: int = 64
    """Width of the decoder."""
    num_layers: int = 2
    """Layers of the decoder."""
    sft: SFT = SFT(steps=1200, learning_rate=1e-2)
    grpo: GRPO = GRPO()

    def __post_init__(self):
        if not 2 <= self.terms <= 4:
            raise InputError(f"terms must be between 2 and 4, got {self.terms}")
        count = 20**self.terms // 2
        if not 1 <= self.held_out <= count // 2:
            raise InputError(
                f"held_out must be between 1 and {count // 2}, half of the {count} "
                f"problems, got {self.held_out}"
            )
        if not 0 <= self.mistakes < 1:
            raise InputError(f"mistakes must be in [0, 1), got {self.mistakes}")
        if not self.betas or min(self.betas) <= 0:
            raise InputError(f"betas must be positive numbers, got {self.betas}")
        if len(set(self.betas)) < len(self.betas):
            raise InputError(f"betas must differ, got {self.betas}")
        for name in ("evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )


def problems(config: Config) -> tuple[list[dict], list[dict]]:
    """All problems such as ``7+5-3=``, shuffled: those to train on, those held out."""
    everything = []
    for digits in itertools.product(range(10), repeat=config.terms):
        for signs in itertools.product((1, -1), repeat=config.terms - 1):
            pairs = list(zip(signs, digits[1:], strict=True))
            rest = "".join(
                f"{'+' if sign > 0 else '-'}{digit}" for sign, digit in pairs
            )
            answer = digits[0] + sum(sign * digit for sign, digit in pairs)
            everything.append(
                {"question": f"{digits[0]}{rest}=", "answer": str(answer)}
            )
    order = np.random.default_rng(config.seed).permutation(len(everything))
    shuffled = [everything[i] for i in order]
    return shuffled[config.held_out :], shuffled[: config.held_out]


def demonstrations(config: Config, records: list[dict]) -> list[dict]:
    """Eight answers to each problem, as an unreliable teacher would give them."""
    rng = np.random.default_rng(config.seed + 1)
    result = []
    for record in records:
        wrong = rng.random(8) < config.mistakes
        errors = np.where(wrong, rng.choice([-2, -1, 1, 2], size=8), 0)
        result += [
            record | {"answer": str(int(record["answer"]) + error)} for error in errors
        ]
    return result


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
        # Wide enough for so narrow a model to learn quickly.
        initializer_range=0.1,
    )


def main(config: Config) -> None:
    loop.check_folder(config.out, resume=config.resume)
    tokenizer = data.byte_tokenizer()
    train_set, held_out = problems(config)
    # Each with one special token; an answer has a sign and two digits at the most.
    prompt_length, max_tokens = 2 * config.terms + 1, 4
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
            demonstrations(config, train_set),
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

    reports = [
        samples(evaluator, reference, reference, held_out, held_out_prompts, tokenizer)
    ]
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
            samples(
                evaluator,
                state.params,
                reference,
                held_out,
                held_out_prompts,
                tokenizer,
            )
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
        cells = [
            column[i].removeprefix(record["question"]) for column in columns.values()
        ]
        lines.append(
            "\t".join([record["question"], record["answer"], *map(repr, cells)])
        )
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
    from alignax import cli

    cli.run(main, Config, description=__doc__)
