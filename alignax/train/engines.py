"""Completions by an engine of another library, such as vLLM, for a policy of ours.

The engine is handed the weights before each rollout, writes tokens, and says with
which log-probability it drew each. Those are ``logp_behaviour``; ``logp_old`` is our
own score of these tokens, so that a ratio is of the policy to itself, and what the two
disagree about is in the metrics ``sampler_kl``, ``sampler_ratio`` and
``sampler_largest``, and in the weights of methods that correct for it (``tis``).
"""

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from alignax.algorithms import Sampling
from alignax.models import hf
from alignax.train import policy as policies
from alignax.train.assembly import Parts
from alignax.train.policy import Policy
from alignax.train.samples import Samples
from alignax.types import InputError, Rollout, RunError

Weights = Iterable[tuple[str, np.ndarray]]
"""Tensors by the names, and in the layout, of a Hugging Face folder."""


class Written(NamedTuple):
    """A completion."""

    tokens: Sequence[int]
    """With the end, where there is one."""
    logps: Sequence[float]
    """Of each, in nats, under the law that drew it, temperature applied."""
    finished: bool
    """Whether it came to an end of its own."""


class Generate(Protocol):
    """Writes ``completions`` of each prompt, which is a list of tokens."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        completions: int,
        max_tokens: int,
        temperature: float,
        end_ids: Sequence[int],
        seed: int,
    ) -> Sequence[Sequence[Written]]: ...


class Engine(NamedTuple):
    """What samples in our place."""

    generate: Generate
    load: Callable[[Weights], None]
    """Takes the policy's weights for all that is generated from then on."""


def sampled(
    parts: Parts,
    engine: Engine,
    policy: Policy,
    *,
    max_tokens: int,
    temperature: float = 1.0,
) -> Parts:
    """Parts whose completions an engine writes.

    Args:
      parts: of ``assembly.of_policy``.
      engine: that writes.
      policy: of the parts; adapters are merged before they are handed over.
      max_tokens: of a completion, at the most.
      temperature: of the sampled law.

    Returns:
      the parts; ``sample`` waits for the engine.

    Raises:
      InputError: the method samples or replays by a rule of its own, or completions
        begin with a prefix.
    """
    if parts.algorithm.sampling != Sampling() or parts.algorithm.replay is not None:
        raise InputError(
            "engine must be None for a method that samples or replays by a rule of its "
            "own; take one that samples its own completions alone"
        )
    if parts.prefix:
        raise InputError("engine must be None where completions begin with a prefix")

    def sample(state, prompts):
        params = policies.whole(policy, state.params)
        engine.load(hf.named(policy.config, params))
        tokens, mask = np.asarray(prompts.tokens), np.asarray(prompts.mask)
        key = jax.random.fold_in(state.key, state.step)
        written = engine.generate(
            [row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)],
            completions=parts.completions,
            max_tokens=max_tokens,
            temperature=temperature,
            end_ids=policy.tokenizer.end_ids,
            seed=int(jax.random.bits(key, dtype=jnp.uint32)) >> 1,
        )
        rollout = record(
            written,
            completions=parts.completions,
            max_tokens=max_tokens,
            temperature=temperature,
            pad_id=policy.tokenizer.pad_id,
        )
        repeated = partial(np.repeat, repeats=parts.completions, axis=0)
        rollout = rollout(
            version=np.full((len(tokens) * parts.completions, max_tokens), state.step),
            prompt_tokens=repeated(tokens),
            prompt_mask=repeated(mask),
        )
        return Samples(parts.score(state, prompts.index, rollout, rescore=True), None)

    return parts._replace(sample=sample)


def record(
    written: Sequence[Sequence[Written]],
    *,
    completions: int,
    max_tokens: int,
    temperature: float,
    pad_id: int,
) -> Callable[..., Rollout]:
    """What an engine wrote, as a rollout.

    Args:
      written: K completions of each prompt.
      completions: K.
      max_tokens: of a completion, at the most.
      temperature: that it was sampled at.
      pad_id: fills what follows.

    Returns:
      ``Rollout`` but for its prompts and version.

    Raises:
      RunError: there are other numbers of completions, tokens or log-probabilities, or
        one is above 0 or no number.
    """
    rows = [row for group in written for row in group]
    counts = {len(group) for group in written}
    if counts != {completions}:
        raise RunError(
            f"the engine must write {completions} completions of each prompt, it wrote "
            f"{sorted(counts)}"
        )
    tokens = np.full((len(rows), max_tokens), pad_id, np.int32)
    logps = np.zeros(tokens.shape, np.float32)
    mask = np.zeros(tokens.shape, bool)
    for number, row in enumerate(rows):
        count = len(row.tokens)
        if not 0 < count <= max_tokens or len(row.logps) != count:
            raise RunError(
                f"the engine must write 1 to {max_tokens} tokens with a "
                f"log-probability each, completion {number} has {count} with "
                f"{len(row.logps)}"
            )
        if not (np.isfinite(row.logps).all() and max(row.logps) <= 1e-3):
            raise RunError(
                "the engine's log-probabilities must be finite and at most 0, "
                f"completion {number} has {min(row.logps)} to {max(row.logps)}"
            )
        tokens[number, :count], logps[number, :count] = row.tokens, row.logps
        mask[number, :count] = True
    scaled = None if temperature == 1 else np.full(len(rows), temperature, np.float32)
    return partial(
        Rollout,
        tokens=tokens,
        attended=mask,
        trained=mask,
        finished=np.array([row.finished for row in rows]),
        logp_behaviour=logps,
        temperature=scaled,
    )


def vllm(folder: Path, **options: Any) -> Engine:
    """vLLM in this process, its weights in place of which ours are loaded.

    Args:
      folder: of the model: its architecture and its tokenizer.
      options: of ``vllm.LLM``, such as ``gpu_memory_utilization``.

    Returns:
      the engine. Its log-probabilities are those after the temperature. Tokens are
      handed over and come back: no text is made of them.

    Raises:
      InputError: vLLM is not installed.
    """
    # The weights are reached in this process alone.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        library: Any = importlib.import_module("vllm")
    except ImportError as error:
        raise InputError(
            "engine: vllm is not installed; install it beside alignax, or leave "
            "--engine out"
        ) from error
    options.setdefault("gpu_memory_utilization", 0.4)
    llm = library.LLM(model=str(folder), logprobs_mode="processed_logprobs", **options)

    def load(weights: Weights) -> None:
        torch: Any = importlib.import_module("torch")
        loaded = ((name, torch.from_numpy(value.copy())) for name, value in weights)
        runner = llm.llm_engine.model_executor.driver_worker.model_runner
        runner.model.load_weights(loaded)
        llm.reset_prefix_cache()

    def generate(prompts, *, completions, max_tokens, temperature, end_ids, seed):
        how = library.SamplingParams(
            n=completions,
            max_tokens=max_tokens,
            temperature=temperature,
            logprobs=0,
            seed=seed,
            stop_token_ids=list(end_ids),
            detokenize=False,
        )
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        found = llm.generate(asked, how, use_tqdm=False)
        return [[_of_vllm(row) for row in request.outputs] for request in found]

    return Engine(generate, load)


def _of_vllm(row: Any) -> Written:
    ids = list(row.token_ids)
    logps = [known[i].logprob for i, known in zip(ids, row.logprobs, strict=True)]
    return Written(ids, logps, row.finish_reason == "stop")
