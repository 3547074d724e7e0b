"""Writes ``docs/algorithms.md`` from ``alignax.algorithms.METHODS``.

python docs/generate_algorithms.py
"""

from pathlib import Path

from alignax.algorithms import METHODS

HEADER = """# Policy gradients as compositions

Every method below is a value: `alignax.algorithms.METHODS["dapo"]`. A composition is
one function for each stage,

    scored ─▶ shape ─▶ advantage ─▶ credit ─▶ weight ─▶ rule(ratio) + term ─▶ reduction

and reads like its paper. Rows whose key stands in **bold** have an `algorithm` that
`experiments/rlvr.py` runs as it is; the others name the pieces that they consist of.
The paper's form is the default; forms of official code and of other frameworks are
`variants`. *Check* is the test that shows it. The table is written by
`python docs/generate_algorithms.py` and compared with its source in the tests.

| key | method | paper, equation | composition | defaults | variants | check |
|---|---|---|---|---|---|---|
"""


def text() -> str:
    lines = []
    for key, method in METHODS.items():
        file, function = method.check.split("::")
        cells = [
            f"**`{key}`**" if method.algorithm else f"`{key}`",
            method.name,
            method.paper,
            method.composition,
            method.defaults,
            ", ".join(method.variants),
            f"`{file.removeprefix('tests/')}` `{function}`",
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |\n")
    return HEADER + "".join(lines)


if __name__ == "__main__":
    (Path(__file__).parent / "algorithms.md").write_text(text())
