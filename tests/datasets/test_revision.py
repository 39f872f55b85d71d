"""An edited version holds what was changed, stores nothing twice, and keeps its rows where they were in the split."""

import hashlib
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from studio.datasets import importing, revising, rows
from studio.datasets.flags import Flag
from studio.errors import UserError
from studio.training.job import Stopped
from tests.datasets.conftest import QuietJob

COUNT = 20_000


def chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def numbered(number: int) -> dict:
    noise = hashlib.sha256(str(number).encode()).hexdigest()
    return chat(f"Question {number}: what is {noise}?", f"It is the case {noise[::-1]} number {number}.")


@pytest.fixture
def revise(tmp_path):
    """Saves changes of a version as the worker does; returns (facts, folder of the new version)."""
    made = []

    def revised(parent, **changes):
        job = QuietJob(tmp_path / f"revision-{len(made)}")
        made.append(job)
        file = tmp_path / f"changes-{len(made)}.json"
        file.write_text(json.dumps(changes))
        payload = {"rows": str(parent / "rows.parquet"), "number": 1, "shape": "chat", "changes": str(file)}
        return revising.run(payload, job), job.out

    return revised


@pytest.fixture
def first(tmp_path, write):
    """An imported version of 20 rows, its facts and its folder; one row has a placeholder, one repeats another."""
    job = QuietJob(tmp_path / "first")
    lines = [numbered(number) for number in range(18)] + [chat("Hello {{name}}, who are you?", "I am {{name}}."), numbered(0)]
    facts = importing.run({"file": str(write("first.jsonl", lines)), "filename": "first.jsonl"}, job)
    return facts, job.out


def test_what_was_changed_is_in_the_new_version_and_all_else_as_it_was(first, revise) -> None:
    _, parent = first
    edited = chat("A better question?", "A better answer.")
    facts, folder = revise(parent, edited={"3": edited}, dropped=[5, 19], added=[chat("New?", "Yes, new.")])
    assert facts["changes"] == {"added": 1, "changed": 1, "dropped": 2}
    assert facts["rows"] == 19
    assert facts["reason"] == "Edited from version 1."
    found = rows.page(folder / "rows.parquet", limit=100)
    assert [row["row"] for row in found[:5]] == [numbered(0), numbered(1), numbered(2), edited, numbered(4)]
    assert found[5]["row"] == numbered(6)
    assert found[-1]["row"] == chat("New?", "Yes, new.")
    assert [row["index"] for row in rows.page(folder / "rows.parquet", flags=Flag.CHANGED)] == [3]
    assert [row["index"] for row in rows.page(folder / "rows.parquet", flags=Flag.ADDED)] == [18]
    assert [json.loads(text) for _, text in rows.drafted_page(folder / "dropped.parquet", begin=0, limit=9)] == [numbered(5), numbered(0)]
    assert [(line, json.loads(text)) for line, text in rows.drafted_page(folder / "before.parquet", begin=0, limit=9)] == [(3, numbered(3))]


def test_the_hash_is_that_of_an_import_of_the_same_rows(first, revise, write, tmp_path) -> None:
    _, parent = first
    facts, folder = revise(parent, edited={"3": chat("Better?", "Better.")}, dropped=[19], added=[chat("New?", "Yes.")])
    job = QuietJob(tmp_path / "again")
    same = importing.run({"file": str(write("same.jsonl", list(rows.read(folder / "rows.parquet")))), "filename": "same.jsonl"}, job)
    assert facts["rows_sha256"] == same["rows_sha256"]
    for name in ("statistics", "findings", "duplicates", "warnings"):
        assert facts[name] == same[name], name
    for name in ("hash", "index"):
        assert (rows.column(folder / "rows.parquet", name) == rows.column(job.out / "rows.parquet", name)).all()


def test_the_rows_of_an_older_version_as_they_are_have_its_hash(first, revise) -> None:
    facts, parent = first
    again, folder = revise(parent)
    assert again["rows_sha256"] == facts["rows_sha256"]
    assert again["changes"] == {"added": 0, "changed": 0, "dropped": 0}
    assert (rows.column(folder / "rows.parquet", "split") == rows.column(parent / "rows.parquet", "split")).all()


def test_what_was_found_in_a_row_is_found_again_and_what_was_mended_is_not(first, revise) -> None:
    _, parent = first
    facts, folder = revise(parent, dropped=[1])
    assert facts["findings"] == {"placeholder": 1, "duplicate": 1}
    assert any("{{name}}" in warning for warning in facts["warnings"])
    facts, folder = revise(folder, edited={"17": chat("Hello, who are you?", "I am Ana.")}, dropped=[18])
    assert (facts["findings"], facts["warnings"]) == ({}, [])
    assert [row["index"] for row in rows.page(folder / "rows.parquet", flags=Flag.CHANGED)] == [17]
    assert rows.page(folder / "rows.parquet", flags=Flag.ADDED) == []


