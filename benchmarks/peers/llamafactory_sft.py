"""Trains with LLaMA-Factory as it comes: `python llamafactory_sft.py CASE`. Runs in a venv of its own; see benchmarks/training.py."""

import json
import sys
from pathlib import Path
from typing import Any

CASE = json.loads(Path(sys.argv[1]).read_text())
sys.argv = sys.argv[:1]  # LLaMA-Factory reads what is left of them

from llamafactory.train.tuner import run_exp  # noqa: E402
from meter import Meter  # noqa: E402
from transformers import Trainer, TrainerCallback  # noqa: E402

METER = Meter()
LOSSES: list[float] = []
BATCHES: list[tuple[int, int]] = []
ONE_STEP = Trainer.training_step


class Watch(TrainerCallback):
    def on_step_begin(self, *_: Any, **__: Any) -> None:
        BATCHES.clear()
        METER.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        METER.end(tokens=sum(tokens for tokens, _ in BATCHES), slots=sum(slots for _, slots in BATCHES))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:
            LOSSES.append(float(logs["loss"]))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        Path(CASE["result"]).write_text(json.dumps(METER.result(LOSSES)))


def counted(trainer: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
    BATCHES.append((int((inputs["attention_mask"] != 0).sum()), inputs["input_ids"].numel()))
    return ONE_STEP(trainer, model, inputs, *rest, **named)


def main() -> None:
    folder = Path(CASE["out"]) / "rows"
    folder.mkdir(parents=True)
    (folder / "rows.json").write_text(Path(CASE["rows"]).read_text())
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json", "columns": columns}}))
    lora = {"lora_rank": CASE["rank"], "lora_alpha": CASE["alpha"], "lora_target": "all", "lora_dropout": 0.0}
    Trainer.training_step = counted
    run_exp(
        args={
            "model_name_or_path": CASE["model"],
            "stage": "sft",
            "do_train": True,
            "finetuning_type": CASE["method"],
            "template": "smollm2",
            "dataset": "rows",
            "dataset_dir": str(folder),
            "cutoff_len": CASE["max_length"],
            "output_dir": CASE["out"],
            "per_device_train_batch_size": CASE["batch_size"],
            "gradient_accumulation_steps": 1,
            "learning_rate": CASE["learning_rate"],
            "max_steps": CASE["steps"],
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": True,
            "use_cpu": True,
            "disable_shuffling": True,
            "seed": CASE["seed"],
            "preprocessing_num_workers": 1,
            **(lora if CASE["method"] == "lora" else {}),
        },
        callbacks=[Watch()],
    )


main()
