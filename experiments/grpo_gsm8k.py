"""Policy gradients on GSM8K's grade-school problems, from a JSON-lines file.

    python -m experiments.grpo_gsm8k --data train.jsonl --out runs/gsm8k
    python -m experiments.grpo_gsm8k --data train.jsonl --model path/to/Qwen2.5-0.5B

With ``--model`` the policy and its tokenizer come from a local Hugging Face folder.
Without, a small decoder over bytes is first taught the file's own solutions: that
exercises every part on real text, and solves next to nothing.

The reward is 1 for the right number after ``####``, and a little for the format and
for each calculator mark ``<<a*b=c>>`` that adds up. The last ``held_out`` problems of
the file are kept to measure on.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alignax import cli
from alignax.models import decoder, functional
from alignax.models.lora import LoRA
from alignax.pipeline import checkpoint, data, metrics, plots, rewards
from alignax.train import assembly, evaluation, loop, supervised, tasks
from alignax.train import policy as policies
from alignax.train.options import RL
from alignax.train.policy import Policy
from alignax.train.supervised import SFT
from alignax.types import InputError, Prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A policy gradient on GSM8K."""

    data: Path
    """JSON-lines with the fields question and answer."""
    out: Path = Path("runs/gsm8k")
    """The folder of all that is written."""
    model: Path | None = None
    """Local Hugging Face folder; None trains a small decoder over bytes."""
    lora_rank: int = 0
    """Rank of the adapters that are trained in place of the model's parameters; 0
    trains all of them."""
    resume: bool = False
    """Go on with the run in ``out``, as if it had never been stopped."""
    seed: int = 0
    """The seed of the parameters, the data's order and the samples."""
    held_out: int = 64
    """How many problems are kept from training, to measure on."""
    prompt_length: int = 256
    """Tokens of the longest prompt; longer problems are left out."""
    max_tokens: int = 200
    """Tokens of the longest completion; longer solutions are left out of phase one."""
    beta: float = 0.05
    """Strength of the regularisation."""
    format_weight: float = 0.1
    """Reward of an answer that has a number after ####."""
    marks_weight: float = 0.1
    """Reward of calculator marks that all add up."""
    evaluate_every: int = 10
    """Steps between measurements on the held-out problems."""
    save_every: int = 20
    """Steps between checkpoints."""
    hidden_size: int = 128
    """Width of the small decoder."""
    num_layers: int = 3
    """Layers of the small decoder."""
    sft: SFT = SFT(steps=200, batch_size=16, learning_rate=2e-3)
    rl: RL = RL(steps=20, prompts=8, completions=8, microbatches=4, learning_rate=1e-4)

    def __post_init__(self):
        least = {
            "held_out": 1,
            "prompt_length": 8,
            "max_tokens": 8,
            "evaluate_every": 1,
            "save_every": 1,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(
                    f"{name} must be at least {value}, got {getattr(self, name)}"
                )
        if self.rl.beta is not None:
            raise InputError(
                f"rl.beta has no use beside beta, got {self.rl.beta}; give it there"
            )
        if self.lora_rank < 0 or (self.lora_rank and self.model is None):
            raise InputError(
                "lora_rank must be positive and of a model that is given, or 0, got "
                f"{self.lora_rank}"
            )
        if self.hidden_size < 8 or self.hidden_size % 8:
            raise InputError(
                f"hidden_size must be a positive multiple of 8, got {self.hidden_size}"
            )
        for name in ("beta", "format_weight", "marks_weight"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"{name} must not be negative, got {getattr(self, name)}"
                )


def load_policy(config: Config, key: jax.Array) -> Policy:
    """The Hugging Face folder's, or a fresh small decoder over bytes."""
    length = config.prompt_length + config.max_tokens
    adapters = LoRA(rank=config.lora_rank) if config.lora_rank else None
    if config.model is not None:
        policy = policies.load(config.model, adapters=adapters, key=key)
        if policy.config.max_length < length:
            raise InputError(
                f"prompt_length + max_tokens must fit the {policy.config.max_length} "
                f"tokens of {config.model}, got {config.prompt_length} + "
                f"{config.max_tokens}"
            )
        return policy
    tokenizer = data.byte_tokenizer()
    model = decoder.DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=config.hidden_size // 4,
        mlp_size=3 * config.hidden_size,
        max_length=length,
    )
    return policies.make(model, functional.init(model, key), tokenizer)


def question(record: dict, tokenizer: data.Tokenizer) -> str:
    """The prompt: through the tokenizer's chat template where it has one."""
    if tokenizer.chat is not None:
        text = f"{record['question']}\nEnd with #### and the number."
        return tokenizer.chat([{"role": "user", "content": text}])
    return f"Question: {record['question']}\nAnswer: "


