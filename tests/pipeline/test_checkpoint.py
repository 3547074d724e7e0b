import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alignax import controllers
from alignax.pipeline import checkpoint
from alignax.types import Counters, InputError, TrainState

CONFIG = {"layers": 2, "embed": 4, "names": ["a"], "tie": None, "nested": {"rate": 0.0}}


class Moving(NamedTuple):
    beta: jax.Array
    reference: dict


def make_state(seed=0, *, impl=None):
    """Every sort of leaf there is: bfloat16, lists, integers, scalars, typed keys."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embed": jax.random.normal(keys[0], (8, 4)),
        "layers": [{"w": jax.random.normal(k, (4, 4), jnp.bfloat16)} for k in keys[1:]],
        "scale": jnp.float32(0.1) * (seed + 1),
    }
    return TrainState(
        step=jnp.int32(seed),
        params=params,
        opt_state=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(lambda n: 1e-3 * n)
        ).init(params),
        controller=Moving(
            beta=controllers.fixed(beta=0.1).init().beta,
            reference={"params": params["embed"] * jnp.inf},
        ),
        counters=Counters(
            skipped=jnp.int32(seed), skipped_in_row=jnp.int32(0), no_signal=jnp.int32(1)
        ),
        key=jax.random.key(7 + seed, impl=impl),
    )


def bits(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.map(bits, a) == jax.tree.map(bits, b)


def save_steps(folder, *steps, keep=2):
    with checkpoint.open_run(folder, keep=keep) as run:
        for step in steps:
            data_state = {"next_index": 3 * step}
            state = make_state(step)
            checkpoint.save(run, step, state, data_state=data_state, config=CONFIG)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    save_steps(folder, 1, 2, 3)
    return folder


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_round_trip_is_bit_for_bit(tmp_path, impl, abstract):
    state = make_state(4, impl=impl)
    data_state = {"next_index": 12, "epochs": [1, 2], "inner": {"done": False}}
    with checkpoint.open_run(tmp_path) as run:
        checkpoint.save(run, 4, state, data_state=data_state, config=CONFIG)
    like = make_state(0, impl=impl)
    like = jax.eval_shape(lambda: like) if abstract else like
    with checkpoint.open_run(tmp_path) as run:
        assert checkpoint.latest_step(run) == 4
        restored, restored_data = checkpoint.restore(run, like, config=CONFIG)
    assert_same_bits(restored, state)
    assert restored_data == data_state
    draws = [jax.random.normal(s.key, (3,)) for s in (state, restored)]
    np.testing.assert_array_equal(*draws)


def test_restores_onto_another_mesh(saved, tmp_path):
    def place(state, mesh, *axes):
        def sharding(leaf):
            split = axes if leaf.ndim == 2 else ()
            return NamedSharding(mesh, PartitionSpec(*split))

        return jax.tree.map(sharding, state)

    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    other = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    state = make_state(5)
    with checkpoint.open_run(tmp_path) as run:
        split = jax.device_put(state, place(state, mesh, "data", "model"))
        checkpoint.save(run, 5, split, data_state={}, config=CONFIG)
    target = place(state, other, "model", None)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(lambda: state),
        target,
    )
    with checkpoint.open_run(tmp_path) as run:
        restored, _ = checkpoint.restore(run, like, config=CONFIG)
    assert_same_bits(restored, state)
    assert restored.params["embed"].sharding == target.params["embed"]
    assert restored.params["embed"].addressable_shards[0].data.shape == (4, 4)
    # From one device, onto a mesh.
    with checkpoint.open_run(saved) as run:
        restored, _ = checkpoint.restore(run, like, config=CONFIG)
    assert_same_bits(restored, make_state(3))
    assert jax.tree.map(lambda x: x.sharding, restored) == target


def test_the_next_step_may_donate_what_is_being_saved(tmp_path):
    state = {"w": jnp.arange(200_000.0)}
    expected = np.asarray(state["w"]).copy()
    step = jax.jit(lambda p: jax.tree.map(lambda x: x * 0 - 1, p), donate_argnums=0)
    whole = dataclasses.replace(make_state(), params=state)
    with checkpoint.open_run(tmp_path) as run:
        checkpoint.save(run, 0, whole, data_state={}, config=CONFIG)
        jax.block_until_ready(step(state))
    like = dataclasses.replace(make_state(), params={"w": jnp.zeros(200_000)})
    with checkpoint.open_run(tmp_path) as run:
        restored, _ = checkpoint.restore(run, like, config=CONFIG)
    np.testing.assert_array_equal(restored.params["w"], expected)


def test_keeps_the_latest_and_restores_any_of_them(saved):
    with checkpoint.open_run(saved) as run:
        assert checkpoint.latest_step(run) == 3
        for step in (2, 3):
            state, data = checkpoint.restore(
                run, make_state(), config=CONFIG, step=step
            )
            assert data == {"next_index": 3 * step}
            assert_same_bits(state, make_state(step))
        with pytest.raises(InputError, match=r"step must be one of .*\[2, 3\].*got 1"):
            checkpoint.restore(run, make_state(), config=CONFIG, step=1)


def test_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_steps("runs/x", 1)
    assert (tmp_path / "runs/x/1").is_dir()
    with checkpoint.open_run("runs/x") as run:
        assert checkpoint.latest_step(run) == 1
    checkpoint.save_model("runs/model", {"embed": 4}, {"w": jnp.ones(2)})
    assert checkpoint.load_model("runs/model")[0] == {"embed": 4}


def test_empty_folder(tmp_path):
    with checkpoint.open_run(tmp_path / "new") as run:
        assert checkpoint.latest_step(run) is None
        with pytest.raises(InputError, match="has none; give the folder of a run"):
            checkpoint.restore(run, make_state(), config=CONFIG)
    with pytest.raises(InputError, match=r"keep must be at least 1 .* got 0"):
        checkpoint.open_run(tmp_path, keep=0)


def test_a_step_that_is_saved_stays_and_an_earlier_one_is_refused(tmp_path):
    save_steps(tmp_path, 2)
    with checkpoint.open_run(tmp_path) as run:
        checkpoint.save(run, 2, make_state(9), data_state={}, config=CONFIG)
        restored, _ = checkpoint.restore(run, make_state(), config=CONFIG)
        assert_same_bits(restored, make_state(2))
        with pytest.raises(InputError, match=r"step 2, got 1; use another folder"):
            checkpoint.save(run, 1, make_state(1), data_state={}, config=CONFIG)


@pytest.mark.parametrize(
    ("change", "name", "old", "new"),
    [
        ({"layers": 3}, "layers", "2", "3"),
        ({"nested": {"rate": 0.5}}, "nested.rate", "0.0", "0.5"),
        ({"names": ["a", "b"]}, "names.1", "nothing", "'b'"),
        ({"names": []}, "names", "nothing", r"\[\]"),
        ({"tie": True}, "tie", "None", "True"),
        ({"extra": 1}, "extra", "nothing", "1"),
    ],
)
def test_another_architecture(saved, change, name, old, new):
    with (
        checkpoint.open_run(saved) as run,
        pytest.raises(InputError, match=rf"config\.{name} .*with {old}, got {new};"),
    ):
        checkpoint.restore(run, make_state(), config={**CONFIG, **change})


def test_equal_numbers_and_sequences_are_the_same_architecture(saved):
    config = {**CONFIG, "names": ("a",), "layers": 2.0, "nested": {"rate": 0}}
    with checkpoint.open_run(saved) as run:
        checkpoint.restore(run, make_state(), config=config)


def test_another_optimiser_or_type(saved):
    def restore(**changes):
        with checkpoint.open_run(saved) as run:
            like = dataclasses.replace(make_state(), **changes)
            checkpoint.restore(run, like, config=CONFIG)

    params = make_state().params
    with pytest.raises(InputError, match=r"state\.opt_state\.\S+ .* got nothing"):
        restore(opt_state=optax.sgd(0.1).init(params))
    wide = {**params, "embed": jnp.zeros((8, 5))}
    with pytest.raises(InputError, match=r"embed .*float32\[8, 4\], got float32\[8, 5"):
        restore(params=wide)
    half = {**params, "embed": jnp.zeros((8, 4), jnp.bfloat16)}
    with pytest.raises(InputError, match=r"embed .*float32.*got bfloat16"):
        restore(params=half)
    with pytest.raises(InputError, match=r"state\.key .*uint32\[2\], got uint32\[4\]"):
        restore(key=jax.random.key(0, impl="rbg"))


def test_config_that_json_cannot_hold(tmp_path):
    with (
        checkpoint.open_run(tmp_path) as run,
        pytest.raises(InputError, match="config must hold strings"),
    ):
        checkpoint.save(run, 1, make_state(), data_state={}, config={"f": object()})


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    save_steps(tmp_path, 1, 2)
    complete = (tmp_path / "2").rename(tmp_path / "3.orbax-checkpoint-tmp")
    (complete / "_CHECKPOINT_METADATA").write_text("{")
    with checkpoint.open_run(tmp_path) as run:
        assert checkpoint.latest_step(run) == 1
        restored, _ = checkpoint.restore(run, make_state(), config=CONFIG)
        assert_same_bits(restored, make_state(1))
        checkpoint.save(run, 3, make_state(3), data_state={}, config=CONFIG)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]


def test_saves_leave_no_thread_and_no_descriptor_behind(tmp_path):
    def held():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with checkpoint.open_run(tmp_path) as run:
        for step in range(24):
            if step == 4:
                run.wait()
                before = held()
            state = make_state(step)
            checkpoint.save(run, step, state, data_state={}, config=CONFIG)
        run.wait()
        assert np.subtract(held(), before).max() < 3


# The whole of what a run prints where the disk is full from the second save on.
FULL = """
import resource, signal
from alignax import cli
from alignax.pipeline import checkpoint
from tests.pipeline.test_checkpoint import CONFIG, make_state
import dataclasses, jax

