"""The table of a trial: a row for each prompt, a column for each model, and what each column took. Reads the row, decides nothing."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any
from urllib.parse import urlencode

import orjson
from django.urls import reverse

from studio.cells import cell
from studio.serving.models import Trial
from studio.serving.trial_answers import Table, so_far
from studio.serving.trials import target_of

LINKED = 4000
"""Characters of a prompt that a link to the playground carries."""
SHORT = 300
"""Characters of an answer that are shown before somebody asks for all of it."""


@dataclass(frozen=True)
class Summary:
    """What one column took over all its answers."""

    column: dict[str, str]
    number: int
    answered: int
    failed: int
    missing: int
    tokens: float | None
    """Of an answer, on average; so are seconds and words."""
    seconds: float | None
    words: float | None
    speed: float | None
    """Tokens per second while it writes."""
    first: float | None
    """Seconds to the first token: half of the answers began sooner."""
    compared: str
    """How long its answers are beside those of the first column: "12 % longer". Empty for that one itself."""


@dataclass(frozen=True)
class Cell:
    """What one model answered to one question."""

    text: str
    tokens: int
    seconds: float
    first: float
    error: str
    words: int
    compared: str
    """How long it is beside that of the first column."""
    there: bool
    to_come: bool = False
    """Its conversation has not been answered yet; else what failed before it ended it."""

    @property
    def is_long(self) -> bool:
        return len(self.text) > SHORT + 80

    @property
    def short(self) -> str:
        return f"{self.text[:SHORT].rstrip()}…"

    @property
    def speed(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None


@dataclass(frozen=True)
class Row:
    number: int
    category: str
    turns: list[tuple[str, list[tuple[dict[str, str], Cell]]]]
    """Each question with every column and what it answered."""
    link: str
    """To the playground with the same columns and this prompt."""


def table_of(trial: Trial) -> Table:
    """What is kept; before it has ended, and where it failed, what has been answered so far."""
    if trial.answers:
        return trial.answers
    found = so_far(trial)
    if trial.order.checkpoints.exists():
        return found
    # It may just have ended: what it had answered lies there no more.
    kept: Table | None = Trial._base_manager.values_list("answers", flat=True).get(pk=trial.pk)
    return kept or found


def has_answers(table: Table) -> bool:
    return any(place["turns"] for row in table for place in row)


def summaries(trial: Trial, table: Table) -> list[Summary]:
    asked, found = sum(len(prompt["turns"]) for prompt in trial.prompts), list[Summary]()
    for number, column in enumerate(trial.columns):
        turns = [turn for row in table for turn in row[number]["turns"]]
        good = [turn for turn in turns if not turn["error"]]
        seconds = sum(turn["seconds"] for turn in good)
        words = mean([len(turn["text"].split()) for turn in good])
        first = found[0].words if found else None
        found.append(
            Summary(
                column=column,
                number=number,
                answered=len(good),
                failed=len(turns) - len(good),
                missing=asked - len(turns),
                tokens=mean([turn["tokens"] for turn in good]),
                seconds=mean([turn["seconds"] for turn in good]),
                words=words,
                speed=sum(turn["tokens"] for turn in good) / seconds if seconds else None,
                first=median(turn["first"] for turn in good) if good else None,
                compared=against(words, first) if found else "",
            )
        )
    return found


def mean(numbers: list[float]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None


def against(own: float | None, first: float | None) -> str:
    """How much longer one text is than another, in words that people read."""
    if own is None or not first:
        return ""
    percent = round((own / first - 1) * 100)
    return "as long" if percent == 0 else f"{abs(percent):,}\u00a0% {'longer' if percent > 0 else 'shorter'}"


def places(trial: Trial, table: Table, *, category: str = "", words: list[str] | None = None) -> list[int]:
    """Indices of the prompts of a category that hold each of the words, in a question or an answer."""
    return [
        place
        for place, prompt in enumerate(trial.prompts)
        if category in ("", prompt["category"]) and (not words or holds(prompt, table[place], words))
    ]


def holds(prompt: dict[str, Any], row: list[dict[str, Any]], words: list[str]) -> bool:
    texts = [*prompt["turns"], *(turn["text"] for cell in row for turn in cell["turns"])]
    whole = "\n".join(texts).lower()
    return all(word in whole for word in words)


def row_of(trial: Trial, table: Table, place: int) -> Row:
    prompt, row = trial.prompts[place], table[place]
    turns = [(question, list(zip(trial.columns, cells(row, turn), strict=True))) for turn, question in enumerate(prompt["turns"])]
    return Row(place + 1, prompt["category"], turns, playground_link(trial, prompt["turns"][0]))


def cells(row: list[dict[str, Any]], turn: int) -> list[Cell]:
    found: list[Cell] = []
    for place in row:
        said = place["turns"][turn] if turn < len(place["turns"]) else None
        if said is None:
            found.append(Cell("", 0, 0.0, 0.0, "", 0, "", there=False, to_come=not place["turns"]))
            continue
        words = len(said["text"].split())
        compared = against(words, found[0].words) if found and found[0].there and not said["error"] else ""
        found.append(Cell(said["text"], said["tokens"], said["seconds"], said["first"], said["error"], words, compared, True))
    return found


def playground_link(trial: Trial, question: str) -> str:
    named = [("column", target_of(column)) for column in trial.columns]
    return f"{reverse('serving:playground')}?{urlencode([*named, ('prompt', question[:LINKED])])}"


def as_jsonl(trial: Trial) -> Iterator[bytes]:
    table = table_of(trial)
    for place, prompt in enumerate(trial.prompts):
        answers = [column | cell for column, cell in zip(trial.columns, table[place], strict=True)]
        yield orjson.dumps({"number": place + 1, **prompt, "answers": answers}) + b"\n"


def as_csv(trial: Trial) -> Iterator[bytes]:
    """A line for each question, with four columns for each model."""
    heads = ["number", "category", "turn", "question"]
    for column in trial.columns:
        title = column["title"]
        heads += [title, f"{title}: tokens", f"{title}: seconds", f"{title}: seconds to the first token"]
    yield written([cell(head) for head in heads])
    table = table_of(trial)
    for place in range(len(trial.prompts)):
        row = row_of(trial, table, place)
        for turn, (question, said) in enumerate(row.turns, start=1):
            line: list[Any] = [row.number, cell(row.category), turn, cell(question)]
            for _, each in said:
                line += [cell(each.text or each.error), each.tokens, each.seconds, each.first] if each.there else ["", "", "", ""]
            yield written(line)


def written(values: list[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue().encode()
