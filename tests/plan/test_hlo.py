"""Work and communication read from programs whose amounts are known."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from alignax import logprobs
from alignax.pipeline import sharding
from alignax.plan import groups, hlo, programs, roofline, work

P = PartitionSpec
MESH = {"replica": 1, "fsdp": 4, "tensor": 2}


def mesh():
    return sharding.make_mesh(fsdp=4, tensor=2, devices=jax.devices()[:8])


def text_of(function, *shapes, **options):
    return jax.jit(function, **options).lower(*shapes).compile().as_text()


def test_collectives_of_a_loop_are_those_that_were_written():
    """Each kind of communication once over each axis, five times in a loop."""

    def body(x, _):
        x = x + jax.lax.psum(x, "tensor")
        x = x + jax.lax.psum_scatter(
            jax.lax.all_gather(x, "fsdp", tiled=True), "fsdp", tiled=True
        )
        x = jax.lax.all_to_all(x, "tensor", 0, 0, tiled=True)
        x = jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])
        return jnp.sin(x), None

    @functools.partial(
        jax.shard_map, mesh=mesh(), in_specs=P(), out_specs=P(), check_vma=False
    )
    def run(x):
        x = jax.lax.scan(body, x, length=5)[0]
        return jax.lax.pmax(x, ("fsdp", "tensor"))

    module = hlo.parse(text_of(run, jax.ShapeDtypeStruct((6, 8), jnp.float32)))
    assert module.open_loops == 0
    size = 4 * 6 * 8
    found = sorted(hlo.collectives(module, MESH))
    assert found == sorted(
        [
            hlo.Collective("all-reduce", ("tensor",), 2, size, 5),
            hlo.Collective("all-gather", ("fsdp",), 4, 4 * size, 5),
            hlo.Collective("reduce-scatter", ("fsdp",), 4, 4 * size, 5),
            hlo.Collective("all-to-all", ("tensor",), 2, size, 5),
            hlo.Collective("collective-permute", ("fsdp",), 4, size, 5),
            hlo.Collective("all-reduce", ("fsdp", "tensor"), 8, size, 1),
        ]
    )
    received = {(x.op, x.axes): x.received for x in found}
    assert received["all-gather", ("fsdp",)] == 5 * 3 * size
    assert received["all-reduce", ("tensor",)] == 5 * size
    assert received["collective-permute", ("fsdp",)] == 5 * size


def log_prob_text(where, *, rows, width, tokens, gradient):
    """The program of the log-probabilities whose head is split over ``tensor``."""
    shape = (rows,) if tokens == 1 else (rows, tokens)

    def local(hidden, head, picked):
        stats = logprobs.from_hidden(
            hidden, head, picked, axis_name="tensor", block_size=8
        )
        return stats.logp, stats.entropy

    split = jax.shard_map(
        local, mesh=where, in_specs=(P(), P("tensor"), P()), out_specs=P()
    )

    def loss(hidden, head, picked):
        logp, entropy = split(hidden, head, picked)
        return jnp.sum(logp) + 0.1 * jnp.sum(entropy)

    # With the value, or the compiler leaves out what the gradient does not read.
    run = jax.value_and_grad(loss, argnums=(0, 1)) if gradient else split

    def laid(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(where, spec))

    given = (
        laid((rows, width), jnp.float32, P()),
        laid((64, width), jnp.float32, P("tensor")),
        laid(shape, jnp.int32, P()),
    )
    places = [x.sharding for x in given]
    out = {"out_shardings": (places[0], (places[0], places[1]))} if gradient else {}
    return text_of(run, *given, **out)


@pytest.mark.parametrize(("tokens", "gradient"), [(1, False), (3, False), (1, True)])
def test_the_split_log_probs_send_what_the_formula_says(tokens, gradient):
    text = log_prob_text(mesh(), rows=24, width=16, tokens=tokens, gradient=gradient)
    found = programs.cost_of(text, MESH).collectives
    expected = roofline.log_prob_bytes(
        rows=24, width=16, devices=2, tokens=tokens, gradient=gradient
    )
    assert {(x.op, x.axes) for x in found} == {("all-reduce", ("tensor",))}
    assert sum(x.payload * x.runs for x in found) == expected["payload"]
    assert sum(x.received for x in found) == expected["received"]


@pytest.mark.slow
def test_a_tpus_program_sends_the_same():
    """The same count from the TPU compiler's text, in a process without the flags of
    the tests' own compiler."""
    pytest.importorskip("libtpu")
    code = """
from alignax.pipeline import sharding
from alignax.plan import hardware
from tests.plan.test_hlo import log_prob_text
devices = hardware.topology("v5e:2x4").devices
where = sharding.make_mesh(fsdp=4, tensor=2, devices=devices)
print(log_prob_text(where, rows=256, width=128, tokens=1, gradient=True))
"""
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    # Nothing here has a TPU that two processes could ask for.
    kept |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    kept["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = programs.cost_of(done.stdout, MESH).collectives
    expected = roofline.log_prob_bytes(rows=256, width=128, devices=2, gradient=True)
    assert {(x.op, x.axes) for x in found} == {("all-reduce", ("tensor",))}
    assert sum(x.payload * x.runs for x in found) == expected["payload"]


def test_groups_in_the_three_forms_of_the_text():
    ids = np.arange(8).reshape(1, 4, 2)
    over = {"fsdp": ids[0].T.tolist(), "tensor": ids[0].tolist()}
    forms = {
        "replica_groups={{0,2,4,6},{1,3,5,7}}": "fsdp",
        "replica_groups=[2,4]<=[4,2]T(1,0)": "fsdp",
        "replica_groups=mesh['a'=4,'b'=2] {'a'}": "fsdp",
        "replica_groups={{0,1},{2,3},{4,5},{6,7}}": "tensor",
        "replica_groups=[4,2]<=[8]": "tensor",
        "replica_groups=mesh['a'=4,'b'=2] {'b'}": "tensor",
    }
    for text, axis in forms.items():
        assert groups.groups_of(text) == over[axis], text
        assert groups.axes_of(text, MESH) == ((axis,), MESH[axis])
    assert groups.axes_of("replica_groups={}", MESH) == (("fsdp", "tensor"), 8)
    assert groups.axes_of("replica_groups=[8,1]<=[8]", MESH) == ((), 1)
    pairs = "source_target_pairs={{0,1},{2,3}}"
    assert groups.axes_of(pairs, MESH) == (("tensor",), 2)


def test_products_of_a_loop_count_as_often_as_they_run():
    layers, rows, width = 40, 4, 32
    stacked = jax.ShapeDtypeStruct((layers, width, width), jnp.float32)
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32)

    def run(x, stacked):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stacked)[0]

    module = hlo.parse(text_of(run, x, stacked))
    once = 2 * rows * width * width
    assert work.flops(module) == layers * once
    # A round reads its own layer, not all of them.
    weights = 4 * layers * width * width
    assert weights <= work.traffic(module) < 8 * weights

    def straight(x, w):
        return x @ w @ w

    done = jax.jit(straight).lower(x, jax.ShapeDtypeStruct((width, width), jnp.float32))
    done = done.compile()
    assert work.flops(hlo.parse(done.as_text())) == done.cost_analysis()["flops"]


