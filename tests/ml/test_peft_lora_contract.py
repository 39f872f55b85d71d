"""LoRA (PEFT) keeps the contract that every plugin keeps: in a real worker process, on a tiny model."""

from pathlib import Path

from studio.training.testing import Case, check_plugin, check_resume
from training_plugins.peft_lora import PeftLora


def test_peft_lora_passes_the_conformance_suite(tiny_model: Path) -> None:
    check_plugin(PeftLora, base=tiny_model, config={"rank": 4, "alpha": 8.0})


def test_a_run_that_moved_weights_into_its_adapter_is_killed_without_a_trace(tiny_model: Path, tmp_path: Path) -> None:
    settings = {
        "initialization": "pissa",
        "modules_to_save": ["embed_tokens"],
        "lora_plus": 4.0,
        "dropout": 0.1,
        "rank": 4,
        "max_length": 64,
    }
    check_resume(Case(plugin=PeftLora.name, folder=tmp_path, base=tiny_model, config=settings, requires=PeftLora.requires))
