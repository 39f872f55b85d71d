"""How to run at home what a build left: program by program, with what to type. The bundle's README says the same."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from studio.artifacts.models import Build


@dataclass(frozen=True)
class Runner:
    """A program that runs a build, and what to type for it."""

    name: str
    steps: list[tuple[str, str]]
    """A sentence, and the command that it is about; empty where there is nothing to type."""


def running_it(build: Build, file: str | None) -> list[Runner]:
    """How to run what a build left, program by program."""
    if build.artifact is None:
        return []
    stem = build.artifact.file_stem
    if build.kind == Build.Kind.MERGED:
        return _running_weights(stem)
    if file is None:
        return []
    name = re.sub(r"[^a-z0-9._-]", "-", PurePosixPath(file).stem.lower())
    return _running_adapter(file, stem, name) if build.kind == Build.Kind.GGUF_ADAPTER else _running_file(file, stem, name)


def _running_file(file: str, stem: str, name: str) -> list[Runner]:
    return [
        Runner(
            "Ollama",
            [
                ("Take the bundle and unpack it: Ollama goes by the Modelfile that lies beside the file.", _unpacked(stem)),
                ("Then talk to it.", f"ollama create {name} -f Modelfile\nollama run {name}"),
            ],
        ),
        Runner(
            "llama.cpp",
            [
                ("Talk to it in a terminal.", f"llama-cli -m {file} -cnv"),
                ("Or serve it: a page to chat on, and an API as OpenAI's, at port 8080.", f"llama-server -m {file}"),
            ],
        ),
        Runner("LM Studio", [("Import it, then choose it among your models.", f"lms import {file}")]),
    ]


def _running_adapter(file: str, stem: str, name: str) -> list[Runner]:
    base = "base.gguf"
    return [
        Runner(
            "llama.cpp",
            [
                (
                    f"Put it on a GGUF of its base model, here {base}; a build of the base as it is makes one.",
                    f"llama-server -m {base} --lora {file}",
                ),
                (
                    "With several adapters, each request says how strong each of them is.",
                    f"llama-server -m {base} --lora {file} --lora another.gguf --lora-init-without-apply",
                ),
            ],
        ),
        Runner(
            "Ollama",
            [
                (
                    "Take the bundle and unpack it. Put the base model's GGUF beside the Modelfile, under the name that stands there.",
                    _unpacked(stem),
                ),
                ("Then talk to it.", f"ollama create {name} -f Modelfile\nollama run {name}"),
            ],
        ),
    ]


def _running_weights(stem: str) -> list[Runner]:
    return [
        Runner("vLLM", [("Unpack the bundle, then serve the folder.", f"{_unpacked(stem)}\nvllm serve .")]),
        Runner(
            "transformers",
            [
                (
                    "Unpack the bundle, then load the folder.",
                    "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                    f'model = AutoModelForCausalLM.from_pretrained("{stem}")\n'
                    f'tokenizer = AutoTokenizer.from_pretrained("{stem}")',
                )
            ],
        ),
    ]


def _unpacked(stem: str) -> str:
    return f"unzip {stem}.zip\ncd {stem}"
