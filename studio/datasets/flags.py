"""What can be noteworthy about a row: one bit for each finding, with the words that pages use. Who finds it stands elsewhere."""

from dataclasses import dataclass
from enum import IntFlag
from typing import Literal


class Flag(IntFlag):
    """Stored with each row, so a bit never changes its meaning."""

    DUPLICATE = 1 << 0
    NEAR_DUPLICATE = 1 << 1
    CONFLICT = 1 << 2
    LEAKAGE = 1 << 3
    PLACEHOLDER = 1 << 4
    CONTROL = 1 << 5
    HIDDEN = 1 << 6
    SECRET = 1 << 7
    PERSONAL = 1 << 8
    EMPTY = 1 << 9
    LANGUAGE = 1 << 10
    ADDED = 1 << 16
    CHANGED = 1 << 17


Remedy = Literal["drop", "fix"]


@dataclass(frozen=True)
class Finding:
    """How a page speaks of one flag."""

    flag: Flag
    name: str
    """In addresses, exports and the API; never changed."""
    title: str
    words: str
    """What it means for the training, in one sentence."""
    remedies: tuple[Remedy, ...] = ("drop",)
    """What can be done about it by one click; keeping the rows is always possible."""


FINDINGS: tuple[Finding, ...] = (
    Finding(
        Flag.LEAKAGE,
        "leakage",
        "In training and validation",
        "The model is tested on what it has learnt, so its validation loss looks better than it is.",
    ),
    Finding(
        Flag.CONFLICT, "conflict", "Different answers to one question", "The model is taught two things at once and learns neither well."
    ),
    Finding(Flag.SECRET, "secret", "Keys and passwords", "A model can repeat what it has learnt.", ("drop", "fix")),
    Finding(Flag.PERSONAL, "personal", "Personal data", "A model can repeat what it has learnt.", ("drop", "fix")),
    Finding(Flag.PLACEHOLDER, "placeholder", "Unfilled placeholders", "Fill them in, or the model learns to say them.", ("drop", "fix")),
    Finding(Flag.EMPTY, "empty", "Answers that say nothing", "The model learns to say nothing, too."),
    Finding(Flag.DUPLICATE, "duplicate", "Exact duplicates", "Each copy counts once more; the model leans towards it."),
    Finding(Flag.NEAR_DUPLICATE, "near_duplicate", "Near-duplicates", "They differ in a few words only and count nearly as copies."),
    Finding(Flag.LANGUAGE, "language", "Another language than most", "Fine where it is meant; a surprise where it is not."),
    Finding(Flag.CONTROL, "control", "Control tokens in the text", "They are read as plain text and do not end a turn.", ("drop", "fix")),
    Finding(Flag.HIDDEN, "hidden", "Invisible characters", "Nobody sees them, and the model learns them.", ("drop", "fix")),
)
BY_NAME = {finding.name: finding for finding in FINDINGS}
CHANGES = {"added": Flag.ADDED, "changed": Flag.CHANGED}
"""What a version did to its parent's rows, by the name in addresses."""


def flag_named(name: str) -> Flag | None:
    if name in CHANGES:
        return CHANGES[name]
    return BY_NAME[name].flag if name in BY_NAME else None


def findings_in(flags: int) -> list[Finding]:
    return [finding for finding in FINDINGS if flags & finding.flag]
