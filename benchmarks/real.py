"""The tables of docs/performance.md at the size of a model that people have.

    python -m benchmarks.real --report

SmolLM2-135M's shape with random parameters, float32 and bfloat16, beside transformers,
TRL and PEFT where they are installed. Limits are measured in the same run.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from alignax import divergences, logprobs
from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.models.lora import LoRA
from alignax.pipeline import data
from alignax.train import assembly, compiling
from alignax.train import policy as policies
from alignax.train.options import RL
from benchmarks import decode, grpo_step, timing

CONFIG = decode.SMOLLM2
STEP = {"groups": 4, "completions": 4, "prompt": 64, "tokens": 128}
RANK = 16
DOCS = Path(__file__).parent.parent / "docs"
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def bandwidth() -> float:
    """Bytes a second that the device reads, of an array of a gigabyte."""
    array = jnp.ones((1 << 28,), jnp.float32)
    total = jax.jit(jnp.sum)
    jax.block_until_ready(total(array))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(total(array))
        seconds.append(time.perf_counter() - start)
    return array.nbytes / min(seconds)


def sampling(
    config: DecoderConfig = CONFIG,
    *,
    batches: tuple[int, ...] = (1, 8, 32),
    prompt: int = 64,
    tokens: int = 128,
    repeats: int = 3,
) -> str:
    """Tokens a second by batch and dtype, of the slower of two limits."""
    read, lines = bandwidth(), []
    for dtype in ("float32", "bfloat16"):
        own = dataclasses.replace(config, param_dtype=dtype, dtype=dtype)
        params, key = functional.init(own, jax.random.key(0)), jax.random.key(1)
        size = sum(x.nbytes for x in jax.tree.leaves(params))
        for rows in batches:
            prompts = decode.prompts_of(own, rows, prompt)
            peer = None
            if dtype == "float32":
                peer = decode.by_transformers(own, prompts, tokens)
            programs = {
                "alignax": partial(
                    decode.sampler(own, 1, tokens), params, key, prompts
                ),
                "products": decode.products(own, params, rows, tokens),
            } | ({"transformers": peer} if peer else {})
            seconds = timing.interleaved(programs, repeats=repeats)
            middle = {name: float(np.median(x)) for name, x in seconds.items()}
            limit = max(middle["products"], tokens * size / read)
            theirs = middle.get("transformers")
            lines.append(
                [
                    dtype,
                    str(rows),
                    timing.spread(seconds["alignax"]),
                    f"{rows * tokens / middle['alignax']:,.0f}",
                    f"{theirs / middle['alignax']:.2f}" if theirs else "",
                    f"{limit / middle['alignax']:.2f}",
                ]
            )
    columns = ["dtype", "batch", "seconds", "tokens/s", "speed / transformers'"]
    text = timing.table([*columns, "of the limit"], lines)
    return f"{text}\n\nRead: {read / 1e9:.1f} GB/s."


def stepper(config: DecoderConfig, *, rank: int = 0, **sizes: int):
    """The GRPO step of a run, of all parameters or of adapters."""
    params, key = functional.init(config, jax.random.key(0)), jax.random.key(1)
    lora = LoRA(rank=rank, alpha=2.0 * rank) if rank else None
    policy = policies.make(
        config, params, data.byte_tokenizer(), adapters=lora, key=key
    )
    rl = RL(method="grpo", completions=sizes["completions"], prompts=sizes["groups"])
    parts = assembly.of_policy(rl, policy, max_tokens=sizes["tokens"])
    state = parts.init(policy.params, key)
    batch = grpo_step.batch_of(config=config, **sizes)

    def run():
        nonlocal state
        state, metrics = parts.step(state, batch)
        return metrics

    return run


def programs_of(config: DecoderConfig, sizes: dict[str, int]):
    """By name, what makes each program of the table of steps."""
    batch = partial(grpo_step.batch_of, config=config, **sizes)
    own = partial(grpo_step.by_alignax, shared=True, config=config)
    peer = partial(grpo_step.by_trl, groups=sizes["groups"], config=config)
    return {
        "alignax": lambda: own(batch()),
        "alignax, frugal": lambda: own(batch(), microbatches=2, frugal=True),
        "alignax, LoRA": lambda: stepper(config, rank=RANK, **sizes),
        "TRL": lambda: peer(batch()),
        "TRL + PEFT, LoRA": lambda: peer(batch(), rank=RANK),
        "products alone": lambda: grpo_step.products(config=config, **sizes),
    }


Alone = tuple[np.ndarray, float]
"""Seconds of each step, and GB at the peak above the imports."""


def steps(measure: Callable[[str], Alone] | None = None) -> str:
    """A GRPO step: all parameters, frugal, adapters, the peers, and the products.

    Each is alone in a process of its own: another library's threads and state beside
    it are not how either runs.
    """
    measure = measure or alone
    names = list(programs_of(CONFIG, STEP))
    if timing.missing("torch", "transformers", "trl", "peft"):
        names = [name for name in names if "TRL" not in name]
    found = {name: measure(name) for name in names}
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            for name in ("alignax", "TRL"):
                if name in names:
                    found[f"{name}, a core busy"] = measure(name)
        finally:
            busy.kill()
    base = np.median(found["products alone"][0])
    lines = [
        [name, timing.spread(x), f"{np.median(x) / base:.2f}", f"{peak:.2f} GB"]
        for name, (x, peak) in found.items()
    ]
    return timing.table(["step", "seconds", "/ products", "memory"], lines)


def alone(name: str) -> Alone:
    """A program in a process of its own, which finds its programs compiled."""
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-m", "benchmarks.real", "--alone", name]
        for _ in range(2):
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=env
            )
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return np.array(seconds), peak


def report_alone(name: str, *, repeats: int = 3) -> None:
    """This process' seconds and peak, as JSON."""
    if "TRL" in name:
        import peft  # noqa: F401
        import transformers  # noqa: F401
        from trl.trainer.utils import selective_log_softmax  # noqa: F401
    before = grpo_step.peak()
    program = programs_of(CONFIG, STEP)[name]()
    seconds = timing.interleaved({name: program}, repeats=repeats)[name]
    print(json.dumps([seconds.tolist(), grpo_step.peak() - before]))


