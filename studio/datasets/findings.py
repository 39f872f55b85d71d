"""What is noteworthy about rows that were taken: counts, lengths, roles, and what a person should look at before training."""

import re
from array import array
from collections import Counter
from typing import Any

import numpy as np

from studio.datasets.flags import Flag
from studio.datasets.readers.lines import visible

FEW = 10
PLACEHOLDER = re.compile(rb"\{\{\s*[A-Za-z_][\w.\-]{0,60}\s*\}\}")
CONTROL_TOKENS = re.compile(
    rb"<\|(?:im_start|im_end|im_sep|endoftext|begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|eom_id|python_tag|system|user|assistant|end)\|>"
    rb"|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)
TOKEN_SIGNS = (b"<|", b"s>", b"INST]", b"SYS>>", b"_of_turn>", b"<pad>", b"<unk>")
# Joiners (U+200C, U+200D) are left out: emoji and several scripts need them.
HIDDEN = re.compile(rb"\xe2\x80[\x8b\x8e\x8f\xaa-\xae]|\xe2\x81[\xa0-\xa9]|\xef\xbb\xbf|\\u001[bB]")
SECRETS = re.compile(
    rb"\bsk-[A-Za-z0-9_-]{20,}|\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{40,}|\bAKIA[0-9A-Z]{16}\b"
    rb"|\bAIza[0-9A-Za-z_-]{35}|\bxox[abprs]-[0-9A-Za-z-]{10,}|\bglpat-[\w-]{20,}|-----BEGIN [A-Z ]{0,20}PRIVATE KEY"
)
SECRET_SIGNS = (
    b"sk-",
    b"hf_",
    b"ghp_",
    b"gho_",
    b"ghu_",
    b"ghs_",
    b"ghr_",
    b"github_pat_",
    b"AKIA",
    b"AIza",
    b"xox",
    b"glpat-",
    b"PRIVATE KEY",
)
# Begins with its rarest character, which is found fast.
EMAIL = re.compile(rb"@(?<=[A-Za-z0-9_%+-]@)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,10}\b")


class Findings:
    """Counts over all rows; memory grows by 12 bytes a row."""

    def __init__(self) -> None:
        self.characters = array("I")
        self.turns = array("I")
        self.roles: Counter[str] = Counter()
        self.flagged: Counter[Flag] = Counter()
        self.examples: dict[Flag, str] = {}

    def add(self, row: dict[str, Any], canonical: bytes) -> int:
        """Counts a row; returns its flags."""
        if "text" in row:
            self.turns.append(0)
            self.characters.append(len(row["text"]))
        else:
            messages = row["messages"] if "messages" in row else row["prompt"] + row["chosen"] + row["rejected"]
            self.turns.append(len(messages))
            self.characters.append(sum(len(message["content"]) for message in messages))
            for message in messages:
                self.roles[message["role"]] += 1
        return self._flags(canonical)

    def _flags(self, canonical: bytes) -> int:
        # A plain search for a sign first: it is many times faster than the pattern, and most rows hold none.
        flags = 0
        if b"{{" in canonical:
            flags |= self._look(Flag.PLACEHOLDER, PLACEHOLDER, canonical)
        if any(sign in canonical for sign in TOKEN_SIGNS):
            flags |= self._look(Flag.CONTROL, CONTROL_TOKENS, canonical)
        if b"\xe2\x80" in canonical or b"\xe2\x81" in canonical or b"\xef\xbb\xbf" in canonical or b"\\u001" in canonical:
            flags |= self._look(Flag.HIDDEN, HIDDEN, canonical)
        if any(sign in canonical for sign in SECRET_SIGNS):
            flags |= self._look(Flag.SECRET, SECRETS, canonical)
        if b"@" in canonical:
            flags |= self._look(Flag.PERSONAL, EMAIL, canonical)
        return flags

    def _look(self, flag: Flag, pattern: re.Pattern[bytes], canonical: bytes) -> int:
        found = pattern.search(canonical)
        if not found:
            return 0
        self.flagged[flag] += 1
        if flag not in self.examples:
            self.examples[flag] = found[0].decode()[:40]
        return flag

    def warnings(self) -> list[str]:
        """Sentences for a person, with counts of rows; secrets are masked."""
        sentences = {
            Flag.PLACEHOLDER: "{rows} unfilled placeholders such as {example}. Fill them in, or the model learns to say them.",
            Flag.CONTROL: "{rows} control tokens such as {example}; they will be treated as plain text.",
            Flag.HIDDEN: "{rows} invisible or direction-changing characters such as {example}.",
            Flag.SECRET: "{rows} what looks like a secret key ({example}…). A model can repeat what it has learnt.",
            Flag.PERSONAL: "{rows} e-mail addresses. A model can repeat what it has learnt.",
        }
        return [
            sentence.format(rows=_rows(self.flagged[flag]), example=_example(flag, self.examples[flag]))
            for flag, sentence in sentences.items()
            if self.flagged[flag]
        ]

    def statistics(self) -> dict[str, Any]:
        """Turns (messages in a row) and characters (Unicode code points of its texts), and how many messages each role has."""
        return {"characters": _spread(self.characters), "turns": _spread(self.turns), "roles": dict(self.roles)}


def _rows(number: int) -> str:
    return "1 row contains" if number == 1 else f"{number} rows contain"


def _example(flag: Flag, found: str) -> str:
    if flag is Flag.SECRET:
        return found[:4]
    return visible(found).replace("\\u001b", "\\u001B")


def _spread(values: "array[int]") -> dict[str, Any]:
    numbers = np.frombuffer(values, dtype=np.uint32)
    if not len(numbers):
        return {"total": 0, "mean": 0.0, "p50": 0, "p95": 0, "largest": 0}
    p50, p95 = np.percentile(numbers, [50, 95], method="nearest").tolist()
    mean = round(float(numbers.mean()), 1)
    return {"total": int(numbers.sum(dtype=np.uint64)), "mean": mean, "p50": p50, "p95": p95, "largest": int(numbers.max())}
