"""What a page shows of a finding: a few of its rows in a line each, with secrets and personal data masked."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from studio.datasets import personal
from studio.datasets.findings import CONTROL_TOKENS, HIDDEN, answer_of, placeholders, texts_of
from studio.datasets.flags import Flag
from studio.datasets.readers.lines import visible
from studio.rowfile import Texts, stores

SHOWN = 3
"""Rows of each finding."""
BEFORE, AFTER = 40, 80
LONGEST = 160
LOOKED_AT = 50_000
"""Characters of a text."""


def example(row: dict[str, Any], flag: Flag) -> str:
    """One line about a row: where the flag's reason stands, or its question and answer."""
    for text in texts_of(row):
        if (place := _place(text[:LOOKED_AT], flag)) is not None:
            return _line(text[:LOOKED_AT], place)
    if "text" in row:
        return _line(row["text"][:LOOKED_AT], 0)
    messages = row["messages"] if "messages" in row else row["prompt"]
    asked = next((message.get("content") or "" for message in reversed(messages) if message["role"] == "user"), "")
    return f"{_line(asked[:LOOKED_AT], 0, LONGEST // 2)} → {_line(answer_of(row)[:LOOKED_AT], 0, LONGEST // 2)}"


def rows_at(rows_path: Path, indices: npt.NDArray[np.int64]) -> dict[int, dict[str, Any]]:
    """The canonical rows with these indices (ascending), read from the row groups that hold them."""
    found: dict[int, dict[str, Any]] = {}
    with pq.ParquetFile(rows_path) as file:
        source, end = Texts(rows_path.parent, stores(file)), 0
        for group in range(file.num_row_groups):
            first, end = end, end + file.metadata.row_group(group).num_rows
            here = indices[np.searchsorted(indices, first) : np.searchsorted(indices, end)]
            if len(here):
                table = file.read_row_group(group, columns=["store", "at", "row"]).take(pa.array(here - first))
                found |= zip(here.tolist(), map(orjson.loads, source.fill(table)), strict=True)
    return found


def masked(text: str) -> str:
    """The text without what nobody should read over a shoulder."""
    for find in (personal.secrets, personal.personal):
        for found in reversed(list(find(text))):
            text = text[: found.begin] + personal.masked(text, found) + text[found.end :]
    return text


def _place(text: str, flag: Flag) -> int | None:
    if flag in (Flag.SECRET, Flag.PERSONAL):
        found = next(personal.secrets(text) if flag is Flag.SECRET else personal.personal(text), None)
        return found.begin if found else None
    if flag is Flag.PLACEHOLDER:
        return next((match.start() for match in placeholders(text)), None)
    pattern = {Flag.CONTROL: CONTROL_TOKENS, Flag.HIDDEN: HIDDEN}.get(flag)
    match = pattern.search(text) if pattern else None
    return match.start() if match else None


def _line(text: str, place: int, longest: int = LONGEST) -> str:
    """A piece of the text around a place. What is before the place is masked first, so that it does not move what follows."""
    before, after = masked(text[:place]), masked(text[place:])
    begin = before[-BEFORE:] if place else ""
    shown = visible(" ".join((begin + after[: longest + 1]).split()))
    lead = "…" if len(before) > len(begin) else ""
    return f"{lead}{shown[:longest]}{'…' if len(shown) > longest else ''}"