def loop(config: DecoderConfig, sizes: dict[str, int]) -> dict[str, Any]:
    """An iteration of GRPO, as a run has it, and its parts."""
    params, key = functional.init(config, jax.random.key(0)), jax.random.key(1)
    policy = policies.make(config, params, data.byte_tokenizer())
    rl = RL(method="grpo", completions=sizes["completions"], prompts=sizes["groups"])
    fixed: dict[str, Any] = {"max_tokens": sizes["tokens"], "eos_id": None}
    parts = compiling.beside(assembly.of_policy(rl, policy, **fixed))
    state = parts.init(policy.params, key)
    prompts = decode.prompts_of(config, sizes["groups"], sizes["prompt"])
    said: dict[str, list[float]] = {"sampling and scores": [], "reward": [], "step": []}

    def run():
        nonlocal state
        marks = [time.perf_counter()]
        samples = jax.block_until_ready(parts.sample(state, prompts))
        marks.append(time.perf_counter())
        rewards = np.asarray(samples.rollout.tokens % 7 == 0, np.float32).mean(1)
        scored = samples.rewarded(rewards, right=rewards > 0)
        marks.append(time.perf_counter())
        state, metrics = jax.block_until_ready(parts.step(state, scored))
        marks.append(time.perf_counter())
        for name, part in zip(said, np.diff(marks), strict=True):
            said[name].append(float(part))
        return metrics

    return {"run": run, "said": said}


def peers_loop(config: DecoderConfig, sizes: dict[str, int]):
    """The same by transformers and TRL: generate, two scores, the step."""
    import torch
    from trl.trainer.utils import selective_log_softmax

    prompts = decode.prompts_of(config, sizes["groups"], sizes["prompt"])
    rows = jax.tree.map(lambda x: jnp.repeat(x, sizes["completions"], axis=0), prompts)
    write = decode.by_transformers(config, rows, sizes["tokens"])
    batch = grpo_step.batch_of(config=config, **sizes)
    step = grpo_step.by_trl(batch, sizes["groups"], config=config)
    model = decode.peer_model(config).eval()
    rollout = batch.rollout
    prompt, tokens = (
        torch.tensor(np.asarray(x), dtype=torch.long)
        for x in (rollout.prompt_tokens, rollout.tokens)
    )

    def run():
        assert write is not None
        write()
        with torch.no_grad():
            for _ in range(2):
                whole = torch.cat([prompt, tokens], dim=1)
                kept = tokens.shape[1] + 1
                logits = model(whole, logits_to_keep=kept).logits[:, :-1]
                selective_log_softmax(logits, tokens)
        step()

    return run