@dataclasses.dataclass
class Config:
    folder: str

def save(run, step, size):
    params = {"w": jax.random.normal(jax.random.key(step), (size, 100))}
    state = dataclasses.replace(make_state(step), params=params)
    checkpoint.save(run, step, state, data_state={}, config=CONFIG)

def main(config):
    with checkpoint.open_run(config.folder) as run:
        save(run, 1, 10)
        run.wait()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        save(run, 2, 1000)
        save(run, 3, 10)

cli.run(main, Config)
"""


def test_what_keeps_a_save_from_the_disk_is_a_paragraph(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert last.startswith(f"error: a checkpoint could not be written to {tmp_path}: ")
    assert last.endswith("go on with --resume from the one before, of step 1")
    with checkpoint.open_run(tmp_path) as run:
        assert checkpoint.latest_step(run) == 1


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def garbage(path):
    path.write_bytes(b"\xff" * path.stat().st_size)


# A damage, the files it is done to, and what is said of it.
DAMAGES = [
    (cut, "state/ocdbt.process_0/d/*", r"ocdbt.process_0/d/\w+ has \d+ bytes of \d+"),
    (flip, "state/ocdbt.process_0/d/*", r"d/\w+ is not what was saved: its CRC-32"),
    (Path.unlink, "state/d/*", r"state/d/\w+ is missing"),
    (Path.unlink, "state/_METADATA", "state/_METADATA is missing"),
    (garbage, "state/_METADATA", "state/_METADATA is not what was saved"),
    (Path.unlink, "state/manifest.ocdbt", "state/manifest.ocdbt is missing"),
    (garbage, "_CHECKPOINT_METADATA", "_CHECKPOINT_METADATA is not JSON"),
    (Path.unlink, "_CHECKPOINT_METADATA", "_CHECKPOINT_METADATA is missing"),
    (cut, "seal.json", "seal.json is not JSON"),
    (shutil.rmtree, "state", "state/_METADATA is missing"),
]


@pytest.mark.parametrize(("damage", "where", "said"), DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    saved, tmp_path, capfd, damage, where, said
):
    run_folder = tmp_path / "run"
    shutil.copytree(saved, run_folder)
    for path in list((run_folder / "3").glob(where)):
        damage(path)
    with checkpoint.open_run(run_folder) as run:
        warning = capfd.readouterr().err
        assert re.search(
            rf"warning: .*step 3: .*{said}.* whole one is of step 2", warning
        )
        assert checkpoint.latest_step(run) == 2
        state, data_state = checkpoint.restore(run, make_state(), config=CONFIG)
        assert_same_bits(state, make_state(2))
        assert data_state == {"next_index": 6}
        # The run goes on, through the step that was damaged.
        checkpoint.save(run, 3, make_state(3), data_state={}, config=CONFIG)
    with checkpoint.open_run(run_folder) as run:
        assert not capfd.readouterr().err
        state, _ = checkpoint.restore(run, make_state(), config=CONFIG)
        assert_same_bits(state, make_state(3))
    assert sorted(p.name for p in run_folder.iterdir()) == ["2", "3", "3.damaged"]


def test_an_empty_folder_among_the_checkpoints(saved, tmp_path, capfd):
    run_folder = tmp_path / "run"
    shutil.copytree(saved, run_folder)
    for name in ("99", "1", "99.damaged"):
        (run_folder / name).mkdir()
    with checkpoint.open_run(run_folder) as run:
        restored, _ = checkpoint.restore(run, make_state(), config=CONFIG)
        assert_same_bits(restored, make_state(3))
    warning = capfd.readouterr().err
    assert "step 99: _CHECKPOINT_METADATA is missing; step 1: " in warning
    names = sorted(p.name for p in run_folder.iterdir())
    assert names == ["1.damaged", "2", "3", "99.damaged", "99.damaged2"]


def test_without_a_whole_checkpoint_nothing_is_moved_and_nothing_starts_anew(tmp_path):
    save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        cut(tmp_path / str(step) / "state/_METADATA")
    with pytest.raises(InputError, match=r"are damaged \(step 2: .*_METADATA has .*1"):
        checkpoint.open_run(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_damage_without_a_seal_and_of_an_older_step_is_named(tmp_path):
    """Killed before its seal, a checkpoint counts; what is damaged then is said."""
    save_steps(tmp_path, 1, 2)
    cut(tmp_path / "1" / "state/_METADATA")
    (tmp_path / "2" / "seal.json").unlink()
    with checkpoint.open_run(tmp_path) as run:
        with pytest.raises(InputError, match=r"step 1 .* is damaged: state/_METADATA"):
            checkpoint.restore(run, make_state(), config=CONFIG, step=1)
        restored, _ = checkpoint.restore(run, make_state(), config=CONFIG)
        assert_same_bits(restored, make_state(2))
    (tmp_path / "2" / "state/_METADATA").unlink()
    with (
        checkpoint.open_run(tmp_path) as run,
        pytest.raises(InputError, match=r"step 2 .* is damaged: its arrays cannot"),
    ):
        checkpoint.restore(run, make_state(), config=CONFIG)


# Stops at the moment a checkpoint would become complete, for the parent to kill.
KILLED = """
import os, sys, time
from alignax.pipeline import checkpoint
from tests.pipeline.test_checkpoint import CONFIG, make_state

