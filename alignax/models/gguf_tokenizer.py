"""The tokenizer inside a GGUF file, as the files of a Hugging Face folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from alignax.types import InputError

# tokenizer.ggml.token_type.
CONTROL, USER_DEFINED = 3, 4
SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


class Pre(NamedTuple):
    """How a text is cut before the merges of a byte-level BPE, by tokenizer.ggml.pre.

    A GGUF file holds the name alone; what it means is llama.cpp's."""

    split: str | None = None
    """The pieces; None for GPT-2's."""
    digits: bool = False
    """Each digit stands alone, before GPT-2's cuts."""
    whole: bool = False
    """A piece that is a token is not merged anew."""
    nfc: bool = False
    """Characters are composed first."""
    begins: bool = False
    """A text begins with its first token, where the file does not say."""


_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = Pre(_WORDS + r"|\p{N}{1,3}" + _REST, whole=True, begins=True)
_QWEN2 = Pre(_WORDS + r"|\p{N}" + _REST, nfc=True)
PRES: Mapping[str, Pre] = {
    "gpt-2": Pre(),
    "smollm": Pre(digits=True),
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def check(fields: Mapping[str, Any]) -> None:
    """Refuse what ``write`` cannot.

    Args:
      fields: a GGUF file's keys and values.

    Raises:
      InputError: there is no byte-level BPE of a known kind.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise InputError(
            "tokenizer.ggml.model must be 'gpt2', a byte-level BPE, the only kind that "
            f"is converted, got {kind!r}; take a file of a model with such a tokenizer "
            "(Llama 3, SmolLM, Qwen, GPT-2), or the model's Hugging Face folder"
        )
    pre = fields.get("tokenizer.ggml.pre")
    if pre not in PRES:
        raise InputError(
            f"tokenizer.ggml.pre must be one of {sorted(PRES)}, whose way to cut texts "
            f"is known, got {pre!r}; another one would give other tokens than the "
            "model was trained on"
        )
    tokens = _list(fields, "tokens")
    _list(fields, "merges")
    types = fields.get("tokenizer.ggml.token_type", [])
    if types and len(types) != len(tokens):
        raise InputError(
            f"tokenizer.ggml.token_type must have one number for each of the "
            f"{len(tokens)} tokens, got {len(types)}"
        )
    if len(set(tokens)) != len(tokens):
        raise InputError("tokenizer.ggml.tokens must differ, got some of them twice")
    token_ids(fields)


def _list(fields: Mapping[str, Any], name: str) -> Sequence[str]:
    values = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(isinstance(x, str) for x in values):
        raise InputError(f"tokenizer.ggml.{name} must be a list of texts, got none")
    return values


def token_ids(fields: Mapping[str, Any]) -> dict[str, int | None]:
    """The special tokens' numbers, by their names in ``config.json``.

    Args:
      fields: a GGUF file's keys and values.

    Returns:
      of bos, eos and pad; None where the file has none.

    Raises:
      InputError: one is no token.
    """
    size = len(_list(fields, "tokens"))
    ids = {}
    for token, name in SPECIAL.items():
        value = fields.get(f"tokenizer.ggml.{name}")
        if value is not None and not 0 <= value < size:
            raise InputError(
                f"tokenizer.ggml.{name} must be one of the {size} tokens, got {value}"
            )
        if token != "unk_token":
            ids[f"{token}_id"] = value
    if ids["eos_token_id"] is None:
        raise InputError("tokenizer.ggml.eos_token_id must be given, got none")
    return ids


def write(folder: Path, fields: Mapping[str, Any], *, length: int) -> None:
    """Write a folder's tokenizer, chat template and ``generation_config.json``.

    Args:
      folder: an existing one.
      fields: a GGUF file's keys and values, which ``check`` lets pass.
      length: the model's context, in tokens.

    Raises:
      InputError: the merges are not of the vocabulary.
    """
    tokens, ids = _list(fields, "tokens"), token_ids(fields)
    pre = PRES[fields["tokenizer.ggml.pre"]]
    merges: Any = [tuple(merge.split(" ")) for merge in _list(fields, "merges")]
    vocabulary: Any = {token: i for i, token in enumerate(tokens)}
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=pre.whole)
    except Exception as error:  # the library raises bare ones
        raise InputError(
            f"tokenizer.ggml.merges must be pairs of tokens, got: {error}"
        ) from error
    tokenizer: Any = Tokenizer(model)
    spaced = bool(fields.get("tokenizer.ggml.add_space_prefix", False))
    cuts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)]
    cuts = cuts if pre.digits else []
    if pre.split is not None:
        cuts.append(pre_tokenizers.Split(Regex(pre.split), behavior="isolated"))
    cuts.append(
        pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=pre.split is None)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    types = fields.get("tokenizer.ggml.token_type", [])
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, own in zip(tokens, types, strict=False)
            if own == kind
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    first = ids["bos_token_id"]
    if fields.get("tokenizer.ggml.add_bos_token", pre.begins) and first is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[first]} $A",
            pair=f"{tokens[first]} $A {tokens[first]} $B",
            special_tokens=[(tokens[first], first)],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
        # Else there are token_type_ids, too, which these models do not take.
        "model_input_names": ["input_ids", "attention_mask"],
    }
    for token, name in SPECIAL.items():
        number = fields.get(f"tokenizer.ggml.{name}")
        if number is not None:
            settings[token] = tokens[number]
    _json(folder / "tokenizer_config.json", settings)
    # A turn may end otherwise than a text.
    ends = [ids["eos_token_id"], fields.get("tokenizer.ggml.eot_token_id")]
    ends = [i for i in dict.fromkeys(ends) if i is not None]
    known = {name: number for name, number in ids.items() if number is not None}
    eos = {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    _json(folder / "generation_config.json", known | eos)
    template = fields.get("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
