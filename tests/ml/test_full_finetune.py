"""Full fine-tuning on a tiny model: what learns, how it is rounded, what comes out, and that a broken-off run leaves no trace."""

from pathlib import Path

from studio.training.testing import check_plugin
from training_plugins.full_finetune import FullFinetune


def test_full_finetuning_passes_the_conformance_suite(tiny_model: Path) -> None:
    check_plugin(FullFinetune, base=tiny_model, config={"weights": "bf16"})
