"""The tokenizer.* keys of a GGUF: copied from the GGUF that the base came from, or built from tokenizer.json. Proved by verifying.py.

llama.cpp splits text by its own named rules, so the name is derived from the structure of tokenizer.json. Nothing is guessed: an
unknown structure is refused, and a known one is still compared id by id after every build.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.gguf.header import Entry, Value

COPIED = "gguf_tokenizer.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"

LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS = {LLAMA3_SPLIT: "llama-bpe", QWEN2_SPLIT: "qwen2"}
"""Regular expression in tokenizer.json -> tokenizer.ggml.pre, from llama.cpp's src/llama-vocab.cpp."""


@dataclass(frozen=True)
class Special:
    """Token ids with a role, None where the base has none."""

    begin: int | None
    ends: list[int]
    """The first ends an answer; the rest end one too."""
    unknown: int | None
    padding: int | None


def entries(base: Path, *, rows: int) -> dict[str, Entry]:
    """Every tokenizer.* key for a model whose embedding has `rows` rows. Raises UserError for a tokenizer that llama.cpp cannot have."""
    found = _copied(base, rows) if (base / COPIED).exists() else _built(base, rows)
    tokens = found["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, list)
    special = special_tokens(base, {str(token): number for number, token in enumerate(tokens)}, rows=rows)
    for key, number in (("bos", special.begin), ("unknown", special.unknown), ("padding", special.padding)):
        if number is not None:
            found.setdefault(f"tokenizer.ggml.{key}_token_id", Entry("UINT32", number))
    if special.ends:  # the base's generation settings are what it was trained to end with; a copied header may differ
        found["tokenizer.ggml.eos_token_id"] = Entry("UINT32", special.ends[0])
    if len(special.ends) > 1:
        found.setdefault("tokenizer.ggml.eot_token_id", Entry("UINT32", special.ends[1]))
    template = chat_template(base)
    found["tokenizer.chat_template"] = Entry("STRING", template)
    if special.begin is not None and "bos_token" not in template and str(tokens[special.begin]) not in template:
        found["tokenizer.ggml.add_bos_token"] = Entry("BOOL", False)  # chats were learnt without it, so they are answered without it
    return found


def chat_template(base: Path) -> str:
    """The template that the base's chats are learnt under: its own, or the plain one of `studio.ml.tokens`."""
    file = base / "chat_template.jinja"
    template: Any = file.read_text() if file.exists() else _json(base / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        by_name = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = by_name.get("default") or next(iter(by_name.values()), None)
    if isinstance(template, str) and template.strip():
        return template
    from studio.ml.chattemplate import PLAIN_TEMPLATE  # brings transformers along, so only where it is needed

    return PLAIN_TEMPLATE


def special_tokens(base: Path, ids: dict[str, int], *, rows: int) -> Special:
    """Which tokens begin, end and pad; ids beyond `rows` name nothing. generation_config.json's ends win over the tokenizer's."""
    tokenizer, model = _json(base / "tokenizer_config.json"), _json(base / "config.json")
    named = {role: ids.get(_content(tokenizer.get(f"{role}_token"))) for role in ("bos", "eos", "unk", "pad")}
    generation = _json(base / "generation_config.json")
    ends = [number for number in _id_list(generation.get("eos_token_id")) or _id_list(model.get("eos_token_id")) if 0 <= number < rows]
    if named["eos"] is not None and (not ends or named["eos"] in ends):  # of several ends, the tokenizer's own ends a turn
        ends = [named["eos"], *(number for number in ends if number != named["eos"])]
    begins = [named["bos"]] if named["bos"] is not None else _id_list(model.get("bos_token_id"))
    begin = next((number for number in begins if 0 <= number < rows), None)
    return Special(begin, ends, named["unk"], named["pad"])


def _copied(base: Path, rows: int) -> dict[str, Entry]:
    """The entries as the importer took them from a GGUF, `{"tokenizer.ggml.tokens": [...], ...}`, with rows for padding."""
    found = {key: _entry(key, value) for key, value in _json(base / COPIED).items() if key.startswith("tokenizer.")}
    tokens = found.get("tokenizer.ggml.tokens")
    if tokens is None or not isinstance(tokens.value, list):
        raise UserError(f"{COPIED} of the base model holds no tokens. Register the base model again.")
    _pad(found, "tokenizer.ggml.tokens", rows, [f"[PAD{number}]" for number in range(len(tokens.value), rows)])
    missing = rows - len(tokens.value)
    _pad(found, "tokenizer.ggml.token_type", rows, [UNUSED] * missing)
    _pad(found, "tokenizer.ggml.scores", rows, [0.0] * missing)
    return found


def _pad(found: dict[str, Entry], key: str, rows: int, more: list[Value]) -> None:
    entry = found.get(key)
    if entry is None or not isinstance(entry.value, list):
        return
    if len(entry.value) > rows:
        raise UserError(f"The base model's vocabulary has {len(entry.value)} tokens but its embedding only {rows} rows. Register it again.")
    found[key] = Entry("ARRAY", [*entry.value, *more], entry.items)


def _entry(key: str, value: Any) -> Entry:
    """The types that the format's standard gives tokenizer.* keys, told apart by the JSON value."""
    if isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            return Entry("ARRAY", value, "STRING")
        if all(type(item) is int for item in value):
            return Entry("ARRAY", value, "INT32")
        if all(isinstance(item, float) for item in value):
            return Entry("ARRAY", value, "FLOAT32")
    if isinstance(value, bool):
        return Entry("BOOL", value)
    if isinstance(value, int) and 0 <= value < 1 << 32:
        return Entry("UINT32", value)
    if isinstance(value, float):
        return Entry("FLOAT32", value)
    if isinstance(value, str):
        return Entry("STRING", value)
    raise UserError(f"{COPIED} of the base model holds a {key} that no GGUF can hold. Register the base model again.")


def _built(base: Path, rows: int) -> dict[str, Entry]:
    tokenizer = _json(base / "tokenizer.json")
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise UserError(f"The base model's tokenizer is of type {model.get('type')}; a GGUF can be built from BPE tokenizers.")
    pieces = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    byte_level = any(step.get("type") == "ByteLevel" for step in pieces)
    if not byte_level and not model.get("byte_fallback"):
        raise UserError("The base model's tokenizer splits text in a way that llama.cpp does not know. Choose another base model.")
    tokens, types = _tokens(tokenizer, rows, sentencepiece=not byte_level)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    found = {
        "tokenizer.ggml.model": Entry("STRING", "gpt2" if byte_level else "llama"),
        "tokenizer.ggml.pre": Entry("STRING", _splitting(pieces) if byte_level else "default"),
        "tokenizer.ggml.tokens": Entry("ARRAY", list(tokens), "STRING"),
        "tokenizer.ggml.token_type": Entry("ARRAY", list(types), "INT32"),
    }
    if byte_level:
        found["tokenizer.ggml.merges"] = Entry("ARRAY", list(merges), "STRING")
    else:
        found["tokenizer.ggml.scores"] = Entry("ARRAY", list(_scores(tokens, merges)), "FLOAT32")
        found["tokenizer.ggml.add_space_prefix"] = Entry("BOOL", _prefixes_space(tokenizer, pieces))
    found["tokenizer.ggml.add_bos_token"] = Entry("BOOL", _adds(tokenizer, first=True))
    found["tokenizer.ggml.add_eos_token"] = Entry("BOOL", _adds(tokenizer, first=False))
    return found


def _tokens(tokenizer: dict[str, Any], rows: int, *, sentencepiece: bool) -> tuple[list[str], list[int]]:
    """Token texts and types for every row of the embedding; rows without a token are marked unused."""
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    added = tokenizer.get("added_tokens") or []
    largest = max([*vocabulary.values(), *(entry["id"] for entry in added)], default=-1)
    if largest >= rows:
        raise UserError(f"The tokenizer has the id {largest} but the model's embedding only {rows} rows. Register the base model again.")
    tokens, types = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows
    for text, number in vocabulary.items():
        tokens[number], types[number] = text, NORMAL
        if sentencepiece and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[number] = BYTE
    for entry in added:
        tokens[entry["id"]] = entry["content"]
        types[entry["id"]] = CONTROL if entry["special"] else USER_DEFINED
    unknown = vocabulary.get(tokenizer["model"].get("unk_token") or "")
    if sentencepiece and unknown is not None:
        types[unknown] = UNKNOWN
    return tokens, types


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece merges the best-scored piece first; the order of the merges says the same, so a piece's score is minus its rank."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [float(-ranks[token]) if token in ranks else 0.0 for token in tokens]


def _splitting(pieces: list[dict[str, Any]]) -> str:
    """tokenizer.ggml.pre for a byte-level tokenizer, from its chain of splits."""
    kinds = [step.get("type") for step in pieces]
    uses_own = any(step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in pieces)
    if kinds == ["ByteLevel"] and uses_own:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and uses_own and pieces[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not uses_own:
        name = SPLITS.get(str((pieces[0].get("pattern") or {}).get("Regex", "")))
        if name:
            return name
    raise UserError("The base model's tokenizer splits text in a way that llama.cpp has no known name for. Choose another base model.")


def _prefixes_space(tokenizer: dict[str, Any], pieces: list[dict[str, Any]]) -> bool:
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    if any(step.get("type") == "Prepend" and step.get("prepend") == SPACE for step in normalizers):
        return True
    return any(step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in pieces)


def _adds(tokenizer: dict[str, Any], *, first: bool) -> bool:
    """True where tokenizer.json puts a special token before (or after) every text."""
    for step in _steps(tokenizer.get("post_processor"), "processors"):
        single = step.get("single") or []
        if step.get("type") == "TemplateProcessing" and single and "SpecialToken" in single[0 if first else -1]:
            return True
    return False


def _steps(node: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if not node:
        return []
    return list(node.get(inner) or []) if node.get("type") == "Sequence" else [node]


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _id_list(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(number) for number in value] if isinstance(value, list) else [int(value)]


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file.name} of the base model cannot be read. Register it again.") from error
    return content
