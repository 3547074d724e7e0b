"""What every public maths function must do, from one table of them.

The rows live in ``tests/table_<module>.py``; a public function of the maths
without a row fails ``test_every_public_function_has_a_row``.
"""

import importlib
import inspect
import pkgutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import alignax

# Rooms of the maths; `exact`, `pipeline` and `models` have their own tests.
OUTSIDE = {
    "types",
    "exact",
    "testing",
    "pipeline",
    "models",
    "train",
    "cli",
    "spelling",
}

HERE = Path(__file__).parent.parent
ROWS = [
    row
    for path in sorted(Path(__file__).parent.glob("table_*.py"))
    for row in importlib.import_module(f"tests.{path.stem}").ROWS
]
IDS = [f"{row.name}-{i}" for i, row in enumerate(ROWS)]
every_row = pytest.mark.parametrize("row", ROWS, ids=IDS)
# What is long: of the core by default, of all with -m slow.
CORE = {"estimators", "reduce", "logprobs", "sampling"}
heavy_row = pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, marks=[pytest.mark.slow] * (row.name.split(".")[0] not in CORE)
        )
        for row in ROWS
    ],
    ids=IDS,
)


def public_functions():
    for module in pkgutil.iter_modules(alignax.__path__):
        if module.name in OUTSIDE or module.name.startswith("_"):
            continue
        loaded = importlib.import_module(f"alignax.{module.name}")
        for name, value in vars(loaded).items():
            if name.startswith("_") or not inspect.isfunction(value):
                continue
            if value.__module__.startswith(loaded.__name__):
                yield f"{module.name}.{name}", value


# Of compositions, settings and records, not of arrays: tests/test_algorithms.py and
# tests/train have their tests.
OF_VALUES = {
    *(
        f"algorithms.{name}"
        for name in ("followed", "needed", "needs", "partial", "reads_behaviour")
    ),
    "algorithms.pooled",
    "targets.refuse_unmet",
    # Of texts and their tokens, on the host: tests/diagnostics.
    *(f"diagnostics.{name}" for name in ("distinct", "self_bleu")),
    *(f"regularisers.k{n}" for n in ("1_in_reward", "2_in_loss", "3_in_loss")),
}
FUNCTIONS = {
    name: function for name, function in public_functions() if name not in OF_VALUES
}


def is_float(x):
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def close(actual, expected):
    chex.assert_trees_all_close(actual, expected, rtol=2e-5, atol=2e-6)


def scalar_of(row):
    """The sum of every float output, as a function of the differentiated args."""

    def scalar(grad_args, args):
        args = list(args)
        for number, value in zip(row.grad, grad_args, strict=True):
            args[number] = value
        leaves = jax.tree.leaves(row.fn(*args))
        return sum(jnp.sum(leaf) for leaf in leaves if is_float(leaf))

    return scalar


def gradients(row, args):
    return jax.grad(scalar_of(row))([args[i] for i in row.grad], args)


def test_every_public_function_has_a_row():
    missing = set(FUNCTIONS) - {row.name for row in ROWS}
    assert not missing, f"public maths functions without a row: {sorted(missing)}"


@every_row
def test_row_names_a_public_function(row):
    assert row.name in FUNCTIONS


@every_row
def test_documentation(row):
    text = inspect.getdoc(FUNCTIONS[row.name]) or ""
    assert "Args:" in text
    assert "Returns:" in text
    if row.estimator:
        assert "Value:" in text
        assert "Gradient:" in text


@heavy_row
def test_jit_equals_eager_and_traces_once(row):
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(lambda *args: row.fn(*args), n=1))
    expected = row.fn(*row.args)
    close(jitted(*row.args), expected)
    # Other values of the same shapes: a second trace would be an error.
    jitted(*jax.tree.map(lambda x: x[::-1], row.args))


@heavy_row
def test_rows_are_independent(row):
    """The same numbers under vmap, pmap and shard_map on eight devices."""
    if not row.rowwise:
        return
    expected = row.fn(*row.args)
    close(jax.vmap(row.fn)(*row.args), expected)
    close(jax.pmap(row.fn)(*row.args), expected)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    sharded = jax.shard_map(row.fn, mesh=mesh, in_specs=spec, out_specs=spec)
    close(jax.jit(sharded)(*row.args), expected)


@every_row
def test_shard_map_with_its_own_checks(row):
    """Loops start from values that vary by device as what they gather does."""
    if not row.rowwise:
        return
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    sharded = jax.shard_map(row.fn, mesh=mesh, in_specs=spec, out_specs=spec)
    jax.eval_shape(sharded, *row.args)


def narrowings(jaxpr):
    """The library's lines where float64 becomes float32 in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type":
            value = equation.invars[0].aval
            wide = value.dtype == jnp.float64 and not value.weak_type
            if wide and equation.params["new_dtype"] == jnp.float32:
                frames = equation.source_info.traceback.frames
                ours = (f for f in frames if f.file_name.startswith(str(HERE)))
                line = next(ours)
                if Path(line.file_name).is_relative_to(HERE / "alignax"):
                    yield f"{line.file_name}:{line.line_num}"
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from narrowings(inner)


# A draw of float32; states of float32, whose dtype must not change from step to step.
NARROW = {"sampling.inverse_cdf", "controllers"}


@every_row
def test_float64_stays_float64_where_it_is_enabled(row):
    """And float32 arguments do as well there."""
    if {row.name, row.name.split(".")[0]} & NARROW:
        return
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            args = jax.tree.map(
                lambda x, dtype=dtype: x.astype(dtype) if is_float(x) else x, row.args
            )
            program = jax.make_jaxpr(row.fn)(*args)
    assert not sorted(set(narrowings(program.jaxpr)))


@heavy_row
def test_bfloat16_is_computed_in_float32(row):
    args = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if is_float(x) else x, row.args
    )
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32) if is_float(x) else x, args)
    outputs = row.fn(*args)
    for leaf in jax.tree.leaves(outputs):
        assert not is_float(leaf) or leaf.dtype == jnp.float32
    close(outputs, row.fn(*rounded))


@heavy_row
def test_gradient_is_finite(row):
    if row.grad:
        for leaf in jax.tree.leaves(gradients(row, row.args)):
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize("poison", [-np.inf, np.inf, np.nan])
@heavy_row
def test_masked_positions_have_no_influence(row, poison):
    if row.mask is None:
        return
    mask = row.args[row.mask]
    assert mask.any()
    assert not mask.all(), "the sample mask must have both values"
    poisoned = list(row.args)
    for number in row.masked:
        poisoned[number] = jnp.where(mask, poisoned[number], poison)
    close(row.fn(*poisoned), row.fn(*row.args))
    for leaf, number in zip(gradients(row, poisoned), row.grad, strict=True):
        assert np.isfinite(leaf).all()
        if number in row.masked:
            np.testing.assert_array_equal(leaf[~mask], 0)


@heavy_row
def test_all_masked_is_finite(row):
    if row.mask is None:
        return
    args = list(row.args)
    args[row.mask] = jnp.zeros_like(args[row.mask])
    for leaf in jax.tree.leaves((row.fn(*args), gradients(row, args))):
        assert np.isfinite(leaf).all()
