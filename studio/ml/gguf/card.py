"""README.md beside a built file: what it is, from whom, how well it does, and how to run it.

What people typed stays plain text on one line, whatever marks stand in it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studio.training.orders import BuildAbout

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")
"""Of a licence or a language."""
TITLES = {"gguf": "One GGUF file", "gguf_adapter": "A GGUF adapter", "merged": "Merged weights"}
MARKS = re.compile(r"([\\`*_\[\]<>#|~&$!])")
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
"""Control characters, breaks of lines, and marks that turn the direction of writing."""


def model_card(
    file: str,
    *,
    kind: str,
    quantization: str,
    about: BuildAbout,
    verification: Mapping[str, Any],
    importance: bool = False,
    has_template: bool = False,
    knows_system: bool = True,
    licences: Sequence[str] = (),
) -> str:
    """README.md: what it is, from whom, how well it does, and how to run it."""
    title = plain(about.title) or "A model"
    facts = [
        ("What", f"{TITLES[kind]}, {quantization}{', rounded with care for the training rows' if importance else ''}"),
        ("Base model", " ".join(filter(None, [plain(about.base_name), f"({plain(about.base_source)})" if about.base_source else ""]))),
        ("Licence of the base model", plain(about.license) or "not stated; ask its maker before you pass this on"),
        ("Made by", plain(about.author)),
        ("Trained on", plain(about.dataset)),
        ("Version", plain(about.version)),
        ("File", f"`{file}`" if file else ""),
    ]
    lines = [*_front_matter(about, kind), "", f"# {title} · {quantization}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts if value]
    lines += ["", "## Proof", "", *_proof(verification, kind)]
    lines += ["", "## Run it", "", *_steps(file, kind=kind, has_template=has_template, knows_system=knows_system)]
    lines += ["", "## What lies beside it", "", "`SHA256SUMS` holds the hash of every file: `sha256sum -c SHA256SUMS` compares them."]
    if licences:
        lines.append(f"The base model's terms: {', '.join(f'`{name}`' for name in licences)}.")
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """What somebody typed, as text on one line of Markdown and nothing else."""
    return MARKS.sub(r"\\\1", UNSEEN.sub(" ", text)).strip()


def _front_matter(about: BuildAbout, kind: str) -> list[str]:
    """What the Hugging Face hub reads; JSON's strings are YAML's."""
    library = "transformers" if kind == "merged" else "gguf"
    found = [f"library_name: {library}", "pipeline_tag: text-generation"]
    repository = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)(@.*)?", about.base_source, re.ASCII)
    if repository:
        found.append(f"base_model: {json.dumps(repository[1])}")
    if IDENTIFIER.fullmatch(about.license):
        found.append(f"license: {json.dumps(about.license)}")
    if languages := [language for language in about.languages if IDENTIFIER.fullmatch(language)]:
        found.append(f"language: {json.dumps(languages)}")
    return ["---", *found, "---"]


def _proof(verification: Mapping[str, Any], kind: str) -> list[str]:
    compared = "the adapter on its base" if kind == "gguf_adapter" else "the same model"
    if not verification.get("passed"):
        return ["**It has not passed its check.** Do not pass it on."]
    rows = [
        ("Mean KL divergence per token, nats", _figure(verification, "mean_kl", ".2g")),
        ("Largest KL divergence, nats", _figure(verification, "max_kl", ".2g")),
        ("Perplexity", _figure(verification, "perplexity", ".3f")),
        ("Perplexity of the reference", _figure(verification, "perplexity_reference", ".3f")),
        ("Likeliest next word is the same", _figure(verification, "top1", ".1%")),
        ("Tokens that were compared", _figure(verification, "tokens", ".0f")),
        ("Test texts that split into the same tokens", _pair(verification, "tokenizer_equal", "tokenizer_texts")),
        ("Tokens per second where it was built", _figure(verification, "tokens_per_second", ".0f")),
        ("Memory while it ran, MB", _figure(verification, "memory", ".0f", scale=1e-6)),
    ]
    said = [f"It was run and compared with {compared} in transformers before it could be downloaded.", "", "| Figure | |", "|---|---:|"]
    said += [f"| {name} | {value} |" for name, value in rows if value]
    return said + [line for sentence in verification.get("caveats", []) for line in ("", sentence)]


def _steps(file: str, *, kind: str, has_template: bool, knows_system: bool) -> list[str]:
    if kind == "merged":
        return _merged_steps()
    name = re.sub(r"[^a-z0-9._-]", "-", Path(file).stem.lower())
    if kind == "gguf_adapter":
        return _adapter_steps(file, name)
    notes = []
    if not has_template:
        notes.append(
            "Its chat template does more than Ollama's language can say, so the Modelfile has none: Ollama may write chats otherwise."
        )
    if not knows_system:
        notes.append("Its chat template knows no system message: put what would stand there into the first question.")
    return [
        "**Ollama**, in this folder:",
        "",
        *_code(f"ollama create {name} -f Modelfile", f"ollama run {name}"),
        *(["", *notes] if notes else []),
        "",
        "**llama.cpp**, with its own chat page and an OpenAI-compatible API at http://127.0.0.1:8080, or in the terminal:",
        "",
        *_code(f"llama-server -m {file}", f"llama-cli -m {file} -cnv"),
        "",
        "**LM Studio**:",
        "",
        *_code(f"lms import {file}"),
        "",
        "then choose it under “My models”.",
    ]


def _adapter_steps(file: str, name: str) -> list[str]:
    return [
        "It goes on a GGUF of the base model named above, in any type; `base.gguf` stands for that file.",
        "",
        "**llama.cpp**:",
        "",
        *_code(f"llama-server -m base.gguf --lora {file}", f"llama-cli -m base.gguf --lora {file} -cnv"),
        "",
        "**Ollama**, with `base.gguf` in this folder:",
        "",
        *_code(f"ollama create {name} -f Modelfile", f"ollama run {name}"),
    ]


def _merged_steps() -> list[str]:
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto", device_map="auto")',
        'chat = [{"role": "user", "content": "Hello!"}]',
        'inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True).to(model.device)',
        'print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    ]
    return ["**transformers**, in this folder:", "", "```python", *code, "```", "", "**vLLM**:", "", *_code("vllm serve .")]


def _code(*commands: str) -> list[str]:
    return ["```sh", *commands, "```"]


def _figure(verification: Mapping[str, Any], key: str, form: str, *, scale: float = 1.0) -> str:
    value = verification.get(key)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return format(value * scale, form) if usable and value is not None else ""


def _pair(verification: Mapping[str, Any], part: str, whole: str) -> str:
    one, other = _figure(verification, part, ".0f"), _figure(verification, whole, ".0f")
    return f"{one} of {other}" if one and other else ""