folder = sys.argv[1]

def stop(name):
    original = getattr(os, name)
    def stopped(source, target, *args, **kwargs):
        if armed and os.path.basename(str(target)) == "2":
            print("saving", flush=True)
            time.sleep(60)
        return original(source, target, *args, **kwargs)
    setattr(os, name, stopped)

armed = False
for name in ("rename", "replace"):
    stop(name)
with checkpoint.open_run(folder) as run:
    checkpoint.save(run, 1, make_state(1), data_state={"next_index": 3}, config=CONFIG)
with checkpoint.open_run(folder) as run:
    armed = True
    checkpoint.save(run, 2, make_state(2), data_state={}, config=CONFIG)
"""


def test_a_run_killed_while_saving_goes_on_from_the_one_before(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGKILL)
    left = [p.name for p in tmp_path.iterdir()]
    assert "2" not in left
    assert len(left) == 2
    with checkpoint.open_run(tmp_path) as run:
        assert checkpoint.latest_step(run) == 1
        restored, data_state = checkpoint.restore(run, make_state(), config=CONFIG)
    assert_same_bits(restored, make_state(1))
    assert data_state == {"next_index": 3}


def test_model_round_trip(tmp_path):
    config = {"embed": 4, "layers": 2, "rope": {"theta": 1e4}, "tie": None}
    params = {
        "embed": {"table": jax.random.normal(jax.random.key(0), (8, 4))},
        "layers": {"0": {"w": jnp.full((4, 4), 1 / 3, jnp.bfloat16)}},
        "scale": jnp.float32(0.3),
    }
    checkpoint.save_model(tmp_path / "model", {"embed": 1}, {"w": jnp.ones(3)})
    checkpoint.save_model(tmp_path / "model", config, params)
    loaded_config, loaded = checkpoint.load_model(tmp_path / "model")
    assert loaded_config == config
    assert_same_bits(loaded, jax.tree.map(np.asarray, params))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))


def test_no_model(tmp_path, saved):
    (tmp_path / "other").write_text("")
    for folder in (tmp_path, tmp_path / "nothing", saved):
        with pytest.raises(InputError, match=r"folder must hold a model, .* has none"):
            checkpoint.load_model(folder)
