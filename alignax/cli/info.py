"""Versions and devices, for a bug report."""

import dataclasses
import importlib.metadata
import platform

import jax

import alignax

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "grain",
    "tensorflow-datasets",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


def main(config: Config) -> None:
    """Print versions and devices, as lines.

    Args:
      config: without options.
    """
    print(f"alignax {alignax.__version__}")
    print(f"python {platform.python_version()}")
    for name in PACKAGES:
        print(name, importlib.metadata.version(name))
    print("devices", ", ".join(str(device) for device in jax.devices()))
