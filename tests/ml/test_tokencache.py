"""Rows are read as tokens once: the next run on the same rows gets the very same arrays, and anything else gets its own."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from studio.ml import tokencache  # noqa: E402
from studio.ml.batches import TokenRow  # noqa: E402
from studio.ml.preference import PairRow  # noqa: E402
from studio.ml.rows import read_rows  # noqa: E402
from studio.ml.tokens import load_tokenizer  # noqa: E402
from tests.ml.test_preference import PAIRS  # noqa: E402
from tests.ml.test_training import ROWS, RecordingJob, chat  # noqa: E402
from training_plugins.peft_lora import PeftLora  # noqa: E402

WEIGHED = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 2.0}]}
MIXED = [*ROWS, WEIGHED, chat("long " * 60, "never reached"), chat("What?", "long " * 60)]


@pytest.fixture
def read(tmp_path: Path, tiny_model: Path) -> Any:
    """`read(rows, max_length=…)` reads rows as a run does, and tells whether the tokenizer was asked for it."""

    def reading(rows: Any = MIXED, shape: Any = "chat", template: str = "", **settings: Any) -> tuple[Any, bool, list[str]]:
        job = RecordingJob(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", tiny_model, rows, shape=shape)
        job.cache = tmp_path / "cache"
        tokenizer = load_tokenizer(tiny_model)
        tokenizer.chat_template += template
        before = len(list(job.cache.glob("*"))) if job.cache.exists() else 0
        found = read_rows(job, tokenizer, PeftLora.Config(**{"max_length": 48} | settings))
        return found, len(list(job.cache.glob("*"))) > before, [note["text"] for note in job.all("note")]

    return reading


def contents(splits: Any) -> list[list[bytes]]:
    return [[row.content() for row in split] for split in splits]


@pytest.mark.parametrize(("rows", "shape"), [(MIXED, "chat"), ([{"text": f"line {n}"} for n in range(20)], "text"), (PAIRS, "preference")])
def test_the_second_reading_is_the_first_to_the_byte(read: Any, rows: Any, shape: str) -> None:
    first, asked, notes = read(rows, shape)
    second, asked_again, notes_again = read(rows, shape)
    assert asked and not asked_again
    assert contents(first) == contents(second) and notes == notes_again
    kind = PairRow if shape == "preference" else TokenRow
    assert all(isinstance(row, kind) for split in second for row in split)


def test_what_is_cut_left_out_or_weighed_is_so_the_second_time(read: Any) -> None:
    read()
    (train, _), asked, notes = read()
    assert not asked and len(notes) == 2 and "of 23 rows were longer" in notes[0] and "1 of 23 rows were left out" in notes[1]
    weights = [row.weights for row in train if row.weights is not None]
    assert len(weights) == 1 and set(weights[0].tolist()) == {0.0, 2.0}


def test_other_rows_settings_or_templates_are_read_anew(read: Any) -> None:
    asked = [
        read()[1],
        read(MIXED[:-1])[1],
        read(MIXED[::-1])[1],
        read(max_length=40)[1],
        read(learn_from="last_answer")[1],
        read(template=" ")[1],
        read()[1],
    ]
    assert asked == [True, True, True, True, True, True, False]


def test_a_damaged_file_is_made_anew(read: Any, tmp_path: Path) -> None:
    first = read()[0]
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:-7], b"\xff" * len(whole)):
        file.write_bytes(damaged)
        assert contents(read()[0]) == contents(first)
        assert file.read_bytes() == whole


def test_arrays_that_do_not_belong_together_are_not_believed(read: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    read()
    (file,) = (tmp_path / "cache").iterdir()
    arrays = load_file(file)
    for name in ("train.lengths", "train.rows", "train.supervised"):
        save_file(arrays | {name: arrays[name][:-1].copy()}, file)
        assert tokencache.load(tmp_path / "cache", file.stem) is None


def test_only_the_newest_files_are_kept(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokencache, "MOST_FILES", 2)
    for length in (30, 40, 48):
        read(max_length=length)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not read(max_length=48)[1]
