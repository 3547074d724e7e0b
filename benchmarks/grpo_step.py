"""One GRPO update: time, and peak memory of a process of its own.

    python -m benchmarks.grpo_step

Forward, backward, clipping and AdamW on 16 rows of 64 prompt and 128 completion tokens,
old and reference log-probabilities given; the peer is transformers' model under TRL's
``selective_log_softmax`` and GRPO's loss. Then the shared-prefix forward against the
plain one on 4 groups of 8, prompts of 256 and completions of 64.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.pipeline import rollout as rollouts
from alignax.train import options, policy_gradient
from alignax.train.options import RL
from alignax.types import Rollout, Scored
from benchmarks import timing, tunix_peer
from benchmarks.decode import SMALL, peer_model

CLIP, BETA = 0.2, 0.05


def batch_of(
    *,
    groups: int,
    completions: int,
    prompt: int,
    tokens: int,
    config: DecoderConfig = SMALL,
) -> Scored:
    rng = np.random.default_rng(0)
    rows = groups * completions

    def draw(*shape):
        return jnp.asarray(rng.integers(0, config.vocab_size, shape), jnp.int32)

    logp = jnp.full((rows, tokens), -np.log(config.vocab_size), jnp.float32)
    rollout = Rollout(
        prompt_tokens=jnp.repeat(draw(groups, prompt), completions, axis=0),
        prompt_mask=jnp.ones((rows, prompt), bool),
        tokens=draw(rows, tokens),
        attended=jnp.ones((rows, tokens), bool),
        trained=jnp.ones((rows, tokens), bool),
        logp_behaviour=logp,
        finished=jnp.ones(rows, bool),
    )
    rewards = jnp.asarray(rng.random((groups, completions)), jnp.float32)
    return Scored(rollout=rollout, logp_old=logp, logp_ref=logp, rewards=rewards)


def by_alignax(
    batch: Scored,
    *,
    shared: bool,
    microbatches: int = 1,
    frugal: bool = False,
    config: DecoderConfig = SMALL,
) -> Callable[[], object]:
    """The GRPO row of the table by the one train step.

    ``frugal``: a loop over the layers, whose activations the reverse pass computes
    again, and a compiler without the CPU backend's newer and larger way of fusing.
    """
    completions = batch.rewards.shape[1]
    algorithm, tx = options.method_of("grpo"), options.optimiser(RL())
    hidden_fn = functional.make_hidden(
        config, remat="block" if frugal else "none", scan=frugal
    )
    score = rollouts.score_by_hidden(
        hidden_fn, completions=completions if shared else 1
    )
    key = jax.random.key(0)
    params = functional.init(config, key)
    state = policy_gradient.init_state(algorithm, params, tx, key, beta=BETA)
    step = policy_gradient.make_step(algorithm, score, tx, microbatches=microbatches)
    if frugal:
        again = jax.jit(step, donate_argnums=0).lower(state, batch)
        step = again.compile({"xla_cpu_use_fusion_emitters": False})

    def run():
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return run


def products(
    *,
    groups: int,
    completions: int,
    prompt: int,
    tokens: int,
    config: DecoderConfig = SMALL,
):
    """Only the three products with each matrix that values and gradients need."""
    rows = groups * completions
    body, head = groups * prompt + rows * (tokens - 1), rows * tokens
    params = functional.init(config, jax.random.key(0))
    matrices = [x for x in jax.tree.leaves(params) if x.ndim == 2]

    @jax.jit
    def run(matrices):
        total = []
        for matrix in matrices:
            wide = matrix.shape[0] == config.vocab_size
            matrix = matrix.T if wide else matrix
            count = head if wide else body
            x = jnp.full((count, matrix.shape[0]), 0.01)
            y = x @ matrix
            total += [jnp.max(y @ matrix.T), jnp.max(x.T @ y)]
        return total

    return lambda: run(matrices)


def by_trl(
    batch: Scored, groups: int, *, config: DecoderConfig = SMALL, rank: int = 0
) -> Callable[[], object]:
    """TRL's loss on transformers' model, or on PEFT's adapters of it."""
    import torch
    from trl.trainer.utils import selective_log_softmax

    model = peer_model(config)
    if rank:
        import peft

        how = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        model = peft.get_peft_model(model, how)
    trained = [x for x in model.parameters() if x.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-6)
    rollout = batch.rollout
    prompt = torch.tensor(np.asarray(rollout.prompt_tokens), dtype=torch.long)
    tokens = torch.tensor(np.asarray(rollout.tokens), dtype=torch.long)
    old, ref = (torch.tensor(np.asarray(x)) for x in (batch.logp_old, batch.logp_ref))
    rewards = torch.tensor(np.asarray(batch.rewards)).reshape(groups, -1)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (
        rewards.std(1, keepdim=True) + 1e-4
    )
    advantages = advantages.reshape(-1, 1)

    def run():
        whole = torch.cat([prompt, tokens], dim=1)
        logits = model(whole, logits_to_keep=tokens.shape[1] + 1).logits[:, :-1]
        logp = selective_log_softmax(logits, tokens)
        ratio = torch.exp(logp - old)
        clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
        loss = -torch.minimum(ratio * advantages, clipped * advantages)
        loss = (loss + BETA * (torch.exp(ref - logp) - (ref - logp) - 1)).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()

    return run


