"""The first link of the standard chain: `python merge_peft.py BASE ADAPTER FOLDER` merges by PEFT and saves the model and its tokenizer."""

import shutil
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(base: str, adapter: str, folder: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, local_files_only=True, use_safetensors=True)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)
    # transformers writes the tokenizer anew and loses what llama.cpp's converter recognises it by, so its files are copied as they are
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (Path(base) / name).exists():
            shutil.copy(Path(base) / name, folder)


main(*sys.argv[1:])
