"""LoRA (PEFT) keeps the contract that every plugin keeps: in a real worker process, on a tiny model."""

from pathlib import Path

from studio.training.testing import check_plugin
from training_plugins.peft_lora import PeftLora


def test_peft_lora_passes_the_conformance_suite(tiny_model: Path) -> None:
    check_plugin(PeftLora, base=tiny_model, config={"rank": 4, "alpha": 8.0})
