"""Trained reward models on the disk, and rewards of texts that they give.

``open_rewards`` is what a command line's ``--reward`` becomes: spellings of
``pipeline.rewards``, and ``model:FOLDER``.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignax import spelling
from alignax.models import heads, hf
from alignax.models.config import DecoderConfig
from alignax.pipeline import checkpoint, data, hosts, rewards
from alignax.pipeline.rewards import loading
from alignax.train.reward_model import rewards_of
from alignax.types import InputError, Params

ARRAYS = "reward_model"


class RewardModel(NamedTuple):
    """A decoder with one output, and the tokenizer of what it reads."""

    config: DecoderConfig
    params: Params
    tokenizer: data.Tokenizer


def save(
    folder: str | os.PathLike[str],
    config: DecoderConfig,
    params: Params,
    *,
    source: str | os.PathLike[str],
) -> None:
    """Write a trained reward model that ``load`` and ``model:FOLDER`` read.

    Args:
      folder: made if need be; a model that is there is replaced.
      config: the architecture of its body.
      params: as of ``heads.init_reward``, one output.
      source: the folder that its policy came from, for the tokenizer.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_model(folder / ARRAYS, config.to_dict(), params)
    if jax.process_index() != 0:
        return
    for name in (*hf.COMPANIONS, "config.json"):
        if (Path(source) / name).is_file() and Path(
            source
        ).resolve() != folder.resolve():
            shutil.copyfile(Path(source) / name, folder / name)


def load(folder: str | os.PathLike[str]) -> RewardModel:
    """A reward model that ``save`` wrote, or a run that ended with one.

    Args:
      folder: of the model, or of the run.

    Returns:
      the model.

    Raises:
      InputError: there is none in the folder.
    """
    folder = Path(folder)
    if not (folder / ARRAYS).is_dir() and (folder / "model" / ARRAYS).is_dir():
        folder = folder / "model"
    if not (folder / ARRAYS).is_dir():
        raise InputError(
            f"the reward model must be a folder with {ARRAYS}/ in it, as a run of "
            f"alignax train reward ends with, got {folder}"
        )
    saved, params = checkpoint.load_model(folder / ARRAYS)
    config = DecoderConfig.from_dict(saved)
    params = jax.tree.map(jnp.asarray, params)
    return RewardModel(config, params, data.load_tokenizer(os.fspath(folder)))


def as_reward(model: RewardModel, *, batch_size: int = 32) -> rewards.Reward:
    """A reward model's scores of texts: its output at a completion's last token.

    A completion is read as pairs were in training: behind its record's prompt, with its
    end; behind messages as the chat template writes the assistant's turn.

    Args:
      model: of ``load``.
      batch_size: rows of one forward pass.

    Returns:
      the reward; it reads the field ``prompt``. A text beyond the model's context is
      cut at its end, with a warning.
    """
    reward_fn = heads.make_reward(model.config)
    score = jax.jit(partial(rewards_of, reward_fn))
    tokenizer, most = model.tokenizer, model.config.max_length

    def reward(completions, records):
        texts = [
            _texts(record, text, tokenizer, f"record {record.get('index', i)}")
            for i, (record, text) in enumerate(zip(records, completions, strict=True))
        ]
        longest = data.lengths(texts, tokenizer).row
        if longest > most:
            print(
                f"warning: a completion and its prompt have {longest} tokens, more "
                f"than the reward model's context of {most}; its end is left out",
                file=sys.stderr,
                flush=True,
            )
        width, values = min(most, -(-longest // 64) * 64), []
        for start in range(0, len(texts), batch_size):
            some = texts[start : start + batch_size]
            filled = some + some[-1:] * (batch_size - len(some))
            rows = data.encode_supervised(
                [prompt for prompt, _ in filled],
                [answer for _, answer in filled],
                tokenizer,
                length=width,
                on_long="truncate",
            )
            values.append(np.asarray(score(model.params, rows))[: len(some)])
        return np.concatenate(values)

    return reward


def _texts(record, completion, tokenizer, where):
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        completion = [{"role": "assistant", "content": completion}]
    pair = {key: value for key, value in record.items() if key != "messages"}
    return data.supervised_texts(
        {**pair, "completion": completion}, tokenizer, where=where
    )


@contextlib.contextmanager
def open_rewards(
    texts: Sequence[str],
    *,
    processes: int = 0,
    timeout: float = 10.0,
    on_error: str = "nan",
) -> Iterator[rewards.Reward]:
    """The weighted sum of rewards by their spellings, reward models among them.

    Args:
      texts: as ``rewards.load_rewards`` takes them, or ``model:FOLDER``, each with its
        weight where it has one.
      processes: workers for all but reward models, which stay with the accelerator; 0
        computes the rewards in this process, without a time limit.
      timeout: seconds for one completion in a worker.
      on_error: ``"nan"`` or ``"raise"``, as in ``rewards.in_workers``.

    Yields:
      the reward, while the context lasts.

    Raises:
      InputError: a reward cannot be loaded, or an option is out of range.
    """
    if isinstance(texts, str) or not texts:
        raise InputError(f"reward: {texts!r} was given; one spelling or more would do.")
    weighed = [loading.weight_of(text) for text in texts]
    models = [pair for pair in weighed if pair[1].startswith("model:")]
    others = [t for t, pair in zip(texts, weighed, strict=True) if pair not in models]
    terms = []
    for weight, text in models:
        folder, options = spelling.spelled(text.removeprefix("model:"))
        build = partial(as_reward, load(folder))
        terms.append((weight, spelling.bound(build, options, f"model:{folder}")))
    with contextlib.ExitStack() as stack:
        if others and processes:
            pool = rewards.in_workers(
                others, processes=processes, timeout=timeout, on_error=on_error
            )
            terms.append((1.0, stack.enter_context(pool)))
        elif others:
            terms.append((1.0, rewards.load_rewards(others, on_error=on_error)))
        yield hosts.divided(rewards.weighted_sum(terms))