def test_all_rows_with_a_finding_are_dropped_but_those_that_a_person_kept(first, revise) -> None:
    _, parent = first
    facts, folder = revise(parent, rules=[{"finding": "placeholder", "do": "drop"}, {"finding": "duplicate", "do": "drop"}], kept=[19])
    assert facts["changes"]["dropped"] == 1
    assert [row["index"] for row in rows.page(folder / "rows.parquet", flags=Flag.PLACEHOLDER)] == []
    assert rows.count(folder / "rows.parquet") == 19


def test_an_edited_row_is_not_touched_by_a_rule(first, revise) -> None:
    _, parent = first
    mine = chat("Say {{this}} as it is", "Gladly.")
    facts, folder = revise(parent, edited={"18": mine}, rules=[{"finding": "placeholder", "do": "drop"}])
    assert facts["changes"] == {"added": 0, "changed": 1, "dropped": 0}
    assert rows.page(folder / "rows.parquet", after=17, limit=1)[0]["row"] == mine


def test_at_least_one_row_is_left(first, revise) -> None:
    _, parent = first
    with pytest.raises(UserError, match=r"No row would be left\. Keep at least one\."):
        revise(parent, dropped=list(range(20)))


def test_a_stop_is_heeded(first, tmp_path) -> None:
    job = QuietJob(tmp_path / "stopped")
    job.stop_asked = True
    with pytest.raises(Stopped):
        revising.run({"rows": str(first[1] / "rows.parquet"), "number": 1, "shape": "chat"}, job)


@pytest.fixture
def large(tmp_path, write):
    job = QuietJob(tmp_path / "large")
    importing.run({"file": str(write("large.jsonl", [numbered(number) for number in range(COUNT)])), "filename": "large.jsonl"}, job)
    return job.out


def test_rows_that_did_not_change_are_stored_once_however_often_a_version_is_edited(large, revise) -> None:
    _, second = revise(large, edited={str(number): chat(f"Edited {number}?", "Yes.") for number in range(1000)}, dropped=[19_999])
    _, third = revise(second, edited={"5": chat("Once more?", "Yes.")}, added=[chat("New?", "Yes.")])
    for folder in (second, third):
        assert (folder / "rows.parquet").stat().st_size < 0.4 * (large / "rows.parquet").stat().st_size
        linked = list(folder.glob("rows-*.parquet"))
        assert {path.stat().st_ino for path in linked} <= {(each / "rows.parquet").stat().st_ino for each in (large, second)}
    assert len(list(third.glob("rows-*.parquet"))) == 2
    shutil.rmtree(large)
    shutil.rmtree(second)
    wanted = [chat(f"Edited {number}?", "Yes.") for number in range(1000)] + [numbered(number) for number in range(1000, 19_999)]
    wanted[5] = chat("Once more?", "Yes.")
    assert list(rows.read(third / "rows.parquet")) == [*wanted, chat("New?", "Yes.")]
    assert rows.page(third / "rows.parquet", query="question 17777:")[0]["index"] == 17_777


def test_a_file_of_which_little_is_left_is_not_kept_for_that(large, revise) -> None:
    _, second = revise(large, added=[chat(f"New {number}?", "Yes.") for number in range(5)])
    _, third = revise(second, dropped=[0])
    assert len(list(third.glob("rows-*.parquet"))) == 1
    assert pq.ParquetFile(third / "rows.parquet").read(columns=["row"])["row"].null_count == COUNT - 1
    assert rows.page(third / "rows.parquet", after=COUNT - 2, limit=1)[0]["row"] == chat("New 0?", "Yes.")


def test_every_row_stays_on_its_side_of_the_split(large, revise) -> None:
    before = rows.column(large / "rows.parquet", "split")
    held_back = np.flatnonzero(before == "validation")
    mine = {str(number): chat(f"Edited {number}?", "Yes.") for number in [*held_back[:20].tolist(), 1, 2, 3]}
    facts, folder = revise(
        large, edited=mine, dropped=list(range(10_000, 10_100)), added=[chat(f"New {number}?", "Yes.") for number in range(100)]
    )
    after = rows.column(folder / "rows.parquet", "split")
    assert (after[: COUNT - 100] == np.delete(before, range(10_000, 10_100))).all()
    assert facts["split"] == {"train": int((after == "train").sum()), "validation": int((after == "validation").sum())}
