"""What runs of all kinds begin with: the model, the records, the folder."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import alignax
from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.pipeline import data, hosts
from alignax.train import folders, loop
from alignax.train import policy as policies
from alignax.train.policy import Policy
from alignax.train.runs import configs
from alignax.train.runs.options import Data, Model, Output
from alignax.types import InputError, TrainState

# Whole runs differ by these alone and are one run still.
MOVABLE = ("out", "resume", "mesh")
MULTIPLE = 16
"""Lengths from the data are rounded up to one of it."""


class Result(NamedTuple):
    """What a run leaves to a notebook."""

    state: TrainState
    policy: Policy | None
    """With the trained parameters; None of a reward model."""
    folder: Path
    metrics: list[dict[str, Any]]
    """The rows of ``metrics.jsonl``."""


class Sets(NamedTuple):
    """Records to train on and to measure on (None without), and their format."""

    train: data.Records
    held_out: data.Records | None
    format: str


def say(text: str) -> None:
    """A line on standard error, of the first process."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def done(folder: Path) -> None:
    """Say where a run's results are; once, whatever the number of processes."""
    if jax.process_index() == 0:
        print(f"done: {folder}")


def read(
    options: Data, formats: Sequence[str], tokenizer: data.Tokenizer, *, seed: int
) -> Sets:
    """The records of a run, as its tokenizer wants them.

    Args:
      options: of the data.
      formats: names of ``data.FORMATS`` that would do.
      tokenizer: the model's.
      seed: of the choice of what is held out.

    Returns:
      the sets.

    Raises:
      InputError: a source is bad; a chat template is asked for that there is not; or
        what is held out leaves nothing to train on.
    """
    asked = [name for name in ("chat", "system") if getattr(options, name)]
    if asked and tokenizer.chat is None:
        raise InputError(
            f"{asked[0]}: the model has no chat template to write messages with; leave "
            "it out, or give the folder of a chat model"
        )
    fields, on_bad = options.renamed(), "drop" if options.drop_bad else "error"

    def found(source: str, kinds: Sequence[str]) -> data.Source:
        got = data.read_records(source, fields=fields, formats=kinds, on_bad=on_bad)
        if got.left_out:
            say(f"{len(got.left_out)} records are left out; {got.left_out[0]}")
        chat = tokenizer.chat is not None and options.chat is not False
        records = got.records
        if chat:
            records = data.changed(
                records, lambda record: data.as_chat(record, system=options.system)
            )
        return got._replace(records=records)

    first = found(options.source, formats)
    records, held = first.records, None
    if options.held_out_data is not None:
        held = found(options.held_out_data, (first.format,)).records
        records = data.apart(records, held)
    elif options.held_out:
        share = options.held_out
        if share >= 1:
            share = share / max(len(records), 1)
        if not 0 < share < 1:
            raise InputError(
                f"held_out must be less than the {len(records)} records of "
                f"{options.source}, got {options.held_out:g}"
            )
        records, held = data.split(records, held_out=share, seed=seed)
    return Sets(records, held, first.format)


def tokenizer_of(options: Model) -> data.Tokenizer:
    """The tokenizer of a model's folder, of whatever kind it is.

    Args:
      options: of the model.

    Returns:
      the tokenizer.

    Raises:
      InputError: the folder is none, or has no tokenizer.
    """
    return data.load_tokenizer(folders.find(options.folder).base)


def open_model(options: Model, *, seed: int) -> Policy:
    """The policy of a folder, whole or with fresh adapters.

    Args:
      options: of the model.
      seed: of the adapters.

    Returns:
      the policy.

    Raises:
      InputError: the folder cannot be read, or is no base for adapters.
    """
    found, adapters = folders.find(options.folder), options.lora.lora()
    plain = found.adapter is None and found.checkpoints is None
    if adapters is not None and not plain:
        raise InputError(
            "lora.rank: adapters name their base, which must be a Hugging Face folder, "
            f"got {options.folder}; `alignax convert {options.folder} FOLDER` makes one"
        )
    mesh = options.mesh.make()
    if options.attention == "cudnn" and jax.default_backend() != "gpu":
        raise InputError(
            f"attention cudnn needs an NVIDIA GPU, got {jax.default_backend()}; xla "
            "would do"
        )
    policy = folders.open_policy(
        options.folder,
        adapters=adapters,
        key=jax.random.key(seed),
        param_dtype=options.param_dtype,
        dtype=options.dtype,
        mesh=mesh,
    )
    if adapters is None and policy.lora is not None:
        # All parameters are trained: what the folder adapts is merged.
        params = policies.whole(policy, policy.params)
        policy = policies.make(policy.config, params, policy.tokenizer)
        policy = policies.on_mesh(policy, mesh)
    if options.attention == "xla":
        return policy
    config = dataclasses.replace(policy.config, attention=options.attention)
    fns = functional.make_apply(config), functional.make_hidden(config)
    return policies.with_functions(policy._replace(config=config), *fns)


