"""What a worker says that the models answered, held against what was asked: as far as it is, or all of it. It is never believed."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from studio.serving.models import Trial
from studio.worker.events import clean

FILE = "answers.jsonl"
"""In the order's folder of states while it is asked, and in its result: a line for each conversation that is whole."""
LARGEST = 64 << 20
"""Bytes."""

Table = list[list[dict[str, Any]]]
"""`[prompt][column] = {"turns": [...]}`; no turns where it was not asked, or not yet."""


class Turn(BaseModel):
    """What a worker may say of an answer."""

    model_config = ConfigDict(allow_inf_nan=False)

    text: str = Field(max_length=50_000)
    tokens: int = Field(ge=0, le=1_000_000)
    seconds: float = Field(ge=0)
    first: float = Field(ge=0)
    error: str = Field(max_length=1000)

    @property
    def kept(self) -> dict[str, Any]:
        return self.model_dump() | {"text": clean(self.text), "error": clean(self.error)}


class Conversation(BaseModel):
    column: int = Field(ge=0)
    prompt: int = Field(ge=0)
    turns: list[Turn] = Field(max_length=8)


def whole(trial: Trial, folder: Path) -> Table:
    """The table of a result. Raises ValueError where a line of it cannot be."""
    path, table = folder / FILE, nothing(trial)
    if path.stat().st_size > LARGEST:
        raise ValueError("the answers are larger than any that were asked for")
    with path.open("rb") as file:
        for line in file:
            put(trial, table, line)
    return table


def so_far(trial: Trial) -> Table:
    """The table as it stands on the disk while it is asked, or where it failed. What cannot be is passed over: nothing hangs on it yet."""
    table = nothing(trial)
    for line in lines_of(trial.order.checkpoints):
        with suppress(ValueError):
            put(trial, table, line)
    return table


def nothing(trial: Trial) -> Table:
    return [[{"turns": []} for _ in trial.columns] for _ in trial.prompts]


def put(trial: Trial, table: Table, line: bytes) -> None:
    """One line where it belongs; of what was not asked, nothing."""
    said = Conversation.model_validate(orjson.loads(line))
    if said.prompt < len(trial.prompts) and said.column < len(trial.columns):
        asked = len(trial.prompts[said.prompt]["turns"])
        table[said.prompt][said.column] = {"turns": [turn.kept for turn in said.turns[:asked]]}


def lines_of(folder: Path) -> Iterator[bytes]:
    """The whole lines of what somebody else writes: the last one may be half there, and in its place may stand a link or a pipe."""
    content = b""
    with suppress(OSError), open(folder, "rb", opener=plainly) as file:  # nothing was answered yet, or there is a link or a folder
        facts = os.fstat(file.fileno())
        if stat.S_ISREG(facts.st_mode) and facts.st_size <= LARGEST:
            content = file.read(facts.st_size)
    yield from content.split(b"\n")[:-1]


def plainly(folder: str, flags: int) -> int:
    """The file in it. Follows no link, and waits for nobody to write."""
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        return os.open(FILE, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    finally:
        os.close(place)
