"""Tokenizers, records and batches of prompts: the host's side of a run.

Strings live here and in ``alignax.pipeline.rewards``, nowhere else. Records are
dictionaries behind a random-access sequence, from JSON-lines (``read_jsonl``) or
from TFDS without TensorFlow (``read_tfds``). Batches come out of a grain
iterator: batch ``s`` is a function of the records, the seed and ``s`` alone, so a
restored run sees what the interrupted one would have seen, on any number of
processes.
"""

from alignax.pipeline.data.batches import prompt_batches, supervised_batches
from alignax.pipeline.data.buckets import pair_batches, unpaired_batches
from alignax.pipeline.data.preferences import (
    CONVERSATIONS,
    PAIRS,
    UNPAIRED,
    PairRows,
    UnpairedRows,
    encode_pairs,
    encode_unpaired,
    labelled_texts,
    pair_texts,
    read_preferences,
)
from alignax.pipeline.data.records import (
    Records,
    read_jsonl,
    read_tfds,
    tfds_from_jsonl,
)
from alignax.pipeline.data.rows import Turn, encode_prompts, encode_supervised
from alignax.pipeline.data.tokenizers import (
    Tokenizer,
    byte_tokenizer,
    decode_rows,
    load_tokenizer,
)

__all__ = [
    "CONVERSATIONS",
    "PAIRS",
    "UNPAIRED",
    "PairRows",
    "Records",
    "Tokenizer",
    "Turn",
    "UnpairedRows",
    "byte_tokenizer",
    "decode_rows",
    "encode_pairs",
    "encode_prompts",
    "encode_supervised",
    "encode_unpaired",
    "labelled_texts",
    "load_tokenizer",
    "pair_batches",
    "pair_texts",
    "prompt_batches",
    "read_jsonl",
    "read_preferences",
    "read_tfds",
    "supervised_batches",
    "tfds_from_jsonl",
    "unpaired_batches",
]
