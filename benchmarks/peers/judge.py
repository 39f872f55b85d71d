"""Mean loss of held-out rows under a trained adapter or model, in fp32: `python judge.py MODEL RESULT TOKENS`. The same for everybody."""

import json
import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM


@torch.no_grad()
def main(base: str, folder: str, tokens: str) -> None:
    adapted = (Path(folder) / "adapter_config.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(base if adapted else folder, dtype=torch.float32)
    if adapted:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    total, count = 0.0, 0
    for row in json.loads(Path(tokens).read_text()):
        labels = torch.tensor(row["labels"][1:])
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        total += float(cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    sys.stdout.write(f"\n{total / count}\n")


main(*sys.argv[1:])
