"""The tokenizer.* keys of a GGUF: copied from the GGUF that the base came from, or built from tokenizer.json. Proved by verifying.py.

Which rule of llama.cpp's is the tokenizer's stands in pretokenizers.py and sentencepiece.py; an unknown structure is refused, and a known
one is still compared id by id after every build.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.gguf.header import Entry, Value
from studio.ml.gguf.pretokenizers import splitting, steps_of
from studio.ml.gguf.sentencepiece import BYTES, Prefix, refuse_missing_bytes, scores, spaces_before

COPIED = "gguf_tokenizer.json"
TAKEN_FOR_CONTROL = re.compile(
    r"<\|(?:eot_id|eom_id|im_end|end|return|calls?|flush|endoftext|end_of_text|code_(?:pre|suf)fix|code_middle|prefix|suffix|middle)\|>"
    r"|<\|(?:fim_(?:prefix|suffix|middle|pad|repo)|repo_name|file_sep)\|>|<fim[-_](?:prefix|suffix|middle|pad)>|<fim-repo>|<reponame>"
    r"|_?<EOT>|\[(?:EOT|EOS|PAD)\]|▁?<(?:PRE|SUF|MID)>|<(?:PAD|REPO)>|</s>|<end_of_(?:turn|utterance)>|<eos>|<turn\|>|<\|tool_response>"
    r"|<｜(?:end▁of▁sentence|fim▁(?:begin|hole|end))｜>|\[e~\["
)
"""Tokens that llama.cpp makes control tokens of by their text, whatever the file says; many of them end an answer.

Source: src/llama-vocab.cpp, "auto-detect special tokens by text"."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Special:
    """Token ids with a role, None where the base has none."""

    begin: int | None
    ends: list[int]
    """The first ends an answer; the rest end one too."""
    unknown: int | None
    padding: int | None


