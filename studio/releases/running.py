"""Three ways to run what was delivered, with what to type. The bundle's README and the page of its link say the same."""

import math
import re
import shlex
from typing import Any

from studio.artifacts.models import Build
from studio.artifacts.runners import Runner
from studio.releases.models import Release

SYSTEM = "system.txt"
"""The file of the bundle that holds what the model is told before every conversation."""
BASE = "base.gguf"
"""Stands for the base model's own file, which an adapter is put on."""
LIMITS = {"temperature": (0.0, 5.0), "top_p": (0.0, 1.0), "max_tokens": (1, 1_000_000)}
"""Of the numbers that a release is asked with."""
FLAGS = {"temperature": "--temp", "top_p": "--top-p", "max_tokens": "-n"}
"""llama.cpp's."""


def ways(release: Release, build: Build, file: str) -> list[Runner]:
    """Program by program. `file` is the GGUF in the bundle; a bundle of merged weights has none."""
    stem = stem_of(release)
    if build.kind == Build.Kind.MERGED:
        return _of_weights(stem, release)
    system, numbers = system_of(release), numbers_of(release)
    flags = "".join(f" {FLAGS[name]} {value:g}" for name, value in numbers.items())
    told = f" -sysf {SYSTEM}" if system else ""
    model = f"-m {BASE} --lora {shlex.quote(file)}" if build.kind == Build.Kind.GGUF_ADAPTER else f"-m {shlex.quote(file)}"
    needed = f" Put a GGUF of its base model beside it first, as {BASE}." if build.kind == Build.Kind.GGUF_ADAPTER else ""
    ollama = Runner(
        "Ollama",
        [
            (f"Unpack the bundle.{needed} The Modelfile in it holds all that the model is asked with.", f"unzip {stem}.zip\ncd {stem}"),
            ("Then talk to it.", f"ollama create {ollama_name(stem)} -f Modelfile\nollama run {ollama_name(stem)}"),
        ],
    )
    cpp = Runner(
        "llama.cpp",
        [
            (f"Talk to it in a terminal, in the folder of the bundle.{needed}", f"llama-cli {model} -cnv{told}{flags}"),
            (
                "Or serve it: a page to chat on, and an API as OpenAI's, at port 8080."
                + (f" Send the text of {SYSTEM} as the first message, of the role system." if system else ""),
                f"llama-server {model}{flags}",
            ),
        ],
    )
    if build.kind == Build.Kind.GGUF_ADAPTER:
        export = f"llama-export-lora -m {BASE} --lora {shlex.quote(file)} -o {stem}.gguf"
        studio = Runner("LM Studio", [("It takes whole models alone, so put both into one file with llama.cpp, then import that.", export)])
        studio.steps.append(("Import it, then choose it among your models.", f"lms import {stem}.gguf"))
    else:
        studio = Runner("LM Studio", [("Import it, then choose it among your models.", f"lms import {shlex.quote(file)}")])
    if system:
        studio.steps.append((f"In the chat's settings, put the text of {SYSTEM} into “System Prompt”.", ""))
    return [ollama, cpp, studio]


def _of_weights(stem: str, release: Release) -> list[Runner]:
    unpack = f"unzip {stem}.zip\ncd {stem}"
    told = f" Send the text of {SYSTEM} as the first message, of the role system." if system_of(release) else ""
    python = (
        "from transformers import pipeline\n\n"
        'talk = pipeline("text-generation", model=".", dtype="auto", device_map="auto")\n'
        'chat = [{"role": "user", "content": "Hello"}]\n'
        'print(talk(chat, max_new_tokens=200)[0]["generated_text"][-1]["content"])'
    )
    gguf = f"python convert_hf_to_gguf.py . --outfile {stem}.gguf --outtype q8_0"
    return [
        Runner("vLLM", [(f"Unpack the bundle, then serve the folder.{told}", f"{unpack}\nvllm serve .")]),
        Runner("transformers", [("Unpack the bundle, then load the folder.", f"{unpack}\npython"), ("In it:", python)]),
        Runner(
            "llama.cpp", [("Make a GGUF of it with the script that llama.cpp brings.", gguf), ("Serve it.", f"llama-server -m {stem}.gguf")]
        ),
    ]


def stem_of(release: Release) -> str:
    """The name of the zip and of the folder in it, in letters that every system and every shell takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", release.name).strip("-.")[:150] or "release"


def ollama_name(stem: str) -> str:
    return re.sub(r"[^a-z0-9._-]", "-", stem.lower())


def system_of(release: Release) -> str:
    found = release.asked_with.get("system")
    return found if isinstance(found, str) and found.strip() else ""


def numbers_of(release: Release) -> dict[str, float]:
    """What it is sampled with, as far as it says so and the number can be one."""
    return {name: found for name in LIMITS if (found := _number(release.asked_with.get(name), LIMITS[name])) is not None}


def stops_of(release: Release) -> list[str]:
    found = release.asked_with.get("stop")
    return [stop for stop in found if isinstance(stop, str) and stop] if isinstance(found, list) else []


def _number(value: Any, limits: tuple[float, float]) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if limits[0] <= value <= limits[1] else None