TPU = """HloModule m

ENTRY %main (a: bf16[16,512,64,1], b: bf16[8,128,64,1]) -> bf16[16,512,8,128] {
  %a = bf16[16,512,64,1]{2,1,0,3} parameter(0)
  %b = bf16[8,128,64,1]{1,2,0,3:T(8,128)S(1)} parameter(1)
  %g.1 = bf16[64,512]{1,0} all-gather(%a), replica_groups=[2,4]<=[4,2]T(1,0), \
frontend_attributes={chain_id="3"}
  %g.2 = bf16[64,512]{1,0} all-gather(%a), replica_groups=[2,4]<=[4,2]T(1,0), \
frontend_attributes={chain_id="3"}
  ROOT %c = bf16[16,512,8,128]{3,1,2,0} convolution(%a, %b), window={size=1x8 \
pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f
}
"""


def test_a_tpus_product_is_a_convolution_and_its_gather_is_written_twice():
    module = hlo.parse(TPU)
    # [16·512, 64] by [64, 8·128].
    assert work.flops(module) == 2 * (16 * 512) * 64 * (8 * 128)
    [gather] = hlo.collectives(module, MESH)
    assert (gather.op, gather.axes) == ("all-gather", ("fsdp",))
    assert gather.payload == 2 * 64 * 512
    # What lies on the chip is no traffic.
    arrays = module.computations["main"]
    assert arrays["b"].out[0].hbm == 0 < arrays["b"].out[0].bytes


