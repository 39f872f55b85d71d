"""Any page of a version's rows opens, forwards and backwards, with any filter, wherever the rows' texts stand."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from studio.datasets import rows, splitting
from studio.datasets.flags import Flag

COUNT = 2500


def chat(number: int) -> dict:
    return {"messages": [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": f"Ähnlich “{number}”."}]}


@pytest.fixture
def version(tmp_path) -> Path:
    """2,500 rows; every tenth is held back, every hundredth has a placeholder."""
    folder = tmp_path / "one"
    folder.mkdir()
    texts = [json.dumps(chat(number), ensure_ascii=False, separators=(",", ":")) for number in range(COUNT)]
    with rows.RowWriter(folder / "draft.parquet") as writer:
        for number, text in enumerate(texts):
            writer.add(line=number + 1, row=text)
    numbers = np.arange(COUNT)
    rows.finish(
        folder / "draft.parquet",
        folder / "rows.parquet",
        validation=numbers % 10 == 0,
        flags=np.where(numbers % 100 == 0, np.uint32(Flag.PLACEHOLDER), np.uint32(0)),
        hashes=np.array([splitting.row_hash(hashlib.sha256(text.encode()).digest()) for text in texts], dtype=np.uint64),
    )
    return folder / "rows.parquet"


@pytest.fixture
def child(version, tmp_path) -> Path:
    """The same rows, of which every third stands in the file itself and the others in their parent's."""
    folder = tmp_path / "two"
    folder.mkdir()
    store = rows.link_store(version, folder)
    with rows.RowWriter(folder / "draft.parquet", stores=[store]) as writer:
        for number, text in enumerate(rows.texts(version)):
            if number % 3:
                writer.keep(line=number + 1, store=0, at=number)
            else:
                writer.add(line=number + 1, row=text[1])
    same = {name: rows.column(version, name) for name in ("flags", "hash")}
    held_back = rows.column(version, "split") == "validation"
    rows.finish(folder / "draft.parquet", folder / "rows.parquet", validation=held_back, flags=same["flags"], hashes=same["hash"])
    return folder / "rows.parquet"


def indices(found) -> list[int]:
    return [row["index"] for row in found]


def test_pages_go_forwards_and_backwards(version, child) -> None:
    for path in (version, child):
        assert indices(rows.page(path, after=1998, limit=3)) == [1999, 2000, 2001]
        assert indices(rows.page(path, before=1002, limit=4)) == [998, 999, 1000, 1001]
        assert indices(rows.page(path, before=2, limit=50)) == [0, 1]
        assert rows.page(path, before=0) == []
        assert rows.page(path, after=COUNT - 1) == []
        assert rows.page(path, after=1500, limit=1)[0]["row"] == chat(1501)


def test_filters_hold_in_both_directions(version, child) -> None:
    for path in (version, child):
        assert indices(rows.page(path, split="validation", after=995, limit=2)) == [1000, 1010]
        assert indices(rows.page(path, flags=Flag.PLACEHOLDER, before=1000, limit=2)) == [800, 900]
        assert indices(rows.page(path, flags=Flag.PLACEHOLDER, split="train")) == []
        assert indices(rows.page(path, wanted=np.array([3, 1200, 99999, -4]))) == [3, 1200]
        assert rows.search(path, split="validation", flags=Flag.PLACEHOLDER).total == 25


def test_a_search_finds_what_people_read_and_not_how_it_is_stored(version, child) -> None:
    for path in (version, child):
        assert indices(rows.page(path, query="question 12?")) == [12]
        assert indices(rows.page(path, query="ÄHNLICH “7”")) == [7]
        assert indices(rows.page(path, query="question 99", before=1000, limit=2)) == [998, 999]
        assert rows.page(path, query="assistant") == []
        assert rows.page(path, query='":"') == []


def test_a_long_search_stops_and_says_where(version) -> None:
    cut = rows.search(version, query="Question 2400", most=1000)
    assert (cut.rows, cut.reached) == ([], 999)
    assert indices(rows.search(version, query="Question 2400", most=1000, after=1999).rows) == [2400]
    back = rows.search(version, query="Question 12?", most=500, before=COUNT)
    assert (back.rows, back.reached) == ([], 2000)
    assert indices(rows.search(version, query="Question 12?", before=back.reached).rows) == [12]
