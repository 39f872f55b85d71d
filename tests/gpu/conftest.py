"""Tests that need an NVIDIA GPU. They are left out unless they are asked for: `python3 manage.py test -m gpu tests/gpu -s`."""

import os
from pathlib import Path

import pytest

from studio.training import HostFacts
from studio.worker.host import host_facts
from tests.ml.conftest import smollm2, smollm2_facts
from training_plugins.unsloth_lora import ON_CPU

__all__ = ["smollm2", "smollm2_facts"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker("gpu")
    if "gpu" not in config.option.markexpr:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


@pytest.fixture(scope="session")
def gpu() -> HostFacts:
    """This machine. With the switch for tests a processor will do, slowly, to see that these files run."""
    host = host_facts()
    if not host.gpus and os.environ.get(ON_CPU) != "1":
        pytest.fail("These tests need an NVIDIA GPU, and nvidia-smi lists none.", pytrace=False)
    return host
