"""Plans of a tiny run by the command line, and the numbers that they are made of."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from alignax import cli
from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.pipeline import sharding
from alignax.plan import hardware, models, programs, report, roofline, text
from alignax.plan.hlo import Collective
from alignax.train.options import RL
from alignax.types import InputError

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}
OPTIONS = (
    "--prompts 4 --completions 2 --microbatches 1 --prompt-length 3 --max-tokens 3"
)


@pytest.mark.slow
def test_a_plan_by_the_command_line(tmp_path, capsys):
    """What it says of the state is the sum of the shapes; a device that is too small
    ends it with 1 and with advice."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    begin = f"plan --model {tmp_path} --topology cpu:8 --mesh.tensor 2 {OPTIONS}"
    path = tmp_path / "plan.json"
    cli.main([*begin.split(), "--json", str(path)])
    assert "it fits" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["mesh"] == {"replica": 1, "fsdp": 4, "tensor": 2}
    # Each matrix is split by both axes; the norms' scales are whole.
    matrices = 64 * 16 + 4 * 16 * 16 + 3 * 16 * 32
    scales = 3 * 16
    parameters = 4 * (matrices // 8 + scales)
    state = found["state"]
    assert state["parameters"] == state["reference"] == parameters
    assert state["optimiser"] == 2 * parameters + 8
    step, sample = found["programs"]["step"], found["programs"]["sample"]
    assert step["memory"]["arguments"] > sum(state.values())
    assert sample["memory"]["arguments"] > 2 * parameters
    for row in (step, sample):
        kept = {k: v for k, v in row["memory"].items() if k != "total"}
        assert row["memory"]["total"] == sum(kept.values())
    # Two of three tokens are decoded by the loop, which is left open.
    decode = found["programs"]["decode"]
    assert 0 < 2 * decode["flops"] < sample["flops"]
    both = [found["programs"][x]["times"]["compute"] for x in ("sample", "step")]
    assert found["iteration"]["compute"] == pytest.approx(sum(both))

    with pytest.raises(SystemExit) as end:
        cli.main([*begin.split(), "--hbm", "1e-6"])
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert "it does not fit" in said
    assert "--lora.rank" in said
    assert "large:" in said


def test_arguments_are_the_sums_of_their_shards():
    mesh = sharding.make_mesh(fsdp=4, tensor=2, devices=jax.devices()[:8])
    split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    given = (
        jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=sharding.replicated(mesh)),
    )
    assert programs.device_bytes(given) == 4 * 8 * 6 / 8 + 2 * 5
    found = programs.compiled(jax.jit(lambda x, y: (x * 2, y + 1)).lower(*given))
    assert found.memory["arguments"] == programs.device_bytes(given)
    assert found.refused is None


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Of the folders' safetensors.
        ("SmolLM2-135M", 134_515_008),
        ("Qwen2.5-0.5B", 494_032_768),
        ("Qwen3-8B", 8_190_735_360),
        ("Llama-3.1-70B", 70_553_706_496),
    ],
)
def test_named_models_have_their_published_number_of_parameters(name, count):
    shapes = functional.shapes(models.shape_of(name))
    assert functional.count_parameters(shapes) == count


def test_times_are_the_makers_rates():
    chip, mesh = hardware.CHIPS["h100"], {"replica": 2, "fsdp": 4, "tensor": 2}
    inside = Collective("all-gather", ("fsdp",), 4, 4e9, 3)
    across = Collective("all-reduce", ("replica",), 2, 1e9, 1)
    cost = programs.Cost(989e12, 6.7e12, (inside, across))
    found = roofline.times(cost, chip, mesh)
    assert found.compute == pytest.approx(1)
    assert found.memory == pytest.approx(2)
    # Three gathers of 3e9 bytes by NVLink; a reduction of 1e9 by the network.
    assert found.network == pytest.approx(9e9 / 450e9 + 1e9 / 50e9)
    assert (found.least, found.bound) == (found.memory, "memory")
    assert found.most == pytest.approx(3 + found.network)
    rows = roofline.by_axis(cost)
    assert list(rows) == [("all-gather", "fsdp"), ("all-reduce", "replica")]
    assert rows["all-gather", "fsdp"]["payload"] == 12e9
    twice = programs.Cost(2 * 989e12, 0.0, (inside._replace(runs=5), across))
    more = twice.less(cost)
    assert more.collectives == (inside._replace(runs=2),)


def run_of(**options):
    config = DecoderConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=1,
        num_heads=8,
        num_kv_heads=4,
        head_dim=4,
        mlp_size=32,
        max_length=64,
    )
    rl = RL(method="grpo", prompts=16, completions=2, microbatches=2, warmup=0)
    return report.Run(config=config, rl=rl, prompt_length=4, max_tokens=4, **options)


