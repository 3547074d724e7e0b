"""Text to token ids and back: one small record of functions for every tokenizer."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Bool, Int

from alignax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """What the pipeline asks of a tokenizer.

    Attributes:
      encode: text to ids; adds no special token.
      decode: ids to text; drops the special tokens, never raises on ids that a
        model can sample.
      vocab_size: one more than the largest id.
      eos_id: ends an answer that is a plain text.
      pad_id: fills a row up; equal to ``eos_id`` where the folder names none,
        which is harmless, since masks and not ids tell padding.
      bos_id: stands before every prompt, or None where the model wants none.
      chat: messages (``[{"role": ..., "content": ...}, ...]``) to the text of a
        prompt that the assistant answers, or None without a chat template.
      conversation: messages, the last of them the assistant's, to the text of them
        all, its end of turn included; None without a chat template.
      end_ids: every token that ends a completion when one samples, ``eos_id`` first;
        ``(eos_id,)`` where not given.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Iterable[int]], str]
    vocab_size: int
    eos_id: int
    pad_id: int
    bos_id: int | None = None
    chat: Callable[[Sequence[Mapping[str, str]]], str] | None = None
    conversation: Callable[[Sequence[Mapping[str, str]]], str] | None = None
    end_ids: tuple[int, ...] = ()

    def __post_init__(self):
        ends = dict.fromkeys((self.eos_id, *self.end_ids))
        object.__setattr__(self, "end_ids", tuple(ends))


_PAD, _BOS, _EOS = 256, 257, 258


def byte_tokenizer() -> Tokenizer:
    """UTF-8 bytes as tokens, with pad 256, bos 257 and eos 258: nothing to download.

    Decoding drops every id that is not a byte; bytes that are not UTF-8 become
    U+FFFD.

    Example:
      >>> tokenizer = byte_tokenizer()
      >>> tokenizer.encode("1+2"), tokenizer.decode([51, 258])
      ([49, 43, 50], '3')
    """
    return Tokenizer(
        encode=lambda text: list(text.encode("utf-8", errors="replace")),
        decode=lambda ids: bytes(int(i) for i in ids if 0 <= i < 256).decode(
            "utf-8", errors="replace"
        ),
        vocab_size=259,
        eos_id=_EOS,
        pad_id=_PAD,
        bos_id=_BOS,
    )


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a local Hugging Face folder; nothing is fetched or executed.

    ``bos_id`` is set where the folder's tokenizer itself begins a text with it.

    Args:
      folder: holds ``tokenizer.json`` (or another format that ``transformers``
        reads), as a downloaded checkpoint does.

    Returns:
      The tokenizer, with ``chat`` and ``conversation`` where the folder has a chat
      template, and the ``end_ids`` of its ``generation_config.json``.

    Raises:
      InputError: the folder is missing, is not a tokenizer, or names no
        end-of-sequence token.
    """
    path = pathlib.Path(folder)
    if not path.is_dir():
        raise InputError(
            f"folder: {str(path)!r} is not a folder; give the local folder of a "
            "downloaded checkpoint or tokenizer (nothing is fetched by name)."
        )
    # transformers takes a second to import; byte-level runs do without.
    import transformers
    from jinja2 import TemplateError

    try:
        hf: Any = transformers.AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
        begins = hf("a")["input_ids"][:1]
        # transformers makes an empty tokenizer of a config.json alone.
        if not hf("a", add_special_tokens=False)["input_ids"]:
            raise ValueError("its vocabulary is empty")
    # A broken folder surfaces as any of a dozen exceptions, bare ones included.
    except Exception as error:
        # transformers' messages go on for a page; the first line says what it is.
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InputError(
            f"folder: {str(path)!r} does not hold a tokenizer that transformers can "
            f"load ({reason}); it needs a tokenizer.json, or "
            "the tokenizer files of a downloaded checkpoint."
        ) from error
    if hf.eos_token_id is None:
        raise InputError(
            f"folder: the tokenizer in {str(path)!r} names no end-of-sequence token; "
            'set "eos_token" in its tokenizer_config.json.'
        )

    def encode(text: str) -> list[int]:
        # A lone surrogate (JSON can carry one) is no text to the tokenizer.
        text = text.encode("utf-8", errors="replace").decode("utf-8")
        return list(hf(text, add_special_tokens=False, verbose=False)["input_ids"])

    size = len(hf)

    def decode(ids: Iterable[int]) -> str:
        # A model's embedding may be padded beyond the vocabulary.
        known = [int(i) for i in ids if 0 <= i < size]
        return hf.decode(
            known, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def conversation(messages: Sequence[Mapping[str, str]], answered=True) -> str:
        try:
            return hf.apply_chat_template(
                [dict(m) for m in messages],
                tokenize=False,
                add_generation_prompt=not answered,
            )
        except TemplateError as error:
            roles = ", ".join(str(m.get("role")) for m in messages)
            raise InputError(
                f"messages: the chat template of {str(path)!r} refuses the roles "
                f"{roles} ({error})."
            ) from error

    bos = hf.bos_token_id
    return Tokenizer(
        encode=encode,
        decode=decode,
        vocab_size=size,
        eos_id=hf.eos_token_id,
        pad_id=hf.eos_token_id if hf.pad_token_id is None else hf.pad_token_id,
        bos_id=bos if bos is not None and begins == [bos] else None,
        chat=partial(conversation, answered=False) if hf.chat_template else None,
        conversation=conversation if hf.chat_template else None,
        end_ids=_generation_ends(path),
    )


def _generation_ends(folder: pathlib.Path) -> tuple[int, ...]:
    """``eos_token_id`` of ``generation_config.json``: a number, a list or absent."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return ()
    try:
        ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        ids = [] if ids is None else [ids] if isinstance(ids, int) else ids
        return tuple(int(i) for i in ids)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"folder: {str(file)!r} is no generation configuration ({error}); its "
            '"eos_token_id" may be a number or a list of them.'
        ) from error


def decode_rows(
    tokens: Int[ArrayLike, "B T"], mask: Bool[ArrayLike, "B T"], tokenizer: Tokenizer
) -> list[str]:
    """The texts of sampled rows, from the tokens where ``mask`` is True.

    Args:
      tokens: ids ``[B, T]``, such as ``Rollout.tokens``.
      mask: ``[B, T]``, True on generated tokens.
      tokenizer: decodes them.

    Returns:
      B texts, without special tokens.

    Example:
      >>> import numpy as np
      >>> decode_rows(np.array([[55, 258]]), np.array([[True, True]]), byte_tokenizer())
      ['7']
    """
    return [
        tokenizer.decode(row[keep].tolist())
        for row, keep in zip(np.asarray(tokens), np.asarray(mask), strict=True)
    ]