def checkpointed(policy: Policy, options: Model, *, tokens: int) -> Policy:
    """The policy with what ``remat`` says of its reverse pass.

    Args:
      policy: of ``open_model``.
      options: of the model.
      tokens: of all rows of a microbatch.

    Returns:
      the policy, with another ``hidden_fn``.
    """
    remat: str = options.remat
    if remat == "auto":
        remat = "none"
        held, room = activation_bytes(policy.config, tokens), memory_bytes()
        if room is not None and held > room / 3:
            say(
                f"gradient checkpointing is on: the activations of a microbatch are "
                f"about {held / 2**30:.1f} GiB of {room / 2**30:.1f}"
            )
            remat = "block"
    if remat == "none":
        return policy
    # On CPU only the loop over layers lets it save memory (``make_hidden``).
    hidden_fn = functional.make_hidden(policy.config, remat=remat, scan=True)
    apply_fn = functional.make_apply(policy.config)
    return policies.with_functions(policy, apply_fn, hidden_fn)


def fits(policy: Policy, lengths: dict[str, int], folder: Path) -> None:
    """Refuse rows that are longer than the model's context.

    Args:
      policy: of the model.
      lengths: of a row's parts, by the options' names.
      folder: the model's, for the message.

    Raises:
      InputError: they do not fit.
    """
    if sum(lengths.values()) > policy.config.max_length:
        raise InputError(
            f"{' + '.join(lengths)} must fit the {policy.config.max_length} tokens of "
            f"{folder}, got {' + '.join(map(str, lengths.values()))}; give smaller ones"
        )


def lengths_of(
    options: Data,
    sets: Sets,
    policy: Policy,
    *,
    prompt_length: int | None,
    max_tokens: int | None,
) -> tuple[int, int]:
    """Lengths of prompts and completions, where they are not given those of the data.

    Args:
      options: of the data.
      sets: the records, with prompts and perhaps completions.
      policy: of the model.
      prompt_length: tokens of the longest prompt; None for the data's percentile.
      max_tokens: of the longest completion; None for half more than the data's, 256
        where it has none, as far as the context goes.

    Returns:
      both.
    """
    tokenizer = policy.tokenizer

    def texts(record):
        if sets.format == "completions":
            return data.supervised_texts(record, tokenizer)
        return data.prompt_text(record, tokenizer)

    if prompt_length is None or max_tokens is None:
        records = (sets.train[i] for i in range(len(sets.train)))
        found = data.lengths(
            map(texts, records),
            tokenizer,
            percentile=options.percentile,
            multiple=MULTIPLE,
        )
        if prompt_length is None:
            prompt_length = found.prompt
        if max_tokens is None:
            max_tokens = found.completion + found.completion // 2 or 256
            room = policy.config.max_length - prompt_length
            max_tokens = max(min(max_tokens, room), 1)
    return prompt_length, max_tokens


def activation_bytes(config: DecoderConfig, tokens: int) -> float:
    """About what a reverse pass keeps of a forward pass, attention's products aside.

    Args:
      config: the architecture.
      tokens: of all rows.

    Returns:
      bytes: of each layer the residual stream, both norms, queries, keys, values,
      what attention mixed, and three results of the MLP.
    """
    own = config.num_heads * config.head_dim
    shared = config.num_kv_heads * config.head_dim
    width = 4 * config.hidden_size + 2 * own + 2 * shared + 3 * config.mlp_size
    size = 2 if config.dtype == "bfloat16" else 4
    return float(config.num_layers) * width * tokens * size


def memory_bytes() -> int | None:
    """The first device's memory; on a CPU that of the machine; None where unknown."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
        if not all(name in os.sysconf_names for name in names):
            return None
        return os.sysconf(names[0]) * os.sysconf(names[1])
    return (device.memory_stats() or {}).get("bytes_limit")


def begin(config: Any, output: Output, *, kind: str, model: Model, phase: str) -> None:
    """Write ``run.json``: what a run is, for whoever opens its folder.

    Args:
      config: of the run, all that was left open filled in.
      output: its folder.
      kind: rl, preference, reward or supervised.
      model: that it begins from.
      phase: the name of its checkpoints' folder.
    """
    if jax.process_index() != 0:
        return
    adapters = model.lora.lora()
    settings = {
        "alignax": alignax.__version__,
        "kind": kind,
        "model": str(Path(model.folder).resolve()),
        "lora": None if adapters is None else dataclasses.asdict(adapters),
        "phase": phase,
        "config": configs.as_mapping(config),
    }
    output.out.mkdir(parents=True, exist_ok=True)
    half = output.out / f"{folders.RUN}.half"
    half.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    half.replace(output.out / folders.RUN)


def compared(config: Any) -> dict[str, Any]:
    """What must be the same where a run goes on."""
    return {k: v for k, v in configs.as_mapping(config).items() if k not in MOVABLE}


def export(policy: Policy, params: Any, output: Output, model: Model) -> Path:
    """Write what was trained: ``model/``, or ``adapter/`` in PEFT's format.

    Args:
      policy: that was trained.
      params: its parameters now.
      output: the run's folder.
      model: that it began from.

    Returns:
      the folder.
    """
    folder = output.out / ("model" if policy.lora is None else "adapter")
    source = folders.find(model.folder).base
    policies.save(policy, params, folder, source=source)
    return folder


def check(output: Output, model: Model) -> None:
    """Join the run's processes; refuse to write over a run, or to resume none."""
    model.mesh.join()
    hosts.first(lambda: loop.check_folder(output.out, resume=output.resume))
