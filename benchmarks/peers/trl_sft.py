"""Trains with TRL's SFTTrainer as it comes: `python trl_sft.py CASE`. Runs in a venv of its own; see benchmarks/training.py."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from meter import Meter
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer


class InOrder(SFTTrainer):
    """The rows come in the order in which the studio reads them."""

    def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if dataset is None else dataset)


class Watch(TrainerCallback):
    def __init__(self) -> None:
        self.meter = Meter()
        self.batches: list[tuple[int, int]] = []
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.meter.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        tokens, slots = self.batches[len(self.meter.steps)]
        self.meter.end(tokens=tokens, slots=slots)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def main() -> None:
    case = json.loads(Path(sys.argv[1]).read_text())
    lora = case["method"] == "lora"
    set_seed(case["seed"])
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    adapter = LoraConfig(r=case["rank"], lora_alpha=case["alpha"], target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    watch = Watch()
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32),
        args=SFTConfig(
            output_dir=case["out"],
            use_cpu=True,
            max_steps=case["steps"],
            per_device_train_batch_size=case["batch_size"],
            learning_rate=case["learning_rate"],
            lr_scheduler_type="linear",
            warmup_steps=0,
            max_length=case["max_length"],
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            seed=case["seed"],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(json.loads(Path(case["tokens"]).read_text())),
        processing_class=tokenizer,
        peft_config=adapter if lora else None,
        callbacks=[watch],
    )
    collate = trainer.data_collator

    def counted(rows: Any) -> Any:
        batch = collate(rows)
        watch.batches.append((int(batch["attention_mask"].sum()), batch["input_ids"].numel()))
        return batch

    trainer.data_collator = counted
    trainer.train()
    Path(case["result"]).write_text(json.dumps(watch.meter.result(watch.losses)))
    trainer.save_model(case["out"])


main()
