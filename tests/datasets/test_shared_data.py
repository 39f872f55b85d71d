"""Data as the field publishes it: the demo files of other tools come in with the right shape and every row counted.

The files themselves are not in the repository. Where they lie beside it they are read; look-alikes with the same traps always are.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from studio.datasets import importing
from studio.datasets.readers import Line, open_file
from studio.errors import UserError
from tests.datasets.conftest import QuietJob

BESIDE = Path(settings.ROOT).parent / "shared" / "data"


def words(chance: random.Random, number: int) -> str:
    return " ".join(
        chance.choice(["the", "answer", "is", "long", "and", "clear", "a", "crepe", "needs", "flour", "eggs"]) for _ in range(number)
    )


def alpaca() -> list[dict[str, str]]:
    """999 rows: most without an input, 14 of them exact repetitions of earlier ones."""
    chance = random.Random(1)
    rows = [
        {"instruction": f"Task {n}: {words(chance, 8)}", "input": words(chance, 20) if n % 3 == 0 else "", "output": words(chance, 60)}
        for n in range(985)
    ]
    return rows + [dict(rows[n * 50]) for n in range(14)]


def identity() -> list[dict[str, str]]:
    """91 rows, in 85 of which a name has still to be filled in."""
    chance = random.Random(2)
    named = [f"I am {{{{name}}}}, made by {{{{author}}}}: {words(chance, 9)}" for _ in range(85)]
    plain = [words(chance, 9) for _ in range(6)]
    return [{"instruction": f"Who are you, {n}?", "input": "", "output": output} for n, output in enumerate(named + plain)]


def preferences() -> list[dict[str, Any]]:
    """300 pairs after ShareGPT turns of one to fourteen messages, 80 of them with a system prompt; five are repeated."""
    chance = random.Random(3)
    rows = []
    for number in range(295):
        system = [{"from": "system", "value": f"Be brief. {number}"}] if number < 80 else []
        turns = [{"from": ("human", "gpt")[n % 2], "value": f"{number} {words(chance, 12)}"} for n in range(1 + 2 * (number % 7))]
        answers = {name: {"from": "gpt", "value": f"{name} {words(chance, 30)}"} for name in ("chosen", "rejected")}
        rows.append({"conversations": system + turns, **answers})
    return rows + rows[:5]


def articles() -> str:
    """30 lines, the longest of more than 100,000 characters, about 1 MB together."""
    chance = random.Random(4)
    return "".join(f"Article {n}. {words(chance, 22_000 if n == 7 else 6_000)}\n" for n in range(30))


def questions() -> list[dict[str, Any]]:
    """80 prompts of two turns without answers; some have a reference."""
    rows = [{"question_id": 81 + n, "category": "writing", "turns": [f"Write a text {n}.", "Write it again."]} for n in range(80)]
    return [row | ({"reference": ["", "x"]} if n % 3 == 0 else {}) for n, row in enumerate(rows)]


ALIKE: dict[str, Callable[[], str]] = {
    "alpaca_en_demo.json": lambda: json.dumps(alpaca(), indent=2, ensure_ascii=False),
    "identity.json": lambda: json.dumps(identity(), indent=2, ensure_ascii=False),
    "dpo_en_demo.json": lambda: json.dumps(preferences(), indent=2, ensure_ascii=False),
    "wiki_demo.txt": articles,
    "mt_bench_question.jsonl": lambda: "".join(json.dumps(row) + "\n" for row in questions()),
    "memory_reference.json": lambda: json.dumps({"note": "Published figures.", "rows": [{"gb": 16}] * 20}, indent=1),
}


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], list[Path]]:
    """The look-alike of a file, and the file itself where it lies beside the repository."""

    def found(name: str) -> list[Path]:
        path = tmp_path / name
        path.write_text(ALIKE[name]())
        return [path, *([BESIDE / name] if (BESIDE / name).exists() else [])]

    return found


def imported(path: Path, tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / f"attempt-{path.parent.name}"
    return importing.run({"file": str(path), "filename": path.name}, QuietJob(folder))


@pytest.mark.parametrize(
    ("name", "shape", "spelling", "rows", "duplicates", "split"),
    [
        ("alpaca_en_demo.json", "chat", "Alpaca", 999, 14, {"train": 949, "validation": 50}),
        ("identity.json", "chat", "Alpaca", 91, 0, {"train": 86, "validation": 5}),
        ("dpo_en_demo.json", "preference", "ShareGPT preference", 300, 5, {"train": 285, "validation": 15}),
        ("wiki_demo.txt", "text", "text", 30, 0, {"train": 28, "validation": 2}),
    ],
)
def test_a_published_file_comes_in_whole(files, tmp_path, name, shape, spelling, rows, duplicates, split) -> None:
    for path in files(name):
        result = imported(path, tmp_path)
        found = {key: result[key] for key in ("shape", "format", "rows", "refused", "duplicates")}
        assert found == {"shape": shape, "format": spelling, "rows": rows, "refused": 0, "duplicates": duplicates}
        assert sum(result["split"].values()) == rows
        assert abs(result["split"]["validation"] - split["validation"]) <= 1  # near-duplicates may not straddle


def test_placeholders_that_nobody_filled_in_are_warned_of(files, tmp_path) -> None:
    for path in files("identity.json"):
        result = imported(path, tmp_path)
        assert result["findings"]["placeholder"] == 85
        assert result["placeholders"] == ["name", "author"]
        assert any(warning.startswith("85 rows contain unfilled placeholders such as {{name}}.") for warning in result["warnings"])


def test_long_lines_stay_whole(files, tmp_path) -> None:
    for path in files("wiki_demo.txt"):
        characters = imported(path, tmp_path)["statistics"]["characters"]
        assert characters["largest"] > 100_000
        assert characters["total"] > 900_000


@pytest.mark.parametrize(
    ("name", "records", "sentence"),
    [
        ("mt_bench_question.jsonl", 80, "Found: question_id, category, turns, reference. Need messages, or prompt + completion, or text."),
        ("memory_reference.json", 1, "Found: note, rows. Need messages, or prompt + completion, or text."),
    ],
)
def test_what_holds_no_answers_is_refused_with_what_was_found(files, tmp_path, name, records, sentence) -> None:
    for path in files(name):
        lines = list(open_file(path, filename=name).lines)
        assert len(lines) == records
        assert all(isinstance(line, Line) for line in lines)
        with pytest.raises(UserError) as refused:
            imported(path, tmp_path)
        assert (refused.value.message, refused.value.code) == (sentence, "unknown_shape")
