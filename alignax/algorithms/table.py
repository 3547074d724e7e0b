"""The methods by their published names, as data."""

from alignax.algorithms import chosen, foundations, levels, rewarded, terms, tokens
from alignax.algorithms.entry import Method

METHODS: dict[str, Method] = (
    foundations.ROWS
    | levels.ROWS
    | rewarded.ROWS
    | tokens.ROWS
    | chosen.ROWS
    | terms.ROWS
)