PASSED = """HloModule m

%async_collective_fusion.1 (p: f32[4,64], q: f32[16,64], x: f32[8,8]) -> \
(f32[8,8], f32[4,64], f32[16,64]) {
  %p = f32[4,64]{1,0} parameter(0)
  %q = f32[16,64]{1,0} parameter(1)
  %x = f32[8,8]{1,0} parameter(2)
  %g = f32[16,64]{1,0} all-gather(%p), replica_groups=[2,4]<=[4,2]T(1,0), \
frontend_attributes={chain_id="7"}
  %y = f32[8,8]{1,0} tanh(%x)
  ROOT %t = (f32[8,8]{1,0}, f32[4,64]{1,0}, f32[16,64]{1,0}) tuple(%y, %p, %g)
}

ENTRY %main (a: f32[4,64], b: f32[16,64], c: f32[8,8]) -> f32[8,8] {
  %a = f32[4,64]{1,0} parameter(0)
  %b = f32[16,64]{1,0} parameter(1)
  %c = f32[8,8]{1,0} parameter(2)
  %f = (f32[8,8]{1,0}, f32[4,64]{1,0}, f32[16,64]{1,0}) fusion(%a, %b, %c), \
kind=kCustom, calls=%async_collective_fusion.1
  %s = f32[8,8]{1,0} get-tuple-element(%f), index=0
  %d = (f32[8,8]{1,0}, f32[4,64]{1,0}, f32[16,64]{1,0}) fusion(%a, %b, %s), \
kind=kCustom, calls=%async_collective_fusion.1
  ROOT %r = f32[8,8]{1,0} get-tuple-element(%d), index=0
}
"""


def test_a_gather_beside_other_work_is_no_traffic_of_each_kernel():
    module = hlo.parse(PASSED)
    # Two kernels read and write 8 × 8 numbers; the gather's shard and its result are
    # touched as often as the gather is run.
    own, gather = 4 * 2 * 64, 4 * (4 * 64 + 16 * 64)
    assert work.traffic(module) == 2 * own + 2 * gather


SLICED = """HloModule m

ENTRY %main (a: bf16[64,32]) -> bf16[16,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  %s = ((bf16[64,32]{1,0}), bf16[16,32]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a)
  ROOT %d = bf16[16,32]{1,0:S(1)} slice-done(%s)
}
"""


def test_a_slice_fetched_onto_the_chip_is_read_once():
    assert work.traffic(hlo.parse(SLICED)) == 2 * 16 * 32


LOOP = """HloModule m

%condition (p: (s32[], f32[8,8])) -> pred[] {
  %n = s32[] constant(9)
  %p = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%body (q: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %q = (s32[], f32[8,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %k = s32[] copy(%j)
  %two = s32[] constant(2)
  %l = s32[] add(%k, %two)
  %x = f32[8,8]{1,0} get-tuple-element(%q), index=1
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %r = (s32[], f32[8,8]{1,0}) tuple(%l, %y)
}

ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %one = s32[] constant(1)
  %start = s32[] copy(%one)
  %t = (s32[], f32[8,8]{1,0}) tuple(%start, %a)
  %w = (s32[], f32[8,8]{1,0}) while(%t), condition=%condition, body=%body
  ROOT %o = f32[8,8]{1,0} get-tuple-element(%w), index=1
}
"""


def test_a_loop_that_counts_by_two():
    """From 1 to below 9: four rounds. Where the condition asks for more than a count,
    the rounds are the caller's to say."""
    module = hlo.parse(LOOP)
    assert (module.runs["body"], module.open_loops) == (4, 0)
    assert work.flops(module) == 4 * 2 * 8 * 8 * 8
    other = hlo.parse(LOOP.replace("direction=LT", "direction=NE"), loops=6)
    assert (other.runs["body"], other.open_loops) == (6, 1)
