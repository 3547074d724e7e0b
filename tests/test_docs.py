"""The examples in docstrings run and print what they say, to the digits shown."""

import doctest
import importlib
import pkgutil
import re

import numpy as np
import pytest

import alignax

MODULES = [
    module.name
    for module in pkgutil.walk_packages(alignax.__path__, "alignax.")
    if not module.ispkg
]
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d*)?(?:e[+-]?\d+)?(?![\w.])")


class Checker(doctest.OutputChecker):
    """The same text, numbers to four digits: the last ones differ among processors."""

    def check_output(self, want, got, optionflags):
        texts = [NUMBER.sub("#", text) for text in (want, got)]
        if not super().check_output(
            *(" ".join(re.findall(r"[^\s\[\]]+|[\[\]]", text)) for text in texts),
            optionflags,
        ):
            return False
        numbers = [[float(x) for x in NUMBER.findall(text)] for text in (want, got)]
        return np.allclose(*numbers, rtol=6e-5, atol=6e-5)


def by_package(names):
    """The first module of each package; the others, which compile operation by
    operation, run with the slow tests."""
    first = {name.rpartition(".")[0]: name for name in reversed(names)}.values()
    return [
        name if name in first else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


@pytest.mark.parametrize("name", by_package(MODULES))
def test_examples(name):
    runner = doctest.DocTestRunner(Checker())
    for example in doctest.DocTestFinder().find(importlib.import_module(name)):
        runner.run(example)
    assert runner.summarize().failed == 0


@pytest.mark.parametrize(
    ("want", "got", "same"),
    [
        ("[0.5714 0.    ]", "[0.5714286 0.       ]", True),
        ("[0.5714 0.    ]", "[0.5716286 0.       ]", False),
        ("[0.5714 0.    ]", "[[0.5714286 0.       ]]", False),
        ("[-1.  2.]", "[-0.99999994  2.        ]", True),
        ("[-1.  2.]", "[ 1.          2.        ]", False),
        ("8 tokens", "8 tokens", True),
        ("8 tokens", "9 tokens", False),
        ("True", "False", False),
    ],
)
def test_checker(want, got, same):
    assert Checker().check_output(want, got, 0) == same
