"""Records: JSON-lines with all that can be wrong in them, and TFDS without TF."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow_datasets as tfds

from alignax.pipeline.data import Records, read_jsonl, read_tfds, tfds_from_jsonl
from alignax.types import InputError

FIELDS = ("question", "answer")
RECORDS = [{"question": f"é {i}?", "answer": f"so\n#### {i}"} for i in range(13)]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data_dir with a set of our own and one under a legacy catalogue name."""
    root = tmp_path_factory.mktemp("tfds")
    path = write(root / "all.jsonl", RECORDS)
    few = write(root / "few.jsonl", RECORDS[:4])
    for name in ("our_sums", "gsm8k"):
        folder = tfds_from_jsonl(
            {"train": path, "test": few}, name=name, fields=FIELDS, data_dir=root / "d"
        )
        assert folder == root / "d" / name / "1.0.0"
    return root / "d"


def test_jsonl_keeps_order_and_the_fields(tmp_path):
    path = write(tmp_path / "x.jsonl", [{**r, "other": 1} for r in RECORDS])
    records = read_jsonl(path, fields=FIELDS)
    assert records == RECORDS
    assert isinstance(records, Records)


def test_jsonl_skips_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n   \n{"a": 2}')
    assert read_jsonl(path, fields=["a"]) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", "line 3: not valid JSON"),
        (b'{"a": "\xff"}', "line 3: not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, "line 3: not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 3: not valid JSON"),
        (b"[1, 2]", "line 3: a JSON list where an object"),
        (b'{"b": 1}', "line 3: the record has no field 'a'; it has 'b'"),
        (b'{"a": null}', "line 3: the record has no field 'a'"),
        (b"{}", "line 3: the record has no field 'a'; it has none"),
    ],
)
def test_jsonl_names_file_line_and_field(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=r"bad\.jsonl") as caught:
        read_jsonl(path, fields=["a"])
    assert message in str(caught.value)


def test_jsonl_missing_empty_or_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl' cannot be read \(No such"):
        read_jsonl(tmp_path / "nowhere.jsonl", fields=["a"])
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory"):
        read_jsonl(tmp_path, fields=["a"])
    (tmp_path / "empty.jsonl").write_text("\n  \n")
    with pytest.raises(InputError, match=r"empty\.jsonl' holds no record"):
        read_jsonl(tmp_path / "empty.jsonl", fields=["a"])


@pytest.mark.parametrize("fields", ["question", ()])
def test_fields_are_a_sequence_of_names(tmp_path, fields):
    with pytest.raises(InputError, match=r"fields: .* sequence of field names"):
        read_jsonl(tmp_path / "x.jsonl", fields=fields)
    with pytest.raises(InputError, match=r"fields: .* sequence of field names"):
        read_tfds("x", split="train", data_dir=tmp_path, fields=fields)


@pytest.mark.parametrize("name", ["our_sums", "gsm8k"])
def test_tfds_round_trip(prepared, name):
    records = read_tfds(name, split="train", data_dir=prepared, fields=FIELDS)
    assert isinstance(records, Records)
    assert list(records) == RECORDS
    assert [records[i] for i in (5, 0, -1)] == [RECORDS[i] for i in (5, 0, -1)]
    with pytest.raises(IndexError):
        records[13]
    few = read_tfds(name, split="test[:3]", data_dir=prepared, fields=["answer"])
    assert list(few) == [{"answer": r["answer"]} for r in RECORDS[:3]]


def test_tfds_keeps_plain_types(tmp_path):
    records = [{"n": 2**40 + i, "b": i > 0, "s": str(i)} for i in range(3)]
    path = write(tmp_path / "x.jsonl", records)
    fields = ("n", "b", "s")
    tfds_from_jsonl({"train": path}, name="kinds", fields=fields, data_dir=tmp_path)
    back = list(read_tfds("kinds", split="train", data_dir=tmp_path, fields=fields))
    assert back == records
    assert [type(v) for v in back[0].values()] == [int, bool, str]