def right_number(
    texts: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """1 where the number after ``####`` is the solution's."""
    keys = [rewards.extract_answer(record["answer"]) or "" for record in records]
    return rewards.numeric_match(texts, keys)


def make_reward(config: Config) -> rewards.Reward:
    """Right answers count 1, format and arithmetic a little."""

    def form(texts, records):
        return rewards.format_match(texts)

    def marks(texts, records):
        return rewards.marks_reward(texts)

    return rewards.weighted_sum(
        [
            (1.0, right_number),
            (config.format_weight, form),
            (config.marks_weight, marks),
        ]
    )


def main(config: Config) -> None:
    records = data.read_jsonl(config.data, fields=("question", "answer"))
    if len(records) < 2 * config.held_out:
        raise InputError(
            f"held_out must be at most half of the {len(records)} records of "
            f"{config.data}, got {config.held_out}"
        )
    loop.check_folder(config.out, resume=config.resume)
    key = jax.random.key(config.seed)
    policy = load_policy(config, key)
    tokenizer, apply_fn = policy.tokenizer, policy.apply_fn
    split = len(records) - config.held_out
    train_set = [records[i] for i in range(split)]
    held_out = [records[i] for i in range(split, len(records))]

    def ask(record):
        return question(record, tokenizer)

    phases = [loop.Phase(name="grpo", steps=config.rl.steps)]
    if config.model is None:
        taught = loop.Phase(name="sft", steps=config.sft.steps, shown=("loss",))
        phases.insert(0, taught)
    starts = loop.starts(phases)
    prompts = data.prompt_batches(
        train_set,
        tokenizer,
        prompt=ask,
        batch_size=config.rl.prompts,
        length=config.prompt_length,
        seed=config.seed,
        on_long="drop",
    )
    blank = np.zeros((config.rl.prompts, config.prompt_length), np.int32)
    shapes = Prompts(tokens=blank, mask=blank == 0, index=np.arange(len(blank)))
    measured = data.encode_prompts(
        [ask(record) for record in held_out],
        tokenizer,
        length=config.prompt_length,
        on_long="drop",
    )
    tokens = {
        "max_tokens": config.max_tokens,
        "eos_id": tokenizer.end_ids,
        "pad_id": tokenizer.pad_id,
    }
    parts = assembly.make(config.rl, apply_fn, hidden_fn=policy.hidden_fn, **tokens)
    evaluator = evaluation.make_evaluator(apply_fn, completions=1, **tokens)
    reward = make_reward(config)

    judge = tasks.judge_texts(train_set, reward, tokenizer, right=right_number)

    def shown(batch):
        texts = [train_set[n]["answer"] for n in np.asarray(batch.index)]
        rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        return tasks.guided(batch, rows, length=config.max_tokens)

    step = tasks.host_step(parts, judge, guide=shown)

    def complete(params):
        rollout, kl = evaluator(params, reference, jax.random.fold_in(key, 1), measured)
        return data.decode_rows(rollout.tokens, rollout.trained, tokenizer), kl

    def evaluate(state):
        texts, kl = complete(state.params)
        asked = [held_out[i] for i in measured.index]
        values = {
            "reward": reward(texts, asked),
            "accuracy": right_number(texts, asked),
            "kl": np.asarray(kl),
        }
        pairs = {name: metrics.mean_and_interval(x) for name, x in values.items()}
        halves = {f"{name}_half": half for name, (_, half) in pairs.items()}
        return {name: mean for name, (mean, _) in pairs.items()} | halves

    with loop.open_log(config.out, phases, resume=config.resume) as writer:
        settings = {
            "config": loop.saved_config(config, but=("data",)),
            "writer": writer,
            "out": config.out,
            "save_every": config.save_every,
        }
        reference = policy.params
        if config.model is None:
            teacher = supervised.optimiser(config.sft)
            reference = loop.train(
                supervised.init_state(policy.params, teacher, key),
                data.supervised_batches(
                    train_set,
                    tokenizer,
                    prompt=ask,
                    answer=lambda record: record["answer"],
                    batch_size=config.sft.batch_size,
                    length=config.prompt_length + config.max_tokens,
                    seed=config.seed,
                    on_long="drop",
                ),
                supervised.make_step(supervised.score_by_logits(apply_fn), teacher),
                phase=phases[0],
                number=starts[0],
                **settings,
            ).params
        state = loop.train(
            parts.init(
                reference,
                jax.random.fold_in(key, 2),
                beta=config.beta,
                records=len(train_set),
                prompts=shown(shapes),
            ),
            prompts,
            step,
            phase=phases[-1],
            number=starts[-1],
            evaluate=evaluate,
            evaluate_every=config.evaluate_every,
            **settings,
        )

    checkpoint.save_model(config.out / "model", policy.config.to_dict(), state.params)
    if config.model is not None:
        folder = config.out / ("huggingface" if policy.lora is None else "adapters")
        policies.save(policy, state.params, folder, source=config.model)
    write_samples(
        config.out / "samples.md",
        [held_out[i] for i in measured.index],
        {"before": complete(reference)[0], "after": complete(state.params)[0]},
    )
    draw_curves(config.out)


def write_samples(path: Path, records: list[dict], columns: dict[str, list[str]]):
    """The first held-out problems with the completions before and after."""
    parts = []
    for i, record in enumerate(records[:10]):
        parts.append(f"## {record['question']}\n\nSolution:\n\n{record['answer']}\n")
        parts += [f"{name}:\n\n{texts[i]}\n" for name, texts in columns.items()]
    path.write_text("\n".join(parts), encoding="utf-8")


def draw_curves(out: Path) -> None:
    """``curves.png``: reward and KL on the held-out problems, from the log."""
    rows = metrics.read(out)
    curves = {}
    for name in ("reward", "accuracy", "kl"):
        steps, mean = metrics.column(rows, f"grpo/eval/{name}")
        _, half = metrics.column(rows, f"grpo/eval/{name}_half")
        curves[name] = (steps - steps[0], mean, mean - half, mean + half)
    plots.curves(out / "curves.png", curves)


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