def entries(base: Path, *, rows: int, tokenizer: Path | None = None) -> dict[str, Entry]:
    """Every tokenizer.* key for a model whose embedding has `rows` rows.

    `tokenizer` is the folder of a tokenizer that took the place of the base's, as when an adapter's vocabulary grew. Raises UserError for
    a tokenizer that llama.cpp cannot have.
    """
    folder = tokenizer or base
    template = own_template(folder) or own_template(base)
    found = _copied(folder, rows) if (folder / COPIED).exists() else _built(folder, rows, own_template=bool(template))
    tokens = found["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, list)
    special = special_tokens(base, {str(token): number for number, token in enumerate(tokens)}, rows=rows, tokenizer=tokenizer)
    for key, number in (("bos", special.begin), ("unknown", special.unknown), ("padding", special.padding)):
        if number is not None:
            found.setdefault(f"tokenizer.ggml.{key}_token_id", Entry("UINT32", number))
    if special.ends:  # the base's generation settings are what it was trained to end with; a copied header may differ
        found["tokenizer.ggml.eos_token_id"] = Entry("UINT32", special.ends[0])
    for key, number in zip(("eot", "eom"), special.ends[1:], strict=False):
        found.setdefault(f"tokenizer.ggml.{key}_token_id", Entry("UINT32", number))
    template = template or _plain_template()
    found["tokenizer.chat_template"] = Entry("STRING", template)
    if special.begin is not None and "bos_token" not in template and str(tokens[special.begin]) not in template:
        found["tokenizer.ggml.add_bos_token"] = Entry("BOOL", False)  # chats were learnt without it, so they are answered without it
    return found


def chat_template(base: Path) -> str:
    """The template that the base's chats are learnt under: its own, or the plain one of `studio.ml.tokens`."""
    return own_template(base) or _plain_template()


def own_template(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    template: Any = file.read_text(errors="replace") if file.exists() else read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        by_name = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = by_name.get("default") or next(iter(by_name.values()), None)
    return template if isinstance(template, str) and template.strip() else ""


def _plain_template() -> str:
    from studio.ml.chattemplate import PLAIN_TEMPLATE  # brings transformers along, so only where it is needed

    return PLAIN_TEMPLATE


def special_tokens(base: Path, ids: dict[str, int], *, rows: int, tokenizer: Path | None = None) -> Special:
    """Which tokens begin, end and pad; ids beyond `rows` name nothing. generation_config.json's ends win over the tokenizer's."""
    settings, model = read_json((tokenizer or base) / "tokenizer_config.json"), read_json(base / "config.json")
    named = {role: ids.get(_content(settings.get(f"{role}_token"))) for role in ("bos", "eos", "unk", "pad")}
    generation = read_json(base / "generation_config.json")
    ends = [number for number in _id_list(generation.get("eos_token_id")) or _id_list(model.get("eos_token_id")) if 0 <= number < rows]
    if named["eos"] is not None and (not ends or named["eos"] in ends):  # of several ends, the tokenizer's own ends a turn
        ends = [named["eos"], *(number for number in ends if number != named["eos"])]
    begins = [named["bos"]] if named["bos"] is not None else _id_list(model.get("bos_token_id"))
    begin = next((number for number in begins if 0 <= number < rows), None)
    return Special(begin, ends, named["unk"], named["pad"])


def _copied(base: Path, rows: int) -> dict[str, Entry]:
    """The entries as the importer took them from a GGUF, `{"tokenizer.ggml.tokens": [...], ...}`, with rows for padding."""
    found = {key: _entry(key, value) for key, value in read_json(base / COPIED).items() if key.startswith("tokenizer.")}
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


def _built(folder: Path, rows: int, *, own_template: bool) -> dict[str, Entry]:
    tokenizer = read_json(folder / "tokenizer.json")
    model = _model(tokenizer)
    byte_level = is_byte_level(tokenizer)
    if not byte_level and not model.get("byte_fallback"):
        raise UserError("The base model's tokenizer splits text in a way that llama.cpp does not know. Choose another base model.")
    tokens, types = _tokens(tokenizer, rows, sentencepiece=not byte_level)
    merges = _merges(model)
    found = {
        "tokenizer.ggml.model": Entry("STRING", "gpt2" if byte_level else "llama"),
        "tokenizer.ggml.pre": Entry("STRING", splitting(tokenizer) if byte_level else "default"),
        "tokenizer.ggml.tokens": Entry("ARRAY", list(tokens), "STRING"),
        "tokenizer.ggml.token_type": Entry("ARRAY", list(types), "INT32"),
    }
    if byte_level:
        _refuse_normalizers(tokenizer)
        found["tokenizer.ggml.merges"] = Entry("ARRAY", [f"{left} {right}" for left, right in merges], "STRING")
    else:
        refuse_missing_bytes(model["vocab"])
        found["tokenizer.ggml.scores"] = Entry("ARRAY", list(scores(tokens, merges)), "FLOAT32")
        found["tokenizer.ggml.add_space_prefix"] = Entry("BOOL", _prefixes(spaces_before(tokenizer), own_template=own_template))
    begin, end = (_around(tokenizer, place) for place in (0, -1))
    if begin in tokens:  # else llama.cpp would put another there
        found["tokenizer.ggml.bos_token_id"] = Entry("UINT32", tokens.index(begin))
    found["tokenizer.ggml.add_bos_token"] = Entry("BOOL", begin in tokens)
    found["tokenizer.ggml.add_eos_token"] = Entry("BOOL", end in tokens)
    return found


def _model(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json's model, which merges pairs of neighbours and does nothing else."""
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE":
        raise UserError(f"The base model's tokenizer is of type {kind}; a GGUF can be built from BPE tokenizers.")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UserError("The base model's tokenizer marks or drops parts of words, which llama.cpp does not do. Choose another base model.")
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise UserError("The base model's tokenizer.json holds no vocabulary. Register the base model again.")
    return model


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if any(
        not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and " " not in part for part in pair)
        for pair in pairs
    ):
        raise UserError("The base model's tokenizer.json holds merges that a GGUF cannot hold. Choose another base model.")
    return [(left, right) for left, right in pairs]


def _refuse_normalizers(tokenizer: dict[str, Any]) -> None:
    """llama.cpp changes no letters before it splits. NFC, which most texts are in already, is let pass: see `comparable`."""
    kinds = {str(step.get("type")) for step in steps_of(tokenizer.get("normalizer"), "normalizers")}
    if not kinds <= {"NFC"}:
        raise UserError(
            f"The base model's tokenizer changes texts by {min(kinds - {'NFC'})}, which llama.cpp does not. Choose another base model."
        )


def _prefixes(where: Prefix, *, own_template: bool) -> bool:
    """llama.cpp knows "always" and "never". Prompts of a chat begin with a special token, texts with a text."""
    return where == "always" or (where == "first" and not own_template)


def is_byte_level(tokenizer: dict[str, Any]) -> bool:
    return any(step.get("type") == "ByteLevel" for step in steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers"))


def _tokens(tokenizer: dict[str, Any], rows: int, *, sentencepiece: bool) -> tuple[list[str], list[int]]:
    """Token texts and types for every row of the embedding; rows without a token are marked unused."""
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    added = added_tokens(tokenizer)
    for number in [*vocabulary.values(), *(entry["id"] for entry in added)]:
        if type(number) is not int or not 0 <= number < rows:
            raise UserError(f"The tokenizer has the id {number} but the model's embedding only {rows} rows. Register the base model again.")
    tokens, types = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows
    for text, number in vocabulary.items():
        if sentencepiece or not TAKEN_FOR_CONTROL.fullmatch(text):
            tokens[number], types[number] = text, NORMAL  # else no text is read as it: letters and signs stand apart before they are merged
    for name in BYTES if sentencepiece else []:
        if name in vocabulary:
            types[vocabulary[name]] = BYTE
    for entry in added:
        tokens[entry["id"]] = entry["content"]
        types[entry["id"]] = CONTROL if entry.get("special") else USER_DEFINED
    unknown = vocabulary.get(str(tokenizer["model"].get("unk_token")))
    if sentencepiece and unknown is not None:
        types[unknown] = UNKNOWN
    if len(set(tokens)) < rows or any(not token or "\0" in token for token in tokens):  # llama.cpp ends at either
        raise UserError("The base model's tokenizer has a token twice, or an empty one. Choose another base model.")
    return tokens, types


def added_tokens(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """Tokens beyond the vocabulary's own, that are found in a text before it is split."""
    added = tokenizer.get("added_tokens") or []
    if not all(isinstance(entry, dict) and isinstance(entry.get("content"), str) and "id" in entry for entry in added):
        raise UserError("The base model's tokenizer.json holds added tokens that cannot be read. Register the base model again.")
    if any(entry.get("single_word") for entry in added):
        raise UserError(
            "The base model's tokenizer has tokens that must stand alone, which llama.cpp does not know. Choose another base model."
        )
    return added


def _around(tokenizer: dict[str, Any], place: int) -> str | None:
    """The special token that tokenizer.json puts before (place 0) or after (-1) every text."""
    for step in steps_of(tokenizer.get("post_processor"), "processors"):
        single = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(single, list) and single and "SpecialToken" in single[place]:
            return str(single[place]["SpecialToken"]["id"])
    return None


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _id_list(value: Any) -> list[int]:
    return [number for number in (value if isinstance(value, list) else [value]) if type(number) is int]


def read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file.name} of the base model cannot be read. Register it again.") from error
    return content if isinstance(content, dict) else {}
