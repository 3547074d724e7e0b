"""Log-probabilities without logits against the plain form, in one run.

    python -m benchmarks.logprobs            # a shape that a laptop holds
    python -m benchmarks.logprobs --full     # Qwen's vocabulary, 8 GB

Value and gradient of the sum of token log-probabilities, by the plain form, by a
``lax.map`` over rows with rematerialisation, and by ``logprobs.from_hidden``. Time is
the median of interleaved runs; memory is what the compiler plans beside arguments and
results, relative to one array of logits.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from alignax import logprobs

# Rows, width, vocabulary.
LAPTOP, FULL = (1024, 512, 32_000), (2048, 1024, 151_936)


def plain(hidden, head, tokens):
    return jnp.sum(logprobs.token_logp(hidden @ head.T, tokens))


def mapped(hidden, head, tokens, chunk=128):
    @jax.checkpoint
    def rows(part):
        h, t = part
        return jnp.sum(logprobs.token_logp(h @ head.T, t))

    parts = (hidden.reshape(-1, chunk, hidden.shape[1]), tokens.reshape(-1, chunk))
    return jnp.sum(jax.lax.map(rows, parts))


def blocks(hidden, head, tokens):
    return jnp.sum(logprobs.from_hidden(hidden, head, tokens).logp)


def main(rows: int, width: int, vocabulary: int, repeats: int) -> str:
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (rows, width))
    head = jax.random.normal(keys[1], (vocabulary, width)) / width**0.5
    tokens = jax.random.randint(keys[2], (rows,), 0, vocabulary)
    forms = {
        "plain": plain,
        "lax.map of checkpointed rows": mapped,
        "from_hidden": blocks,
    }
    programs, memory = {}, {}
    for name, function in forms.items():
        gradient = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
        programs[name] = gradient.lower(hidden, head, tokens).compile()
        temporary = programs[name].memory_analysis().temp_size_in_bytes
        memory[name] = temporary / (4 * rows * vocabulary)
    expected, times = None, {name: [] for name in forms}
    for repeat in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            value, gradients = jax.block_until_ready(program(hidden, head, tokens))
            if repeat:
                times[name].append(time.perf_counter() - start)
            expected = value if expected is None else expected
            np.testing.assert_allclose(value, expected, rtol=1e-4)
            del gradients
    base = np.median(times["plain"])
    lines = [
        f"N = {rows}, D = {width}, V = {vocabulary}, float32, "
        f"{jax.devices()[0].device_kind}, {repeats} runs",
        "",
        "| form | seconds (median, range) | time / plain | memory / logits |",
        "| --- | --- | --- | --- |",
    ]
    for name, seconds in times.items():
        middle = np.median(seconds)
        lines.append(
            f"| {name} | {middle:.2f} ({min(seconds):.2f} – {max(seconds):.2f}) "
            f"| {middle / base:.2f} | {memory[name]:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="Qwen's vocabulary")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(main(*(FULL if options.full else LAPTOP), repeats=options.repeats))