def iterations(
    config: DecoderConfig = CONFIG,
    sizes: dict[str, int] = STEP,
    *,
    repeats: int = 3,
) -> str:
    own = loop(config, sizes)
    programs = {"alignax": own["run"]}
    if not timing.missing("torch", "transformers", "trl"):
        programs["transformers + TRL"] = peers_loop(config, sizes)
    seconds = timing.interleaved(programs, repeats=repeats)
    base = np.median(seconds["alignax"])
    lines = [
        [name, timing.spread(values), f"{np.median(values) / base:.2f}"]
        for name, values in seconds.items()
    ]
    parts = {name: np.median(values[1:]) for name, values in own["said"].items()}
    said = ", ".join(f"{n} {x:.2f} s ({x / base:.0%})" for n, x in parts.items())
    table = timing.table(["iteration", "seconds", "/ alignax"], lines)
    return f"{table}\n\nOf alignax's: {said}."


def first() -> None:
    """Seconds of the first iteration less those of a later one, and of the latter."""
    run = loop(CONFIG, STEP)["run"]
    marks = [time.perf_counter()]
    for _ in range(3):
        run()
        marks.append(time.perf_counter())
    took = np.diff(marks)
    print(json.dumps([took[0] - took[2], took[2]]))


def starts() -> str:
    """What the first iteration takes beyond a later one, cold and from the cache."""
    lines = []
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        }
        command = [sys.executable, "-m", "benchmarks.real", "--first"]
        for name in ("nothing kept", "programs kept"):
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=env
            )
            more, steady = json.loads(done.stdout.splitlines()[-1])
            lines.append([name, f"{more:.1f} s", f"{steady:.1f} s"])
    return timing.table(
        ["start", "first iteration, beyond a later one", "later"], lines
    )


def heads(
    *,
    rows: int = 512,
    width: int = 576,
    vocabularies: tuple[int, ...] = (49_152, 151_936, 262_144),
    repeats: int = 3,
) -> str:
    """Value and gradient through the head, against the products that they need."""
    lines = []
    for size in vocabularies:
        keys = jax.random.split(jax.random.key(0), 5)
        hidden, other = (jax.random.normal(k, (rows, width)) for k in keys[:2])
        head, second = (
            jax.random.normal(k, (size, width)) / width**0.5 for k in keys[2:4]
        )
        tokens = jax.random.randint(keys[4], (rows,), 0, size)

        def value(hidden, head, tokens=tokens):
            return jnp.sum(logprobs.from_hidden(hidden, head, tokens).logp)

        def needed(hidden, head):
            logits = hidden @ head.T
            return logits @ head, logits.T @ hidden

        forms: dict[str, Callable[..., Any]] = {"log-probability": value}
        for div in (divergences.reverse_kl(), divergences.jensen_shannon()):

            def apart(hidden, head, div=div, other=other, second=second):
                found = logprobs.divergence_from_hidden(
                    div, hidden, head, other, second
                )
                return jnp.sum(found)

            forms[div.name] = apart
        programs: dict[str, Any] = {"products": jax.jit(needed)}
        memory = {}
        for name, function in forms.items():
            gradient = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
            programs[name] = gradient.lower(hidden, head).compile()
            planned = programs[name].memory_analysis().temp_size_in_bytes
            memory[name] = planned / (4 * rows * size)
        seconds = timing.interleaved(
            {name: partial(run, hidden, head) for name, run in programs.items()},
            repeats=repeats,
        )
        base = np.median(seconds.pop("products"))
        lines += [
            [
                f"{size:,}",
                name,
                timing.spread(x),
                f"{np.median(x) / base:.2f}",
                f"{memory[name]:.2f}",
            ]
            for name, x in seconds.items()
        ]
    columns = ["vocabulary", "value and gradient of", "seconds"]
    return timing.table([*columns, "/ three products", "memory / logits"], lines)


SCALES = {
    "tokens": (32, 64, 128, 256),
    "rows": (4, 8, 16, 32),
    "layers": (2, 4, 8, 16),
    "vocabulary": (8_192, 16_384, 32_768, 65_536),
}


