"""Writes ``docs/algorithms.md`` from ``alignax.algorithms.METHODS``.

python -m docs.generate_algorithms
"""

from pathlib import Path

from alignax.algorithms import METHODS
from alignax.references import fixed
from tests.algorithm_checks import CHECKS

HEADER = """# Policy gradients as compositions

Every method below is a value: `alignax.algorithms.METHODS["dapo"]`. A composition is
one function for each stage,

    scored ─▶ shape ─▶ advantage ─▶ credit ─▶ weight ─▶ rule(ratio) + term ─▶ reduction

and reads like its paper; printed, it is the call that makes it. Rows whose key stands
in **bold** have an `algorithm`; the others name the pieces that they consist of. *Step*
is the module of `alignax.train` that runs the row. *Regulariser* has the divergence,
its level, form and place, and beta; *reference* the policy it is measured from where
that is not the one training starts from. The paper's form is the default; forms of
official code and of other frameworks are `variants`. *Check* is the test that shows it.
The table is written by `python -m docs.generate_algorithms` and compared with its
source in the tests.

| key | method | paper, equation | composition | defaults | regulariser | reference | \
step | variants | check |
|---|---|---|---|---|---|---|---|---|---|
"""


def regulariser(algorithm) -> str:
    if algorithm is None or algorithm.regulariser is None:
        return ""
    chosen = algorithm.regulariser
    samples = "" if chosen.samples == "policy" else f" of {chosen.samples} rows"
    return (
        f"{chosen.divergence}, {chosen.level}, {chosen.form}, in the {chosen.place}{samples}; "
        f"β {algorithm.beta:g}"
    )


def reference(algorithm) -> str:
    if algorithm is None or algorithm.reference == fixed():
        return ""
    settings = ", ".join(
        f"{name} {value}" for name, value in algorithm.reference.settings
    )
    return f"{algorithm.reference.name} ({settings})"


def text() -> str:
    lines = []
    for key, method in METHODS.items():
        file, function = CHECKS[key]
        cells = [
            f"**`{key}`**" if method.algorithm else f"`{key}`",
            method.name,
            method.paper,
            method.composition,
            method.defaults,
            regulariser(method.algorithm),
            reference(method.algorithm),
            f"`{method.step}`" if method.step else "",
            ", ".join(method.variants),
            f"`{file}` `{function}`",
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |\n")
    return HEADER + "".join(lines)


if __name__ == "__main__":
    (Path(__file__).parent / "algorithms.md").write_text(text())