def test_expected_arrays_of_a_refused_program():
    """Those that the TPU compiler made of Qwen3-8B on v5e:4x8, bytes and shapes."""
    run = report.Run(
        config=models.shape_of("Qwen3-8B"),
        rl=RL(method="grpo", prompts=64, completions=8, microbatches=4),
        prompt_length=512,
        max_tokens=1024,
    )
    lowered = programs.Lowered(None, None, {"parameters": 4.0 * 2**28})
    mesh = {"replica": 1, "fsdp": 8, "tensor": 4}
    inputs, gradient, scores = report.expected(run, lowered, mesh, "step")
    assert inputs["type"] == "bf16[36, 16, 1023, 4096]"
    assert inputs["bytes"] == 2 * 36 * 16 * 1023 * 4096
    assert gradient["bytes"] == 4 * 2**28
    # The compiler's f32[16,2,4092,1023] is of as many numbers.
    assert scores["bytes"] == 4 * 16 * 2 * 4092 * 1023
    found = report.expected(run, lowered, mesh, "sample")
    sizes = {x["from"]: x["bytes"] for x in found}
    assert sizes["the completions' cache"] == 2 * 36 * 2 * 64 * 2 * 1023 * 128


def test_meshes_split_prompts_and_heads():
    topology = hardware.topology("cpu:8")
    found = report.meshes(run_of(), topology)
    for mesh in found:
        assert math.prod(mesh.values()) == 8
        assert 4 % mesh["tensor"] == 0
        assert 8 % (mesh["replica"] * mesh["fsdp"]) == 0
    assert {"replica": 1, "fsdp": 8, "tensor": 1} in found
    assert {"replica": 2, "fsdp": 2, "tensor": 2} in found
    assert not any(mesh["tensor"] == 8 for mesh in found)


def test_a_search_ranks_what_fits_by_its_time(monkeypatch, capsys):
    from alignax.cli import plan as command

    topology = hardware.topology("cpu:8")

    def planned(run, topology, mesh, tell):
        sizes = dict(mesh.shape)
        total = 10.0 * sizes["tensor"]
        row = {"memory": {"total": total}}
        time = {"least": sizes["replica"] + 1 / sizes["fsdp"], "most": 9.0}
        fits = sizes["tensor"] < 4
        return {
            "mesh": sizes,
            "fits": fits,
            "programs": {"sample": row, "step": row},
            "iteration": time,
        }

    monkeypatch.setattr(report, "plan", planned)
    found = command.searched(run_of(), topology)
    assert found[0]["mesh"] == {"replica": 1, "fsdp": 8, "tensor": 1}
    assert not found[-1]["fits"]
    table = text.ranking(found).splitlines()
    assert len(table) == len(found) + 1
    assert "fsdp 8" in table[1]


def test_refusals_say_what_would_do(monkeypatch):
    for name in ("v5e", "v9:2x2", "cpu:0", "cpu:2y4"):
        with pytest.raises(InputError, match="topology"):
            hardware.topology(name)
    with pytest.raises(InputError, match="virtual devices"):
        hardware.topology("h100:64x8")
    with pytest.raises(InputError, match=r"SmolLM2-135M.*got 'nothing'"):
        models.shape_of("nothing")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"alignax\[plan\]"):
        hardware.topology("v5e:2x4")
    said = "RESOURCE_EXHAUSTED: the total memory (1.50G) exceeds available HBM (15.75G)"
    assert programs.refused_bytes(said) == 1.5 * 2**30


def test_notes_and_advice_name_the_options():
    run, topology = run_of(), hardware.topology("cpu:8")
    mesh = {"replica": 1, "fsdp": 3, "tensor": 3}
    said = " ".join(report.notes(run, topology, mesh))
    assert "do not split over 3 devices" in said
    assert "num_heads = 8" in said
    state = {"parameters": 30.0, "optimiser": 60.0}
    lowered = programs.Lowered(None, None, state)
    found = {
        "mesh": {"replica": 2, "fsdp": 2, "tensor": 1},
        "hbm": 50.0,
        "devices": 4,
        "programs": {"sample": {"fits": True}, "step": {"fits": False}},
    }
    said = " ".join(report.advice(run, lowered, found))
    assert "--mesh.fsdp 4 --mesh.replica 1" in said
    assert "about 12 such devices" in said
    found |= {"hbm": 5000.0}
    said = " ".join(report.advice(run, lowered, found))
    assert "--microbatches 4" in said
