import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from alignax.pipeline import sharding
from alignax.types import InputError


def test_mesh_is_auto_and_fills_the_devices():
    mesh = sharding.make_mesh(tensor=2)
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 4, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("sizes", [{"tensor": 3, "fsdp": 3}, {"fsdp": 16}, {"fsdp": 0}])
def test_mesh_that_does_not_fit(sizes):
    with pytest.raises(InputError, match="8 devices"):
        sharding.make_mesh(**sizes)


def test_parameter_rules():
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    params = {
        "embedding": jnp.zeros((10, 8)),
        "odd": jnp.zeros((7, 8)),
        "twice": jnp.zeros((2, 4)),
        "scale": jnp.zeros((8,)),
        "scalar": jnp.zeros(()),
    }
    axes = {
        "embedding": ("vocab", "embed"),
        "odd": ("vocab", "embed"),
        "twice": ("mlp", "heads"),
        "scale": (None,),
        "scalar": (),
    }
    specs = jax.tree.map(lambda s: s.spec, sharding.param_shardings(params, axes, mesh))
    assert specs == {
        "embedding": P("tensor", "fsdp"),
        "odd": P(None, "fsdp"),
        "twice": P("tensor", None),
        "scale": P(None),
        "scalar": P(),
    }


def test_rows_are_split():
    mesh = sharding.make_mesh(fsdp=8)
    batch = sharding.shard_rows({"x": np.arange(16.0)}, mesh)
    assert batch["x"].sharding.spec == P(("replica", "fsdp"))
    assert batch["x"].addressable_shards[3].data.tolist() == [6.0, 7.0]


def test_rows_stay_where_their_batch_is():
    """Behind a lookup in a matrix whose columns are split over the rows' axis; without
    a mesh in sight, or with rows that do not divide, nothing changes."""
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    table = jax.ShapeDtypeStruct(
        (6, 8), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp"))
    )

    def place(rows, context):
        index = sharding.put(jax.ShapeDtypeStruct((rows,), jnp.int32), split(rows))

        def run(table, index):
            with context:
                return sharding.rows_apart(table[index])

        return jax.jit(run).lower(table, index).compile().output_shardings

    def split(rows):
        return sharding.rows(mesh) if rows % 4 == 0 else sharding.replicated(mesh)

    apart = place(8, sharding.in_sight(mesh))
    assert apart.shard_shape((8, 8)) == (2, 8)
    assert place(8, sharding.in_sight(None)).shard_shape((8, 8)) != (2, 8)
    assert place(6, sharding.in_sight(mesh)).shard_shape((6, 8))[0] == 6
