"""Read what a model writes.

From a Hugging Face folder, an adapter's or a run's. A chat template is applied where
the model has one.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from alignax.pipeline import data, speculative
from alignax.train import combined, drafts, folders, generation, steering
from alignax.train.generation import Law
from alignax.train.steering import Steering
from alignax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Read what a model writes."""

    model: tyro.conf.Positional[Path]
    """The folder of a Hugging Face model, of adapters or of a run."""
    prompt: tuple[str, ...] = ()
    """What to answer, one or several texts."""
    prompts: str | None = None
    """Records with the field prompt: a JSON-lines or Parquet file, or another source
    that training takes."""
    plain: bool = False
    """Go on with the text itself, without the chat template."""
    system: str | None = None
    """A system message for the chat template."""
    out: Path | None = None
    """A JSON-lines file of the prompts and completions."""
    law: Annotated[Law, tyro.conf.arg(name="")] = Law()
    base: Path | None = None
    """The base of adapters or of a run, where it is not in the place that they name."""
    step: int | None = None
    """The run's checkpoint; None for the newest whole one."""
    beside: tuple[Path, ...] = ()
    """Folders of other models of the same vocabulary, whose logits are combined with
    the model's by --rule."""
    rule: str | None = None
    """How they are combined: product,weight=W; mixture,mixture=M;
    contrastive,strength=S[,alpha=A,gate=G,deviation=D]; fused[,most=M] of a small model
    and a tuned one; switch,threshold=BITS[,window=N,least=N]. See docs/decoding.md."""
    draft: Path | None = None
    """The folder of a small model of the same vocabulary that drafts what the model
    then accepts or replaces: the same law, with fewer passes of the model. What it took
    is said on standard error."""
    draft_tokens: int = 4
    """How many tokens are drafted at a time."""
    steer: Steering = Steering()
    """A vector in the residual stream, from how uncertain decisions were."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the parameters and of the computation."""


def main(config: Config) -> None:
    """Sample, print and write.

    Args:
      config: the options.

    Raises:
      InputError: no prompt, or no model.
    """
    if bool(config.prompt) == (config.prompts is not None):
        raise InputError(
            'what to answer must be given by one of --prompt "TEXT" and --prompts FILE'
        )
    records: Any = [{"prompt": text} for text in config.prompt]
    if config.prompts is not None:
        records = _prompts(config.prompts)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text("", encoding="utf-8")
    for record in completed(config, records):
        print(shown(record), flush=True)
        if config.out is not None:
            with config.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _prompts(source: str) -> list[Any]:
    found = data.read_records(source, formats=("prompts",)).records
    return [found[i] for i in range(len(found))]


def completed(config: Config, records: list[dict]) -> Iterator[dict[str, Any]]:
    """A record for each completion.

    Args:
      config: the options.
      records: with prompts.

    Yields:
      ``prompt``, ``completion``, its number of ``tokens``, and whether it ``finished``.
    """
    dtypes = {"param_dtype": config.dtype, "dtype": config.dtype}
    policy = folders.open_policy(
        config.model, base=config.base, step=config.step, **dtypes
    )
    others = [folders.open_policy(path, **dtypes) for path in config.beside]
    together = combined.named(config.rule, policy, others, config.beside)
    texts_of = partial(
        generation.prompts_of,
        tokenizer=policy.tokenizer,
        plain=config.plain,
        system=config.system,
    )
    params = None
    if config.steer.by is not None:
        before = texts_of(_prompts(config.steer.by))
        params, found = steering.steer(
            policy, before, law=config.law, steering=config.steer
        )
        low, high = float(jnp.min(found.entropy)), float(jnp.max(found.entropy))
        print(
            f"steer: decisions behind {len(before)} prompts have {low:.2f} to "
            f"{high:.2f} nats; a vector of {found.size:.3f} norms of the stream, "
            f"{config.steer.strength:g} times",
            file=sys.stderr,
        )
    draft = None
    if config.draft is not None:
        small = folders.open_policy(config.draft, **dtypes)
        draft = drafts.Draft(small, config.draft_tokens, config.draft)
    took = []
    for batch in generation.batches(
        policy,
        texts_of(records),
        law=config.law,
        params=params,
        combined=together,
        draft=draft,
    ):
        took.append(batch.spent)
        sizes = np.asarray(batch.rollout.trained).sum(axis=1)
        finished = np.asarray(batch.rollout.finished)
        for row, text in enumerate(generation.texts_of(batch, policy.tokenizer)):
            yield {
                "prompt": records[batch.numbers[row // config.law.n]]["prompt"],
                "completion": text,
                "tokens": int(sizes[row]),
                "finished": bool(finished[row]),
            }

    if draft is not None:
        spent = jax.tree.map(lambda *x: jnp.concatenate(x), *took)
        print(
            f"draft: {speculative.block_efficiency(spent):.2f} tokens a pass of the "
            f"model, {100 * speculative.acceptance(spent):.0f} % accepted",
            file=sys.stderr,
        )


def shown(record: dict[str, Any]) -> str:
    """A completion as it is printed: its prompt, how long it is, and itself.

    Args:
      record: of ``completed``.

    Returns:
      lines.
    """
    prompt = record["prompt"]
    if not isinstance(prompt, str):
        prompt = "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
    end = "finished" if record["finished"] else "cut"
    return f"> {prompt}\n[{record['tokens']} tokens, {end}]\n{record['completion']}\n"
