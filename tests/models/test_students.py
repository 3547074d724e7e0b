"""Models of a model's own layers."""

import jax.numpy as jnp
import pytest

from alignax.models import functional, students
from alignax.types import InputError
from tests.close import assert_close, decoder_rel
from tests.models.cases import CONFIGS, FAMILIES, random_params, random_tokens


def test_layers_that_stay_are_the_models():
    """All layers are the model; a layer whose maps out are zero may be left out."""
    config = FAMILIES["gemma2"]
    params, tokens = random_params(config), random_tokens(config, (2, 5))
    last = config.num_layers - 1
    block = params["blocks"]["1"]
    gone = {"attention": "out", "mlp": "down"}
    quiet = block | {
        part: block[part] | {out: _zeros(block[part][out])}
        for part, out in gone.items()
    }
    without = params | {"blocks": params["blocks"] | {"1": quiet}}
    expected = functional.make_apply(config)(without, tokens).logits
    layers = tuple(i for i in range(last + 1) if i != 1)
    small, own = students.from_layers(config, params, layers)
    actual = functional.make_apply(small)(own, tokens).logits
    assert_close(actual, expected, rel=decoder_rel(config.num_layers))


def _zeros(linear):
    return {name: jnp.zeros_like(x) for name, x in linear.items()}


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0), (0, 2), (-1,)])
def test_layers_that_are_not_there_are_refused(layers):
    config = CONFIGS["llama"]
    with pytest.raises(InputError, match="layers must be increasing numbers below 2"):
        students.from_layers(config, {}, layers)
    with pytest.raises(InputError, match="kept must be from 1 to"):
        students.spread_layers(2, 3)
