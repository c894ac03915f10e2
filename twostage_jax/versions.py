"""The versions that a result depends on."""

import importlib.metadata
import platform

import jax

import twostage_jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Returns the versions of the program, Python, the libraries, and the devices."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = jax.devices()
    return {
        "twostage_jax": twostage_jax.__version__,
        "python": platform.python_version(),
        **found,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }
