"""docs/data.md: its code runs, and its tables name what there is."""

import json
import re
from pathlib import Path

import pytest

from alignax.models import gguf
from alignax.pipeline import data
from alignax.pipeline.rewards import BUILTIN
from tests.models import gguf_file
from tests.models.cases import random_params

DOC = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


def test_tables_are_whole():
    named = set(re.findall(r"^\| `([\w]+)", DOC, re.MULTILINE))
    assert named >= set(BUILTIN)
    assert set(re.findall(r"\| `(\w+)`(?= \|)", DOC)) >= set(data.FORMATS)


@pytest.mark.slow
def test_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gguf_file.write(tmp_path / "tiny.gguf", random_params(gguf_file.TINY))
    gguf.convert(tmp_path / "tiny.gguf", tmp_path / "model")
    lines = [{"question": f"{i}+1=", "answer": i + 1} for i in range(20)]
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    opening, chat, own, opened = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    Path("brevity.py").write_text(own)
    names = {"completions": ["so 2", "3"]}
    exec(opening + chat, names)
    assert "leave out 0.0%" in capsys.readouterr().out
    assert next(names["batches"]).tokens.shape[0] == 8
    names["records"] = [{"answer": 2}, {"answer": 2}]
    exec(opened, names)
    assert names["values"].tolist() == pytest.approx([1 - 0.004, -0.001])
