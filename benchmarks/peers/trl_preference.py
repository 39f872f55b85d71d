"""Learns from pairs of answers with TRL's trainers as they come: `python trl_preference.py CASE`. See benchmarks/preference.py."""

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


class Watch(TrainerCallback):
    def __init__(self) -> None:
        self.meter = Meter()
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.meter.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.end(tokens=1, slots=1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def trainer_of(kind: str) -> tuple[Any, Any, dict[str, Any]]:
    """TRL's trainer for a loss, its settings' class, and those settings that choose the loss."""
    if kind == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer, DPOConfig, {"beta": 0.1}
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer, CPOConfig, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 2.0 * 0.5, "cpo_alpha": 0.0}


def as_text(row: dict[str, Any], tokenizer: Any) -> dict[str, str]:
    """The pair as TRL takes it unchanged: to a chat its older trainers add a second end, after the template's line break."""
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    ends = {name: row[name][-1]["content"] + tokenizer.eos_token for name in ("chosen", "rejected")}
    return {"prompt": prompt, **ends}


def main() -> None:
    case = json.loads(Path(sys.argv[1]).read_text())
    set_seed(case["seed"])
    trainer_class, config_class, chosen = trainer_of(case["kind"])
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    rows = [as_text(row, tokenizer) for row in json.loads(Path(case["pairs"]).read_text())]

    class InOrder(trainer_class):  # type: ignore[misc, valid-type]
        """The pairs come in the order in which the studio reads them."""

        def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(self.train_dataset if dataset is None else dataset)

    watch = Watch()
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32),
        args=config_class(
            output_dir=case["out"],
            use_cpu=True,
            bf16=False,
            max_steps=case["steps"],
            per_device_train_batch_size=case["batch_size"],
            learning_rate=case["learning_rate"],
            lr_scheduler_type="linear",
            warmup_steps=0,
            max_length=case["max_length"],
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            seed=case["seed"],
            disable_tqdm=True,
            **chosen,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=case["rank"], lora_alpha=case["alpha"], target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        ),
        callbacks=[watch],
    )
    trainer.train()
    Path(case["result"]).write_text(json.dumps(watch.meter.result(watch.losses)))


main()