def test_tfds_nested_features_become_plain(tmp_path):
    class Nested(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            turn = {"role": tfds.features.Text(), "n": tfds.features.Scalar(np.int32)}
            features = {
                "turn": turn,
                "texts": tfds.features.Sequence(tfds.features.Text()),
                "vector": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield (
                0,
                {
                    "turn": {"role": "user", "n": 3},
                    "texts": ["a", "é"],
                    "vector": np.ones(2, np.float32),
                },
            )

    Nested(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    fields = ("turn", "texts", "vector")
    record = read_tfds("nested", split="train", data_dir=tmp_path, fields=fields)[0]
    assert record["turn"] == {"role": "user", "n": 3}
    assert record["texts"] == ["a", "é"]
    np.testing.assert_array_equal(record["vector"], np.ones(2, np.float32))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("no_such_set", {}, "TFDS knows no 'no_such_set'.*tfds_from_jsonl prepares"),
        ("our_sums:9.0.0", {}, "TFDS knows no 'our_sums:9.0.0'"),
        ("not a name!", {}, "cannot load 'not a name!'"),
        ("imdb_reviews", {}, "'imdb_reviews' is not prepared in .*download_and_prep"),
        ("our_sums", {"split": "valid"}, "split: 'valid' is not in 'our_sums'; .*'tes"),
        ("our_sums", {"split": "train[:3"}, "split: 'train\\[:3' is not in"),
        ("our_sums", {"fields": ["hint"]}, "no feature 'hint'; it has 'answer', 'ques"),
    ],
)
def test_tfds_says_what_would_do(prepared, name, change, message):
    given = {"split": "train", "data_dir": prepared, "fields": FIELDS, **change}
    with pytest.raises(InputError, match=message):
        read_tfds(name, **given)


def test_unprepared_legacy_set_says_what_to_import(tmp_path):
    with pytest.raises(
        InputError, match=r"import tensorflow_datasets\.text\.gsm8k\.gsm8k; tfds\.build"
    ):
        read_tfds("gsm8k", split="train", data_dir=tmp_path, fields=FIELDS)


def test_tfds_without_random_access_says_so(prepared, tmp_path):
    folder = tmp_path / "our_sums" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (prepared / "our_sums" / "1.0.0").iterdir():
        text = path.read_bytes()
        if path.name == "dataset_info.json":
            text = text.replace(b'"array_record"', b'"tfrecord"')
        (folder / path.name).write_bytes(text)
    with pytest.raises(InputError, match="a format without random access"):
        read_tfds("our_sums", split="train", data_dir=tmp_path, fields=FIELDS)


def test_preparing_again_needs_the_same_records(tmp_path):
    path = write(tmp_path / "x.jsonl", RECORDS)

    def prepare(version="1.0.0"):
        return tfds_from_jsonl(
            {"train": path}, name="s", fields=FIELDS, data_dir=tmp_path, version=version
        )

    assert prepare() == prepare()
    write(path, RECORDS[::-1])
    with pytest.raises(InputError, match=r"1\.0\.0' holds other records"):
        prepare()
    assert prepare("1.0.1") == tmp_path / "s" / "1.0.1"


@pytest.mark.parametrize(
    ("records", "name", "message"),
    [
        ([{"a": "x"}, {"a": 1}], "s", "'a' of record 1 of 'train' is a int"),
        ([{"a": 1}, {"a": True}], "s", "'a' of record 1 of 'train' is a bool"),
        ([{"a": 0.1}], "s", "'a' of record 0 of 'train' is a float"),
        ([{"a": [1]}], "s", "'a' of record 0 of 'train' is a list"),
        ([{"a": 1}], "Not-a-name", "name: 'Not-a-name' was given"),
        ([{"b": 1}], "s", "line 1: the record has no field 'a'"),
    ],
)
def test_bad_files_are_not_prepared(tmp_path, records, name, message):
    path = write(tmp_path / "x.jsonl", records)
    with pytest.raises(InputError, match=message):
        tfds_from_jsonl({"train": path}, name=name, fields=["a"], data_dir=tmp_path)
    assert not (tmp_path / "s").exists()


def test_no_split_is_an_error(tmp_path):
    with pytest.raises(InputError, match="paths: no split"):
        tfds_from_jsonl({}, name="s", fields=["a"], data_dir=tmp_path)


def test_tensorflow_is_never_imported(tmp_path):
    path = write(tmp_path / "x.jsonl", RECORDS)
    program = f"""
        import sys
        from alignax.pipeline import data
        data.tfds_from_jsonl({{"train": {str(path)!r}}}, name="gsm8k",
                             fields={FIELDS!r}, data_dir={str(tmp_path)!r})
        records = data.read_tfds("gsm8k", split="train", fields={FIELDS!r},
                                 data_dir={str(tmp_path)!r})
        batches = data.prompt_batches(records, data.byte_tokenizer(), batch_size=2,
                                      prompt=lambda r: r["question"], length=9, seed=0)
        assert next(batches).tokens.shape == (2, 9)
        assert "tensorflow_datasets" in sys.modules
        assert "tensorflow" not in sys.modules and "torch" not in sys.modules
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=True,
        capture_output=True,
        text=True,
    )
