"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import alignax

MODULES = [
    module.name
    for module in pkgutil.walk_packages(alignax.__path__, "alignax.")
    if not module.ispkg
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
