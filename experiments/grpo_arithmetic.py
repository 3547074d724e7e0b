"""The main job: a small decoder learns sums while staying close to its reference.

    python -m experiments.grpo_arithmetic --out runs/arithmetic

Phase one teaches a decoder ``7+5-3=`` by maximum likelihood, from demonstrations of
which a good part is off by one or two. That is the reference. Phase two optimises the
policy by a policy gradient on groups of completions (``rl.method``) under a divergence
from it, once for each ``beta``. A completion is right when it is the answer's digits
and the end, nothing else; so the reference's probability p of being right is known
exactly for each held-out problem, and with it the best that is possible under the
reverse KL: ``p e^{1/β} / (1 − p + p e^{1/β})`` at the optimum, ``1 − (1 − p)^n`` for
best-of-n.

Written to ``out``: ``frontier.png``, ``metrics.jsonl`` (and TensorBoard), samples
before and after, and each policy as a model that ``alignax`` loads again.
"""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alignax import cli, exact
from alignax.models import decoder, functional
from alignax.pipeline import checkpoint, data, metrics, plots
from alignax.train import assembly, evaluation, loop, options, supervised, tasks
from alignax.train import policy as policies
from alignax.train.options import RL
from alignax.train.supervised import SFT
from alignax.types import InputError, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A policy gradient on generated sums, with its frontier."""

    out: Path = Path("runs/arithmetic")
    """The folder of all that is written."""
    resume: bool = False
    """Go on with the run in ``out``, as if it had never been stopped."""
    seed: int = 0
    """The seed of the split, the parameters, the data's order and the samples."""
    terms: int = 3
    """How many digits a problem adds and subtracts."""
    held_out: int = 256
    """How many problems are kept from training, to measure on."""
    mistakes: float = 0.4
    """Share of phase one's demonstrations that are off by one or two."""
    betas: tuple[float, ...] = (1.0, 0.3, 0.1)
    """Strengths of the regularisation: one run of phase two for each."""
    evaluate_every: int = 25
    """Steps of phase two between measurements on the held-out problems."""
    save_every: int = 100
    """Steps between checkpoints."""
    hidden_size: int = 64
    """Width of the decoder."""
    num_layers: int = 2
    """Layers of the decoder."""
    sft: SFT = SFT(steps=2500, learning_rate=1e-2)
    rl: RL = RL(steps=250, prompts=64, learning_rate=2e-3)

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
        if self.rl.beta is not None:
            raise InputError(
                f"rl.beta has no use beside betas, got {self.rl.beta}; give it there"
            )
        if len(self.betas) > 1 and not options.reads_beta(
            options.algorithm_of(self.rl)
        ):
            raise InputError(
                f"betas must be one number, got {self.betas}: the method "
                f"{self.rl.method} has nothing that it is the strength of; give it a "
                "divergence by rl.divergence"
            )
        if len(set(self.betas)) < len(self.betas):
            raise InputError(f"betas must differ, got {self.betas}")
        for name in ("evaluate_every", "save_every", "num_layers"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.hidden_size < 8 or self.hidden_size % 8:
            raise InputError(
                f"hidden_size must be a positive multiple of 8, got {self.hidden_size}"
            )


def problems(config: Config) -> tuple[list[dict], list[dict]]:
    """All problems such as ``7+5-3=``, shuffled: those to train on, those held out."""
    everything = []
    for digits in itertools.product(range(10), repeat=config.terms):
        for signs in itertools.product("+-", repeat=config.terms - 1):
            text, answer = str(digits[0]), digits[0]
            for sign, digit in zip(signs, digits[1:], strict=True):
                text += f"{sign}{digit}"
                answer += digit if sign == "+" else -digit
            everything.append({"question": f"{text}=", "answer": str(answer)})
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


def model_config(config: Config, vocab_size: int, length: int) -> decoder.DecoderConfig:
    return decoder.DecoderConfig(
        vocab_size=vocab_size,
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


def score(rollout: Rollout, answers: list[str], tokenizer: data.Tokenizer) -> jax.Array:
    """1 for each completion that is its answer's tokens and the end, else 0."""
    group = len(rollout.tokens) // len(answers)
    keys = [[*tokenizer.encode(answer), tokenizer.eos_id] for answer in answers]
    rows = zip(np.asarray(rollout.tokens), np.asarray(rollout.attended), strict=True)
    right = [
        row[mask].tolist() == keys[i // group] for i, (row, mask) in enumerate(rows)
    ]
    return jnp.array(right, jnp.float32)


def main(config: Config) -> None:
    loop.check_folder(config.out, resume=config.resume)
    tokenizer = data.byte_tokenizer()
    train_set, held_out = problems(config)
    # A prompt begins with a special token and an answer ends with one; an answer has
    # a sign and two digits at the most.
    prompt_length, max_tokens = 2 * config.terms + 1, 4
    length = prompt_length + max_tokens
    model = model_config(config, tokenizer.vocab_size, length)
    apply_fn = functional.make_apply(model)
    key = jax.random.key(config.seed)
    phases = [loop.Phase(name="sft", steps=config.sft.steps, shown=("loss",))] + [
        loop.Phase(name=f"beta_{beta:g}", steps=config.rl.steps)
        for beta in config.betas
    ]
    starts = loop.starts(phases)
    settings = {
        "out": config.out,
        "config": loop.saved_config(config),
        "save_every": config.save_every,
    }
    policy = policies.make(model, None, tokenizer)
    parts = assembly.of_policy(config.rl, policy, max_tokens=max_tokens)
    write = evaluation.make_writer(policy, max_tokens=max_tokens, completions=4)
    evaluator = evaluation.make_evaluator(policy, write, completions=4)

    teacher = supervised.optimiser(config.sft)
    questions = [record["question"] for record in held_out]
    answers = [record["answer"] for record in held_out]
    measured = data.encode_prompts(questions, tokenizer, length=prompt_length)
    first = [record["question"] for record in train_set[: config.rl.prompts]]
    some = data.encode_prompts(first, tokenizer, length=prompt_length)
    answered = data.encode_supervised(questions, answers, tokenizer, length=length)

    @jax.jit
    def log_success(params):
        """``[N]``: log-probability of the right completion of each held-out problem."""
        return jnp.sum(supervised.score_by_logits(apply_fn)(params, answered), axis=-1)

    def judge(rollout, numbers):
        right = score(rollout, [train_set[n]["answer"] for n in numbers], tokenizer)
        return {"rewards": right, "right": right > 0}

    def shown(prompts):
        texts = [train_set[n]["answer"] for n in np.asarray(prompts.index)]
        rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        return tasks.guided(prompts, rows, length=max_tokens)

    step = tasks.host_step(parts, judge, guide=shown)

    def measure(params):
        return evaluator(params, reference, jax.random.fold_in(key, 1), measured)

    def evaluate(state):
        _, kl = measure(state.params)
        by_problem = np.asarray(kl).reshape(len(held_out), -1).mean(axis=-1)
        kl_mean, kl_half = metrics.mean_and_interval(by_problem)
        # Exact: the expectation over all completions.
        reward = float(jnp.mean(jnp.exp(log_success(state.params))))
        return {"reward": reward, "kl": kl_mean, "kl_half": kl_half}

    def complete(params):
        rollout, _ = measure(params)
        first = slice(None, None, len(rollout.tokens) // len(held_out))
        return data.decode_rows(
            rollout.tokens[first], rollout.trained[first], tokenizer
        )

    with loop.open_log(config.out, phases, resume=config.resume) as writer:
        reference = loop.train(
            supervised.init_state(functional.init(model, key), teacher, key),
            data.supervised_batches(
                demonstrations(config, train_set),
                tokenizer,
                prompt=lambda record: record["question"],
                answer=lambda record: record["answer"],
                batch_size=config.sft.batch_size,
                length=length,
                seed=config.seed,
            ),
            supervised.make_step(supervised.score_by_logits(apply_fn), teacher),
            phase=phases[0],
            number=starts[0],
            writer=writer,
            **settings,
        ).params
        columns = {"reference": complete(reference)}
        for beta, phase, number in zip(
            config.betas, phases[1:], starts[1:], strict=True
        ):
            state = loop.train(
                parts.init(
                    reference,
                    jax.random.fold_in(key, 2),
                    beta=beta,
                    records=len(train_set),
                    prompts=shown(some),
                ),
                data.prompt_batches(
                    train_set,
                    tokenizer,
                    prompt=lambda record: record["question"],
                    batch_size=config.rl.prompts,
                    length=prompt_length,
                    seed=config.seed,
                ),
                step,
                phase=phase,
                number=number,
                writer=writer,
                evaluate=evaluate,
                evaluate_every=config.evaluate_every,
                **settings,
            )
            columns[phase.name] = complete(state.params)
            folder = config.out / phase.name / "model"
            checkpoint.save_model(folder, model.to_dict(), state.params)
    write_samples(config.out / "samples.md", held_out, columns)
    draw_frontier(config, log_success(reference))
    print(summary(config))


def write_samples(path: Path, records: list[dict], columns: dict[str, list[str]]):
    """A table of the first held-out problems with each policy's first completion."""
    answers = [record["answer"] for record in records]
    right = {
        name: sum(map(str.__eq__, column, answers)) for name, column in columns.items()
    }
    names = ["problem", "answer", *columns]
    lines = [names, ["---"] * len(names)]
    for i, record in enumerate(records[:40]):
        # Whatever bytes a policy writes, a row stays one line of the table.
        texts = [
            f"{'✓' if column[i] == answers[i] else '✗'} "
            + repr(column[i])[1:-1].replace("|", "¦")
            for column in columns.values()
        ]
        lines.append([record["question"], answers[i], *texts])
    totals = [f"{count} of {len(records)} right" for count in right.values()]
    lines.append(["all held-out", "", *totals])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path.write_text(
        "One completion of each problem, sampled at temperature 1, of the reference and"
        f" of each policy; the first 40 of {len(records)} problems.\n\n{table}"
    )


def draw_frontier(config: Config, log_p: jax.Array) -> None:
    """``frontier.png`` from the log: what was reached beside what can be."""
    rows = metrics.read(config.out)
    runs = []
    for beta in config.betas:
        kl, half, reward = (
            metrics.column(rows, f"beta_{beta:g}/eval/{name}")[1]
            for name in ("kl", "kl_half", "reward")
        )
        label = f"{config.rl.method}, β = {beta:g}"
        runs.append(plots.Trajectory(label, kl, half, reward, np.zeros_like(reward)))

    def mean(point):
        reward, kl = point
        return float(jnp.mean(kl)), float(jnp.mean(reward))

    strengths = np.geomspace(50, 0.05, 120).tolist()
    optimum = [mean(exact.binary_optimum(log_p, beta=beta)) for beta in strengths]
    best = [
        (n, *mean(exact.binary_best_of_n(log_p, n=n))) for n in (1, 2, 3, 4, 6, 8, 16)
    ]
    shown = 1.5 * max(float(np.max(kl)) for _, kl, *_ in runs)
    within = np.array([point for point in optimum if point[0] < shown])
    plots.frontier(
        config.out / "frontier.png",
        runs,
        optimum=(within[:, 0], within[:, 1]),
        best_of_n=[point for point in best if point[1] < shown],
        title="Held-out sums: reward against divergence from the reference",
    )


def summary(config: Config) -> str:
    """The first and last measurement of each run, as lines."""
    rows = metrics.read(config.out)
    lines = ["held-out reward (exact) and KL to the reference (nats a completion)"]
    for beta in config.betas:
        prefix = f"beta_{beta:g}/eval"
        reward, kl, half = (
            metrics.column(rows, f"{prefix}/{name}")[1]
            for name in ("reward", "kl", "kl_half")
        )
        lines.append(
            f"  beta {beta:<5g} reward {reward[0]:.3f} -> {reward[-1]:.3f}   "
            f"KL {kl[-1]:.3f} ± {half[-1]:.3f}"
        )
    return "\n".join([*lines, f"written to {config.out}"])


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