def scaling(
    scales: Mapping[str, tuple[int, ...]] = SCALES, *, repeats: int = 3
) -> tuple[str, Curves]:
    """The GRPO step's time against one size at a time, and the slope of its log."""
    lines: list[list[str]] = []
    curves: Curves = {}
    for name, values in scales.items():
        found = []
        for value in values:
            size = {"tokens": 64, "rows": 8, "layers": 4, "vocabulary": 16_384}
            size[name] = value
            config = dataclasses.replace(
                CONFIG, num_layers=size["layers"], vocab_size=size["vocabulary"]
            )
            sizes = {"groups": 2, "completions": size["rows"] // 2, "prompt": 32}
            run = stepper(config, tokens=size["tokens"], **sizes)
            found.append(timing.interleaved({"": run}, repeats=repeats)[""].min())
        x, y = np.array(values, float), np.array(found)
        curves[name] = x, y
        slope = np.polyfit(np.log(x), np.log(y), 1)[0]
        last = np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2])
        times = ", ".join(f"{seconds:.3f}" for seconds in y)
        sizes_ = ", ".join(f"{v:,}" for v in values)
        lines.append([name, sizes_, times, f"{slope:.2f}", f"{last:.2f}"])
    columns = ["size", "values", "seconds", "exponent", "of the last two"]
    return timing.table(columns, lines), curves


TEXT = """# Performance at the size of a real model

Measured on: {machine}.

SmolLM2-135M's shape, 30 layers of width 576 and a vocabulary of 49,152, with random
parameters, beside the peers that are installed (the extra `parity`). Written by
`python -m benchmarks.real --report`; `--only` makes one table.

## Sampling

64 prompt and 128 new tokens of each row. The limit is the slower of two: the products
with the parameters alone, in a program of their own, and the parameters' bytes at the
rate that the machine reads an array.

{sampling}

## A GRPO step

16 rows of 64 prompt and 128 completion tokens in four groups, adapters of rank 16. The
products are the three of values and gradients with each matrix, alone. Memory is the
peak of a process of its own above its imports, programs compiled before.

{steps}

## A whole iteration

Sampling, the reference's score, a reward, the step, of all parameters; the peers'
generation, two scores without gradients and the step.

{iterations}

## The first iteration

A process of its own; the step is compiled in a thread while the first completions are
sampled, and with a cache programs are kept as `alignax train` keeps them.

{starts}

## The head

512 rows of width 576, float32: value and gradient to rows and head, against the three
products with the head that they need; the reverse pass computes the logits again, block
by block, and of a divergence those of both heads. Memory is what the program plans,
relative to one array of logits.

{heads}

## How time grows

The GRPO step of 8 rows of 32 + 64 tokens, 4 layers and 16,384 words, one size at a
time; the exponent is the slope of log time in log size.

{scaling}

```{{image}} performance_real.png
:alt: Time of a step against tokens, rows, layers and vocabulary, in logarithms
```
"""
PARTS: dict[str, Callable[[], str]] = {
    "sampling": sampling,
    "steps": steps,
    "iterations": iterations,
    "starts": starts,
    "heads": heads,
    "scaling": lambda: scaling()[0],
}


def grown(path: Path, curves: Curves) -> None:
    """Time against each size, in logarithms, beside what is proportional to it."""
    figure, axes = plt.subplots(1, len(curves), figsize=(9, 2.4), layout="constrained")
    for axis, (name, (sizes, seconds)) in zip(axes, curves.items(), strict=True):
        axis.loglog(sizes, seconds, "o-")
        axis.loglog(sizes, seconds[-1] * sizes / sizes[-1], ":", color="0.6")
        axis.set(xlabel=name, ylabel="seconds" if name == next(iter(curves)) else "")
        axis.set_xticks(sizes, [f"{x:,.0f}" for x in sizes])
        axis.minorticks_off()
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def report() -> None:
    """Make all tables, and the page and the picture of them."""
    texts = {name: PARTS[name]() for name in PARTS if name != "scaling"}
    texts["scaling"], curves = scaling()
    grown(DOCS / "performance_real.png", curves)
    page = TEXT.format(machine=timing.machine(), **texts)
    (DOCS / "performance_real.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=[*PARTS])
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if given.alone:
        report_alone(given.alone)
    elif given.first:
        first()
    elif given.report:
        report()
    else:
        for name in [given.only] if given.only else PARTS:
            print(PARTS[name](), flush=True)
