"""Where llama.cpp is known to read a text otherwise than the base's tokenizer, and what both read alike. Used to compare the two.

What a GGUF has a word for stands in vocabulary.py; what is here it has none for.
"""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studio.ml.gguf.pretokenizers import WITHOUT_MARKS, splitting, steps_of
from studio.ml.gguf.sentencepiece import spaces_before
from studio.ml.gguf.vocabulary import COPIED, TAKEN_FOR_CONTROL, added_tokens, is_byte_level, own_template, read_json

SWALLOWING = re.compile(r'"rstrip":\s*true')
NEVER_SWALLOWING = ("<unk>", "<s>", "<|endoftext|>")


def comparable(base: Path) -> Callable[[str], str]:
    """Makes of a text what both sides read alike. A tokenizer that was copied from a GGUF, and most others, leave it as it is.

    Letters are composed where the tokenizer does so itself (NFC). A space is put before a text, or taken away, where the tokenizer puts one
    before texts that begin with none, which llama.cpp does always or never. What `caveats` tells of is taken out.
    """
    if (base / COPIED).exists():
        return str
    tokenizer = read_json(base / "tokenizer.json")
    steps: list[Callable[[str], str]] = []
    if _composes(tokenizer):
        steps.append(lambda text: unicodedata.normalize("NFC", text))
    if _cuts_at_marks(tokenizer):
        steps.append(lambda text: "".join(letter for letter in text if unicodedata.category(letter)[0] != "M"))
    words = _taken_for_control(tokenizer)
    if words:
        steps.append(lambda text: _without(words, text))
    if not is_byte_level(tokenizer) and spaces_before(tokenizer) == "first":
        if own_template(base):
            steps.append(lambda text: text if text.startswith(" ") else f" {text}")
        else:
            names = [entry["content"] for entry in added_tokens(tokenizer)]
            steps.append(lambda text: _without(names, text).lstrip(" "))

    def made(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return made


def caveats(base: Path) -> list[str]:
    """Sentences about what llama.cpp reads otherwise than this base's tokenizer, for whoever builds a file of it."""
    if (base / COPIED).exists():
        return []
    tokenizer = read_json(base / "tokenizer.json")
    found = []
    if _composes(tokenizer):
        found.append("Accents that are typed apart from their letters are other tokens in llama.cpp; nearly all text has them as one.")
    if _cuts_at_marks(tokenizer):
        found.append("llama.cpp splits words with combining marks, as Hindi and Thai have them, into other tokens than this model learnt.")
    if words := _taken_for_control(tokenizer):
        found.append(f"llama.cpp takes {', '.join(words)} for control tokens, which they are not in this model.")
    return found


def name_mark(base: Path) -> str:
    """What general.name has to end with: llama.cpp swallows blanks after special tokens where it holds "phi-3", and only there.

    Source: src/llama-vocab.cpp, "set attributes by model/tokenizer/architecture name". It also wants </s> among the tokens then.
    """
    file = base / "tokenizer.json"
    if (base / COPIED).exists() or not file.exists() or not SWALLOWING.search(file.read_text()):  # reading it whole takes a second
        return ""
    added = {str(entry["content"]): bool(entry.get("rstrip")) for entry in added_tokens(read_json(file))}
    swallows = {text: text not in NEVER_SWALLOWING for text in added}
    return " (phi-3)" if any(added.values()) and added == swallows and {"</s>", *NEVER_SWALLOWING} <= added.keys() else ""


def _composes(tokenizer: dict[str, Any]) -> bool:
    return any(step.get("type") == "NFC" for step in steps_of(tokenizer.get("normalizer"), "normalizers"))


def _cuts_at_marks(tokenizer: dict[str, Any]) -> bool:
    return is_byte_level(tokenizer) and splitting(tokenizer) in WITHOUT_MARKS


def _taken_for_control(tokenizer: dict[str, Any]) -> list[str]:
    plain = [str(entry["content"]) for entry in added_tokens(tokenizer) if not entry.get("special")]
    return sorted(text for text in plain if TAKEN_FOR_CONTROL.fullmatch(text))


def _without(words: list[str], text: str) -> str:
    for word in words:
        text = text.replace(word, "")
    return text
