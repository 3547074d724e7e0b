"""Tokenizers, records and batches of prompts: the host's side of a run.

Strings live here and in ``alignax.pipeline.rewards``, nowhere else. Records are
dictionaries behind a random-access sequence, of any source by ``read_records``:
JSON-lines, Parquet, TFDS without TensorFlow, generated problems. Batches come out of a
grain iterator: batch ``s`` is a function of the records, the seed and ``s`` alone, so a
restored run sees what the interrupted one would have seen, on any number of
processes.
"""

from alignax.pipeline.data.batches import prompt_batches, supervised_batches
from alignax.pipeline.data.buckets import pair_batches, unpaired_batches
from alignax.pipeline.data.ends import Aligned, Ends, make_align, make_ends
from alignax.pipeline.data.formats import (
    FORMATS,
    as_chat,
    each_turn,
    format_of,
    prompt_text,
    supervised_texts,
)
from alignax.pipeline.data.gym import reasoning_gym_records
from alignax.pipeline.data.lengths import Lengths, lengths
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
)
from alignax.pipeline.data.records import (
    Records,
    read_jsonl,
    read_tfds,
    tfds_from_jsonl,
)
from alignax.pipeline.data.reviews import review_prompts
from alignax.pipeline.data.rows import Turn, encode_prompts, encode_supervised
from alignax.pipeline.data.sources import (
    Source,
    apart,
    changed,
    read_parquet,
    read_records,
    split,
)
from alignax.pipeline.data.tokenizers import (
    Tokenizer,
    byte_tokenizer,
    decode_rows,
    load_tokenizer,
)

__all__ = [
    "CONVERSATIONS",
    "FORMATS",
    "PAIRS",
    "UNPAIRED",
    "Aligned",
    "Ends",
    "Lengths",
    "PairRows",
    "Records",
    "Source",
    "Tokenizer",
    "Turn",
    "UnpairedRows",
    "apart",
    "as_chat",
    "byte_tokenizer",
    "changed",
    "decode_rows",
    "each_turn",
    "encode_pairs",
    "encode_prompts",
    "encode_supervised",
    "encode_unpaired",
    "format_of",
    "labelled_texts",
    "lengths",
    "load_tokenizer",
    "make_align",
    "make_ends",
    "pair_batches",
    "pair_texts",
    "prompt_batches",
    "prompt_text",
    "read_jsonl",
    "read_parquet",
    "read_records",
    "read_tfds",
    "reasoning_gym_records",
    "review_prompts",
    "split",
    "supervised_batches",
    "supervised_texts",
    "tfds_from_jsonl",
    "unpaired_batches",
]
