"""What a person chose about a file before it is imported, out of the form of templates/datasets/preview.html."""

from dataclasses import dataclass, field
from typing import Any

from django.http import QueryDict

from studio.datasets.pages.frame import MEANINGS
from studio.datasets.services import Upload as Wanted
from studio.errors import UserError

MOST_COLUMNS = 50
LONGEST_NAME = 400


@dataclass
class Choices:
    reading: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    mapping: dict[str, str] = field(default_factory=dict)
    by_hand: bool = False
    """Whether a person says what the columns mean."""
    typed: dict[str, str] = field(default_factory=dict)
    """The rest, as it was typed: name, validation_percent, seed."""

    def wanted(self, *, filename: str, size: int) -> Wanted:
        """Raises UserError for what cannot be meant."""
        if self.by_hand and not self.mapping:
            raise UserError("Say what at least one column means.", fields={"mapping": "Choose the question and the answer, or the text."})
        return Wanted(
            filename=filename,
            chunks=(),
            size=size,
            mapping=self.mapping,
            reading=self.reading,
            rules=self.rules,
            validation_percent=number(self.typed["validation_percent"], "validation_percent", "Must be from 0 to 50 per cent."),
            seed=int(number(self.typed["seed"], "seed", "Seed must be 0 to 4 294 967 295.")),
        )


def chosen(data: QueryDict) -> Choices:
    """Raises UserError where two columns were given one meaning."""
    reading = {name: str(data[name]).strip() for name in ("encoding", "sheet") if str(data.get(name, "")).strip()}
    if data.get("refused") == "stop":
        reading["refused"] = "stop"
    rules: dict[str, Any] = {name: data[name] for name in ("stratify", "together") if data.get(name)}
    if data.get("advanced") and not data.get("near_duplicates"):  # an unticked box sends nothing
        rules["near_duplicates"] = False
    by_hand = data.get("columns") == "mine"
    defaults = {"name": "", "validation_percent": "5", "seed": "42"}
    typed = {name: str(data.get(name, default)).strip() for name, default in defaults.items()}
    return Choices(reading=reading, rules=rules, mapping=mapped(data) if by_hand else {}, by_hand=by_hand, typed=typed)


def mapped(data: QueryDict) -> dict[str, str]:
    """{field: column}. The names of the columns stand beside what they mean."""
    pairs = [(data.get(f"column_{number}", ""), data.get(f"column_{number}_name", "")) for number in range(MOST_COLUMNS)]
    named = [(meaning, name[:LONGEST_NAME]) for meaning, name in pairs if meaning in MEANINGS and name]
    if len({meaning for meaning, _ in named}) < len(named):
        raise UserError("Two columns have the same meaning.", fields={"mapping": "Give each meaning to one column."})
    return dict(named)


def number(typed: str, name: str, sentence: str) -> float:
    plain = typed.replace(".", "", 1) if name != "seed" else typed
    if not (plain.isascii() and plain.isdigit() and len(plain) < 16):
        raise UserError("Some values cannot be used.", fields={name: sentence})
    return float(typed)
