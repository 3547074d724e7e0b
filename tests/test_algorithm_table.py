"""The table of methods: no two alike, each printed as what makes it, and documented."""

import ast
import itertools
from pathlib import Path

import pytest

import alignax
from alignax import algorithms, divergences
from alignax.algorithms import compose, values
from tests.algorithm_batch import (
    ALGORITHMS,
)
from tests.algorithm_checks import CHECKS

ROOT = Path(__file__).parent.parent


def test_every_method_has_a_check():
    assert set(CHECKS) == set(algorithms.METHODS)


@pytest.mark.parametrize("key", CHECKS)
def test_the_check_exists(key):
    file, function = CHECKS[key]
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert function in {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}


def test_document_is_the_table():
    import importlib.util

    path = ROOT / "docs" / "generate_algorithms.py"
    spec = importlib.util.spec_from_file_location("generate_algorithms", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "algorithms.md").read_text() == module.text()


def test_no_two_methods_are_equal():
    """Each row and each variant is a composition of its own, or its paper is lost."""
    same = [
        pair
        for pair in itertools.combinations(ALGORITHMS, 2)
        if ALGORITHMS[pair[0]] == ALGORITHMS[pair[1]]
    ]
    assert not same


def read(text):
    """The value that a printed method stands for: calls of public names alone."""

    def value(node):
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.List):
            return [value(x) for x in node.elts]
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        if isinstance(node, ast.Name):
            return getattr(compose, node.id, None) or getattr(algorithms, node.id)
        if isinstance(node, ast.Attribute):
            room = getattr(algorithms, node.value.id, None)
            return getattr(room or getattr(alignax, node.value.id), node.attr)
        assert isinstance(node, ast.Call), ast.dump(node)
        given = {x.arg: value(x.value) for x in node.keywords}
        return value(node.func)(*map(value, node.args), **given)

    return value(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_printed_method_is_the_method(name):
    assert read(repr(ALGORITHMS[name])) == ALGORITHMS[name]


@pytest.mark.parametrize(
    "div",
    [
        divergences.normalise(divergences.squared_hellinger()),
        divergences.scale(divergences.chi2_kl(1.0), 0.5),
        divergences.alpha(-3.0),
        divergences.mix(
            [divergences.alpha(0.5), divergences.scale(divergences.neyman(), 1e-5)],
            [1.0, 0.25],
        ),
    ],
)
def test_printed_combination_of_divergences_is_the_combination(div):
    assert read(values.printed(div)) == div
