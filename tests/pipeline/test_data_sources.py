"""Records of any source: spelled, recognised, checked, split, measured."""

import dataclasses
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from alignax import spelling
from alignax.pipeline import data
from alignax.types import InputError


def template(messages):
    return "".join(f"<{m['role']}>{m['content']}<end>" for m in messages)


PLAIN = data.byte_tokenizer()
CHATTY = dataclasses.replace(
    PLAIN, chat=lambda m: template(m) + "<assistant>", conversation=template
)
TALK = [
    {"role": role, "content": text}
    for role, text in (("user", "1+1?"), ("assistant", "2"), ("user", "so 2+2?"))
]
ROWS = [
    {"question": f"{a}+1=", "answer": str(a + 1), "level": a, "talk": TALK[:1]}
    for a in range(7)
]


def write(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    write(folder / "x.jsonl", ROWS)
    table = pyarrow.Table.from_pylist(ROWS)
    parquet.write_table(table, folder / "x.parquet", row_group_size=2)
    parquet.write_table(table.slice(0, 3), folder / "part-0.parquet")
    parquet.write_table(table.slice(3), folder / "part-1.parquet")
    return folder


def test_parquet_has_what_json_lines_have(files):
    """One file or several, with the fields renamed, read in any order."""
    read = [
        data.read_records(files / name, fields={"prompt": "question"})
        for name in ("x.jsonl", "x.parquet", "part-*.parquet")
    ]
    expected = [{**row, "prompt": row["question"]} for row in ROWS]
    for records, format, left_out in read:
        assert [records[i] for i in (6, 0, 3)] == [expected[i] for i in (6, 0, 3)]
        assert (list(records), format, left_out) == (expected, "prompts", [])
    with pytest.raises(IndexError):
        read[1].records[7]


FORMATS = [
    ({"prompt": "a"}, "prompts"),
    ({"prompt": TALK[:1], "answer": 2}, "prompts"),
    ({"prompt": "a", "completion": "b"}, "completions"),
    ({"prompt": "a", "completion": "b", "label": False}, "labelled"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "pairs"),
    (
        {"chosen": TALK[:2], "rejected": [*TALK[:1], TALK[1] | {"content": "3"}]},
        "pairs",
    ),
    ({"messages": TALK}, "messages"),
]


@pytest.mark.parametrize(("record", "format"), FORMATS)
def test_formats_of_trl(tmp_path, record, format):
    """TRL's dataset types by their columns, standard and conversational."""
    assert data.read_records(write(tmp_path / "x.jsonl", [record])).format == format


BAD = [
    ([{"question": "a"}], {}, "line 1: the record has the fields 'question', which"),
    ([{"prompt": "a"}, {"q": 1}], {}, "line 2: .* no field 'prompt'; it has 'q'"),
    ([{"prompt": 3}], {}, "line 1, field 'prompt': a int"),
    ([{"messages": "hello"}], {}, "line 1, field 'messages': a str; messages such"),
    ([{"messages": TALK[:1]}], {}, "line 1, field 'messages': no message of the assis"),
    ([{"prompt": "a"}], {"formats": ["pairs"]}, "none of the formats that would do"),
    ([{"prompt": "a"}], {"formats": ["pair"]}, "formats: 'pair' was given"),
    ([{"prompt": "a"}], {"fields": {"prompt": "q"}}, "no field 'q'; it has 'prompt'"),
]


@pytest.mark.parametrize(("records", "options", "message"), BAD)
def test_bad_records_are_named(tmp_path, records, options, message):
    path = write(tmp_path / "x.jsonl", records)
    with pytest.raises(InputError, match=message):
        data.read_records(path, **options)


def test_bad_sources_are_named(tmp_path):
    """What is no source, a damaged file, files of two kinds of columns."""
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    parquet.write_table(pyarrow.table({"prompt": [1]}), tmp_path / "b.parquet")
    parquet.write_table(pyarrow.table({"prompt": ["a"]}), tmp_path / "a.parquet")
    for source, message in (
        ("questions.csv", "'questions.csv' was given; FILE.jsonl"),
        (str(tmp_path / "no*.jsonl"), "names no file"),
        ("nowhere.jsonl", "No such file"),
        ("nowhere.parquet", "a Parquet file would do"),
        (str(tmp_path / "bad.parquet"), "a Parquet file would do"),
        (str(tmp_path / "[ab].parquet"), "have not the same columns"),
        ("tfds:ours,split=train", "where TFDS sets were prepared"),
        ("tfds:ours,part=train", "has no option 'part'; it has split, data_dir"),
        ("reasoning_gym:sums", "reasoning_gym has no 'sums'"),
        ("reasoning_gym:chain_sum,terms=2", "no such option; it has min_terms"),
        ("reasoning_gym:chain_sum,max_terms=0", "refuses its options"),
    ):
        with pytest.raises(InputError, match=message):
            data.read_records(source)
    fields = pyarrow.schema([("prompt", "string"), ("x", "string")])
    for part, x in enumerate(("1+1=", None)):
        table = pyarrow.Table.from_pylist([{"prompt": "a", "x": x}], schema=fields)
        parquet.write_table(table, tmp_path / f"part-{part}.parquet")
    with pytest.raises(InputError, match=r"part-1.parquet, row 0: .* no field 'x'"):
        data.read_records(tmp_path / "part-?.parquet", fields={"prompt": "x"})


def test_tfds_is_spelled(tmp_path):
    """A set prepared by TFDS, its fields renamed and all kept."""
    path = write(tmp_path / "x.jsonl", [{"q": "1+1=", "a": "2"}])
    data.tfds_from_jsonl(
        {"test": path}, name="spelled_sums", fields=("q", "a"), data_dir=tmp_path
    )
    records = data.read_records(
        "tfds:spelled_sums,split=test", fields={"prompt": "q"}, data_dir=tmp_path
    ).records
    assert list(records) == [{"q": "1+1=", "a": "2", "prompt": "1+1="}]


def test_chats_go_through_the_template_once():
    """By hand; the ids are the parts' own, and a prompt is encoded only once."""
    record = {"messages": [*TALK, {"role": "assistant", "content": "4"}]}
    prompt, answer = data.supervised_texts(record, CHATTY)
    assert prompt == "<user>1+1?<end><assistant>2<end><user>so 2+2?<end><assistant>"
    assert answer == data.Turn("4<end>")
    assert data.supervised_texts({"messages": TALK}, CHATTY)[1] == data.Turn("2<end>")
    every = [data.supervised_texts(r, CHATTY) for r in data.each_turn([record])]
    assert every == [("<user>1+1?<end><assistant>", ("2<end>",)), (prompt, answer)]
    chat = data.as_chat({"prompt": "q", "completion": "a", "n": 1}, system="s")
    assert chat["n"] == 1
    expected = "<system>s<end><user>q<end><assistant>"
    assert data.supervised_texts(chat, CHATTY) == (expected, ("a<end>",))
    assert data.prompt_text(chat, CHATTY) == expected
    for bad, tokenizer, message in (
        (chat, PLAIN, "no chat template"),
        ({"prompt": TALK[:2]}, CHATTY, "last message is the assistant's"),
        ({"answer": "a"}, PLAIN, "no field 'prompt'; it has 'answer'"),
    ):
        with pytest.raises(InputError, match=message):
            data.prompt_text(bad, tokenizer)


def test_widths_hold_their_share():
    """Against numpy's order statistics; what is left out is counted."""
    texts = [("p" * (i + 1), "a" * (100 - i)) for i in range(100)]
    assert data.lengths(texts, PLAIN) == (101, 101, 103, 0.0)  # with bos, eos, both
    some = data.lengths(texts, PLAIN, percentile=90.0, multiple=8)
    assert (some.prompt, some.completion) == (96, 96)  # up from 91 and 91
    # Longer are prompts of 97 to 101 tokens, and as many answers.
    assert some.left_out == pytest.approx(0.1)
    assert data.lengths(["abc"], PLAIN) == (4, 0, 4, 0.0)
    # A width is one that occurs.
    assert data.lengths(["a", "a" * 99], PLAIN, percentile=60.0).prompt == 100
    for options in ({"percentile": 0.0}, {"percentile": 101.0}, {"multiple": 0}):
        with pytest.raises(InputError, match="percentile"):
            data.lengths(["abc"], PLAIN, **options)


def test_equal_prompts_stay_on_one_side():
    """A held-out share of the prompts, whatever their number of records."""
    records = [{"prompt": str(i % 10), "n": i} for i in range(40)]
    train, held = data.split(records, held_out=0.3, seed=1)
    sides = [{r["prompt"] for r in side} for side in (train, held)]
    assert len(sides[1]) == 3
    assert sides[0].isdisjoint(sides[1])
    assert sorted(r["n"] for side in (train, held) for r in side) == list(range(40))
    assert [r["n"] for r in data.split(records, held_out=0.3, seed=2)[1]] != [
        r["n"] for r in held
    ]
    assert list(data.apart(records, held)) == list(train)
    for share in (0.0, 1.0, 0.01):
        with pytest.raises(InputError, match="held_out"):
            data.split(records, held_out=share, seed=0)
    with pytest.raises(InputError, match="all 40 prompts are among"):
        data.apart(records, records)


def test_generated_problems_are_plain_and_seeded():
    """As JSON has them; the prompt is the library's question."""
    gym = pytest.importorskip("reasoning_gym")
    source = "reasoning_gym:chain_sum,size=5,seed=3,max_terms=2"
    records, format, _ = data.read_records(source)
    assert format == "prompts"
    theirs = gym.create_dataset("chain_sum", size=5, seed=3, max_terms=2)
    assert [r["prompt"] for r in records] == [e["question"] for e in theirs]
    assert json.loads(json.dumps(list(records))) == list(records)
    assert list(data.read_records(source).records) == list(records)
    with pytest.raises(InputError, match="no plain values"):
        data.read_records("reasoning_gym:rearc,size=1")


def test_options_are_read_as_their_types():
    """Integers, numbers, texts, flags; commas within a value."""

    def f(*, n: int = 1, x: float = 0.5, s: str | None = None, b: bool = False):
        return n, x, s, b

    name, options = spelling.spelled("f,n=2,x=3,s=1,2,b=true")
    assert spelling.bound(f, options, name) == (2, 3, "1,2", True)
    for text, message in (
        ("f,n=2.5", "n=2.5 was given; an integer"),
        ("f,n=true", "n=true was given; an integer"),
        ("f,x=much", "x=much was given; a number"),
        ("f,b=1", "true or false"),
        ("f,m=1", "no option 'm'; it has n, x, s, b"),
    ):
        with pytest.raises(InputError, match=message):
            spelling.bound(f, spelling.spelled(text)[1], "f")
    for text in ("", "a=1", "f,n=1,n=2"):
        with pytest.raises(InputError, match="would do"):
            spelling.spelled(text)
    with pytest.raises(InputError, match="needs the option 'n'"):
        spelling.bound(lambda *, n: n, {}, "g")


def test_reviews_are_many_and_different():
    prompts = [r["prompt"] for r in data.read_records("reviews").records]
    assert len(set(prompts)) == 100
    assert np.mean([p.endswith(".") for p in prompts]) == 1
