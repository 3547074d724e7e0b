"""All benchmarks, beside the peers that are installed: docs/performance.md.

pip install -c constraints.txt -e '.[parity]'
python -m benchmarks

``benchmarks.tunix_peer`` says how to add Tunix.
"""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

from benchmarks import decode, grpo_step, logprobs, timing, vmapped

DOCS = Path(__file__).parent.parent / "docs"
TEXT = """# Performance

Measured on: {machine}.

Written by `python -m benchmarks`, which runs alignax beside the peers that are
installed (the extra `parity` brings transformers and TRL; `benchmarks/tunix_peer.py`
says how to add Tunix), one run of each in turn.
Seconds are medians with their range. Only ratios in one table mean something: another
machine, or another hour of this one, has other seconds.

```{{image}} performance.png
:alt: Speeds of sampling and of a GRPO step relative to the peers'
```

The tables are of a small model; [those of a real one](performance_real.md) have a page
of their own.

## Sampling

Batch 32, prompts of 64 tokens, 128 new ones, from a Qwen3-shaped decoder: vocabulary
32,000, width 256, 4 layers, 4 heads on 2, MLP 768, tied, float32. Tokens are drawn by
the inverse distribution function on two levels (`sampling.inverse_cdf`), prompts are
prefilled once for all of their completions and their cache is shared. The limit is the
time of the products with the parameters alone. Where completions end early, `slots=`
lets the next one take a finished one's place.

{decode}

## A GRPO step

The same decoder, 16 rows of 64 prompt and 128 completion tokens in two groups of 8:
forward, backward, clipping, AdamW. Completion positions alone reach the head, and the
logits of all of them never exist at once (`logprobs.from_hidden`); a group's prompt is
encoded once (`rollout.score_by_hidden`). Memory is the peak of a process of its own
above its imports. A first run also holds what XLA needs to compile; the next ones find
the program in JAX's compilation cache (`JAX_COMPILATION_CACHE_DIR`). The frugal form
has two microbatches, loops over the layers (`make_hidden(scan=True)`), computes their
activations again in the reverse pass (`remat="block"`), and is compiled with
`xla_cpu_use_fusion_emitters` off, which on CPU takes most of the compiler's memory.

{step}

## Log-probabilities without logits

{logprobs}

## Many runs in one program

Sampling, scoring, loss and optimiser of a whole run are one `lax.scan`, so that `vmap`
over seeds and strengths of regularisation makes a sweep one program.

{vmapped}
"""


def bars(path: Path, parts: dict[str, tuple[timing.Seconds, str]]) -> None:
    """Speeds relative to a peer's, one panel a benchmark."""
    figure, axes = plt.subplots(1, len(parts), figsize=(9, 2.6), layout="constrained")
    for axis, (title, (seconds, peer)) in zip(axes, parts.items(), strict=True):
        names = list(seconds)[::-1]
        peer = peer if peer in seconds else names[-1]
        speeds = [np.median(seconds[peer]) / np.median(seconds[n]) for n in names]
        colours = ["0.7" if name == peer else "tab:blue" for name in names]
        axis.barh(names, speeds, color=colours)
        axis.bar_label(axis.containers[0], fmt="%.2f", padding=2, fontsize=8)
        axis.set(title=title, xlabel=f"speed relative to {peer}")
        axis.margins(x=0.15)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    print(timing.machine())
    parts = {}
    for name, benchmark in (("decode", decode.main), ("step", grpo_step.main)):
        parts[name] = benchmark()
        print(parts[name][0])
    texts = {name: text for name, (text, _) in parts.items()}
    if jax.default_backend() != "cpu":
        texts["decode"] += f"\n\nQwen2.5-0.5B's shape, bfloat16:\n\n{decode.absolute()}"
    texts["logprobs"] = logprobs.main(*logprobs.LAPTOP, repeats=5)
    texts["vmapped"] = vmapped.main()
    (DOCS / "performance.md").write_text(
        TEXT.format(machine=timing.machine(), **texts), encoding="utf-8"
    )
    bars(
        DOCS / "performance.png",
        {
            "sampling": (parts["decode"][1], "transformers"),
            "GRPO step": (parts["step"][1], grpo_step.PEER),
        },
    )


if __name__ == "__main__":
    main()
