"""Rows to learn from: a slice of the real alpaca_en_demo.json where a copy of shared/ lies beside the repository, else made-up ones."""

import json
from pathlib import Path

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpaca_en_demo.json"
WORDS = (
    ("cold", "hot"), ("early", "late"), ("full", "empty"), ("heavy", "light"), ("high", "low"), ("kind", "cruel"),
    ("loud", "quiet"), ("old", "young"), ("rich", "poor"), ("sharp", "blunt"), ("slow", "fast"), ("wet", "dry"),
)  # fmt: skip
CAPITALS = (
    ("Austria", "Vienna"), ("Canada", "Ottawa"), ("Denmark", "Copenhagen"), ("Egypt", "Cairo"), ("Ireland", "Dublin"), ("Japan", "Tokyo"),
    ("Kenya", "Nairobi"), ("Norway", "Oslo"), ("Peru", "Lima"), ("Poland", "Warsaw"), ("Portugal", "Lisbon"), ("Spain", "Madrid"),
)  # fmt: skip
Row = dict[str, str]


def alpaca_rows(count: int) -> list[Row]:
    """The first `count` rows, the same ones in every session."""
    rows = json.loads(REAL.read_text()) if REAL.exists() else made_up_rows()
    assert len(rows) >= count
    return rows[:count]


def made_up_rows() -> list[Row]:
    """120 instructions of several kinds and lengths, with and without an input."""
    rows = [_row(f"What is the opposite of {one}?", "", f"The opposite of {one} is {other}.") for one, other in WORDS]
    rows += [_row("Name the capital of the country.", country, f"The capital of {country} is {city}.") for country, city in CAPITALS]
    rows += [_row(f"Add {n} and {n * 7}.", "", f"{n} + {n * 7} = {n * 8}.") for n in range(1, 37)]
    rows += [_row("Turn the sentence into a question.", f"{city} is wet.", f"Is {city} wet?") for _, city in CAPITALS]
    rows += [_row(f"Write {n} short sentences about {city}.", "", _about(city, n)) for _, city in CAPITALS for n in (2, 4, 6, 8)]
    return rows


def _row(instruction: str, question: str, output: str) -> Row:
    return {"instruction": instruction, "input": question, "output": output}


def _about(city: str, count: int) -> str:
    return " ".join(f"On day {n} I walked through {city} and found street number {n * 3}." for n in range(1, count + 1))