PEER = "transformers + TRL"
STEP = {"groups": 2, "completions": 8, "prompt": 64, "tokens": 128}
SHARED = {"groups": 4, "completions": 8, "prompt": 256, "tokens": 64}
PROGRAMS: dict[str, Callable[[], Callable[[], object]]] = {
    "alignax": lambda: by_alignax(batch_of(**STEP), shared=True),
    "alignax, prompts repeated": lambda: by_alignax(batch_of(**STEP), shared=False),
    "alignax, 2 microbatches": lambda: by_alignax(
        batch_of(**STEP), shared=True, microbatches=2
    ),
    "alignax, frugal": lambda: by_alignax(
        batch_of(**STEP), shared=True, microbatches=2, frugal=True
    ),
    PEER: lambda: by_trl(batch_of(**STEP), 2),
    tunix_peer.NAME: lambda: tunix_child(),
}


def tunix_child(env: Mapping[str, str] | None = None) -> tunix_peer.Child:
    return tunix_peer.Child("step", env=env, sizes=dataclasses.asdict(SMALL), **STEP)


def peak_memory(name: str) -> list[float]:
    """GB at the peak of a process of its own, above its imports: the first time, and
    once more, when JAX finds its programs in the compilation cache."""
    peaks = []
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for _ in range(2):
            peaks.append(tunix_peak(env) if name == tunix_peer.NAME else own(name, env))
    return peaks


def tunix_peak(env: Mapping[str, str]) -> float:
    child = tunix_child(env)
    peaks = [child() for _ in range(2)]
    child.close()
    return float(peaks[-1])


def own(name: str, env: Mapping[str, str]) -> float:
    command = [sys.executable, "-m", "benchmarks.grpo_step", "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    before, after = json.loads(done.stdout.splitlines()[-1])
    return after - before


def peak() -> float:
    """GB that this process has held at the most; Linux counts from its start, where
    ``getrusage`` would count its parent's memory too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def report_memory(name: str) -> None:
    """The peak of this process before and after two steps."""
    if name == PEER:
        import torch  # noqa: F401
        import transformers  # noqa: F401
        from trl.trainer.utils import selective_log_softmax  # noqa: F401
    before = peak()
    run = PROGRAMS[name]()
    for _ in range(2):
        jax.block_until_ready(run())
    print(json.dumps([before, peak()]))


def main(*, repeats: int = 5) -> tuple[str, timing.Seconds]:
    """The report, and what its table was made from."""
    absent = [PEER] if timing.missing("torch", "transformers", "trl") else []
    absent += [] if tunix_peer.available() else [tunix_peer.NAME]
    names = [name for name in PROGRAMS if name not in absent]
    memory = {name: peak_memory(name) for name in names}
    programs = {name: PROGRAMS[name]() for name in names}
    programs |= {"products alone (limit)": products(**STEP)}
    seconds = timing.interleaved(programs, repeats=repeats)
    tunix = programs.get(tunix_peer.NAME)
    if isinstance(tunix, tunix_peer.Child):
        tunix.close()
    peer = next(name for name in (PEER, tunix_peer.NAME, *names) if name in names)
    lines = [
        [
            name,
            timing.spread(values),
            f"{np.median(seconds[peer]) / np.median(values):.2f}",
            *(f"{peak:.2f} GB" for peak in memory.get(name, ())),
            *(
                f"{peak / theirs:.2f}"
                for peak, theirs in zip(
                    memory.get(name, ()), memory[peer], strict=name in memory
                )
            ),
        ]
        for name, values in seconds.items()
    ]
    lines[-1] += [""] * 4
    columns = [
        "GRPO step",
        "seconds",
        f"speed / {peer}",
        "memory, compiling",
        "memory, compiled before",
        f"/ {peer}",
        f"/ {peer}",
    ]
    skipped = f"\n\nNot installed: {', '.join(absent)}." if absent else ""
    forms = {"shared": True, "repeated": False}
    steps = timing.interleaved(
        {
            name: by_alignax(batch_of(**SHARED), shared=shared)
            for name, shared in forms.items()
        },
        repeats=repeats,
    )
    ratio = np.median(steps["repeated"]) / np.median(steps["shared"])
    shape = ", ".join(f"{value} {name}" for name, value in SHARED.items())
    text = (
        f"{timing.table(columns, lines)}{skipped}\n\n"
        f"Shared prompts ({shape}): {timing.spread(steps['shared'])}; repeated: "
        f"{timing.spread(steps['repeated'])}; {ratio:.2f} × as fast."
    )
    return text, seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory-of", choices=list(PROGRAMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        report_memory(options.memory_of)
    else:
        print(timing.machine(), main()[0], sep="\n\n")
