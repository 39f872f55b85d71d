"""A dropped file becomes rows with a frozen split, and a person is told what was found in it."""

import json
import re
import time
from unittest.mock import ANY

import numpy as np
import pyarrow.parquet as pq
import pytest

from studio.datasets import rows, splitting
from studio.datasets.peeking import peek
from studio.errors import UserError
from studio.training.job import Stopped


def pairs(number):
    return [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(number)]


def test_a_file_becomes_rows_that_can_be_paged(write, import_file, job) -> None:
    result = import_file(write("sums.jsonl", pairs(2500)))
    assert {key: result[key] for key in ("shape", "format", "file_format", "rows", "refused", "duplicates")} == {
        "shape": "chat", "format": "question and answer", "file_format": "JSONL", "rows": 2500, "refused": 0, "duplicates": 0,
    }  # fmt: skip
    assert result["split"] == {"train": 2375, "validation": 125}
    assert result["columns"] == ["question", "answer"]
    assert result["preview"][0] == {"messages": [{"role": "user", "content": "What is 0 + 1?"}, {"role": "assistant", "content": "1"}]}
    assert result["statistics"]["roles"] == {"user": 2500, "assistant": 2500}
    assert result["statistics"]["turns"]["mean"] == 2.0
    assert result["tokens"] is None
    assert (result["notices"], result["warnings"]) == ([], [])
    path = job.out / "rows.parquet"
    first = rows.page(path, limit=2)
    assert [(row["index"], row["line"], row["duplicate"]) for row in first] == [(0, 1, False), (1, 2, False)]
    assert first[0]["row"] == result["preview"][0]
    assert [row["index"] for row in rows.page(path, after=1998, limit=3)] == [1999, 2000, 2001]
    assert rows.page(path, after=2499) == []
    assert [rows.count(path), rows.count(path, split="train"), rows.count(path, split="validation")] == [2500, 2375, 125]
    held_back = rows.page(path, split="validation", limit=200)
    assert len(held_back) == 125
    assert {row["split"] for row in held_back} == {"validation"}
    assert list(rows.read(path, split="validation")) == [row["row"] for row in held_back]
    assert pq.ParquetFile(path).metadata.row_group(0).num_rows == 1000
    assert not list(job.work.iterdir())


def test_progress_is_told_in_bytes_and_a_stop_is_heeded(write, import_file, job) -> None:
    path = write("sums.jsonl", pairs(3000))
    import_file(path)
    assert (path.stat().st_size, path.stat().st_size, "bytes") in job.reported
    assert len(job.reported) > 3
    job.stop_asked = True
    with pytest.raises(Stopped):
        import_file(path)


def test_the_same_rows_have_the_same_hash_in_any_format(write, job, tmp_path) -> None:
    from studio.datasets import importing
    from tests.datasets.conftest import QuietJob

    table = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in pairs(50))
    files = [write("a.jsonl", pairs(50)), write("a.json", json.dumps(pairs(50), indent=2)), write("a.csv", table)]
    results = [importing.run({"file": str(file), "filename": file.name}, QuietJob(tmp_path / file.name[1:])) for file in files]
    assert len({result["rows_sha256"] for result in results}) == 1
    assert len({json.dumps(result["split"]) for result in results}) == 1


def test_equal_rows_stay_on_one_side_of_the_split(write, import_file, job) -> None:
    result = import_file(write("a.jsonl", pairs(100) * 3), validation_percent=20)
    assert (result["rows"], result["duplicates"]) == (300, 200)
    assert result["split"] == {"train": 240, "validation": 60}
    assert "67 % duplicates: 200 rows repeat earlier ones exactly." in result["warnings"]
    train = {json.dumps(row) for row in job.rows("train")}
    assert not train & {json.dumps(row) for row in job.rows("validation")}
    assert [row["duplicate"] for row in rows.page(job.out / "rows.parquet", after=98, limit=2)] == [False, True]


@pytest.mark.parametrize(
    ("number", "percent", "held_back"), [(1, 50, 0), (19, 1, 0), (20, 1, 1), (1000, 0, 0), (1000, 12.5, 125), (40, 50, 20)]
)
def test_the_share_of_validation_rows_is_the_one_asked_for(number, percent, held_back) -> None:
    hashes = np.arange(number, dtype=np.uint64)
    drawn = splitting.validation(hashes, percent=percent, seed=42)
    assert drawn.sum() == held_back
    assert (drawn[::-1] == splitting.validation(hashes[::-1], percent=percent, seed=42)).all()


def test_another_seed_draws_other_rows() -> None:
    hashes = np.arange(1000, dtype=np.uint64)
    one, other = (splitting.validation(hashes, percent=10, seed=seed) for seed in (1, 2))
    assert 0 < (one & other).sum() < 40


def test_rows_that_are_all_alike_stay_for_training(write, import_file) -> None:
    result = import_file(write("a.jsonl", pairs(1) * 30))
    assert result["split"] == {"train": 30, "validation": 0}
    assert "Too few different rows to hold any back for validation: the run will show no validation loss." in result["warnings"]


def test_one_row_is_a_dataset_with_a_warning(write, import_file) -> None:
    result = import_file(write("a.jsonl", pairs(1)))
    assert result["rows"] == 1
    assert result["warnings"][0] == "Only 1 row can be used. Training needs at least 10 to learn anything that lasts."


def test_refused_lines_are_all_kept_with_their_reasons(write, import_file, refusals) -> None:
    rows_without_answer = [{"question": "And?", "answer": ""}] * 7
    result = import_file(write("a.jsonl", pairs(20) + rows_without_answer))
    assert (result["rows"], result["refused"]) == (20, 7)
    assert "7 rows were refused and left out." in result["warnings"]
    assert len(refusals()) == 7
    assert refusals()[0] == {
        "line": 21,
        "column": "answer",
        "reason": "Line 21: answer is empty, there is nothing to learn.",
        "excerpt": '{"question":"And?","answer":""}',
    }


def test_the_preview_of_huge_rows_stays_small(write, import_file, job) -> None:
    result = import_file(write("a.jsonl", [{"text": "x" * 1_000_000}, {"text": "y"}]))
    assert result["preview"] == [{"text": "x" * 2000 + "…"}, {"text": "y"}]
    assert len(rows.page(job.out / "rows.parquet")[0]["row"]["text"]) == 1_000_000


def test_a_person_can_choose_to_stop_at_refused_lines(write, import_file) -> None:
    with pytest.raises(UserError, match=r"1 row was refused, and you chose to stop at that. Line 3: answer is missing"):
        import_file(write("a.jsonl", [*pairs(2), {"question": "And?"}]), refused="stop")


def test_a_file_of_refused_lines_only_shows_the_first_reasons(write, import_file) -> None:
    with pytest.raises(UserError, match=r"^None of the 2 rows can be used. Line 1: answer is empty.* Line 2: answer is empty"):
        import_file(write("a.jsonl", [{"question": "And?", "answer": ""}] * 2))
    with pytest.raises(UserError, match=r"^No row can be used. Line 1, column 2: single quotes.* So were the next 2\.$"):
        import_file(write("a.jsonl", "{'text': 1}\n" * 3))


def test_a_person_maps_columns_that_are_not_recognised(write, import_file) -> None:
    path = write("a.csv", "id,Frage,Antwort\n1,Wie?,So.\n2,Wo?,Da.\n")
    with pytest.raises(UserError, match="Found: id, Frage, Antwort") as refused:
        import_file(path)
    assert refused.value.code == "unknown_shape"
    result = import_file(path, mapping={"prompt": "Frage", "completion": "Antwort"})
    assert result["preview"][1]["messages"][1]["content"] == "Da."
    assert "Columns left out: id." in result["notices"]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("I am {{name}}.", "1 row contains unfilled placeholders such as {{name}}. Fill them in, or the model learns to say them."),
        ("Stop<|im_end|>", "1 row contains control tokens such as <|im_end|>; they will be treated as plain text."),
        ("[INST] hi", "1 row contains control tokens such as [INST]; they will be treated as plain text."),
        ("abc\u202edef", "1 row contains invisible or direction-changing characters such as \\u202E."),
        ("red \x1b[31m", "1 row contains invisible or direction-changing characters such as \\u001B."),
        (
            "key sk-abcdefghijklmnopqrstuvwxyz",
            "1 row contains what looks like a secret key (sk-a…). A model can repeat what it has learnt.",
        ),
        ("mail ana@example.org", "1 row contains e-mail addresses. A model can repeat what it has learnt."),
    ],
)
def test_what_should_be_looked_at_before_training_is_counted(write, import_file, text, warning) -> None:
    result = import_file(write("a.jsonl", [{"text": f"row {n}"} for n in range(30)] + [{"text": text}]))
    assert result["warnings"] == [warning]


def test_ordinary_text_raises_no_alarm(write, import_file) -> None:
    text = "Family 👨\u200d👩\u200d👧, “quotes”, a < b > c, {x}, sk-ip, @home, HTML </span> and \\u0000 written out."
    assert import_file(write("a.jsonl", [{"text": f"{n} {text}"} for n in range(30)]))["warnings"] == []


def test_what_was_done_with_a_file_is_told(write, import_file) -> None:
    uneven = [{"instruction": "a", "output": str(n)} | ({"source": "x"} if n % 3 else {}) for n in range(30)]
    result = import_file(write("a.csv", "\n\n".join(json.dumps(row) for row in uneven)))
    assert result["notices"] == [
        "The file is named as CSV, but holds JSONL. It was read as JSONL.",
        "29 blank lines skipped.",
        "Columns left out: source.",
        "Column source is missing in 10 rows.",
    ]


def test_what_stands_inside_messages_and_is_not_kept_is_told(write, import_file) -> None:
    messages = [{"role": "user", "content": "a", "name": "Ana", "weight": 2}, {"role": "assistant", "content": "b", "weight": 0.5}]
    notices = import_file(write("a.jsonl", [{"messages": messages}]))["notices"]
    assert notices == ["name inside messages was left out (1 time).", "weight inside messages was left out (1 time)."]


def test_identical_preference_pairs_are_counted(write, import_file) -> None:
    rows_of_pairs = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "yes" if n < 4 else "no"} for n in range(30)]
    result = import_file(write("a.jsonl", rows_of_pairs))
    assert (result["shape"], result["rows"], result["refused"]) == ("preference", 26, 4)
    assert "4 pairs are identical, they teach nothing." in result["warnings"]


def test_a_first_look_shows_rows_refusals_and_what_was_recognised(write) -> None:
    found = peek(write("a.jsonl", [*pairs(3), {"question": "And?"}, *pairs(100)]), "a.jsonl", limit=5)
    assert (found.file_format, found.detection.shape, found.detection.sure) == ("JSONL", "chat", True)
    assert len(found.rows) == 5
    assert found.records[3] == {"question": "And?"}
    assert [refusal.line for refusal in found.refusals] == [4]


def test_a_first_look_at_unknown_columns_shows_the_records_to_map(write) -> None:
    found = peek(write("a.csv", "Frage,Antwort\nWie?,So.\n"), "a.csv")
    assert (found.detection.shape, found.rows) == (None, [])
    assert found.records == [{"Frage": "Wie?", "Antwort": "So."}]
    mapped = peek(write("a.csv", "Frage,Antwort\nWie?,So.\n"), "a.csv", mapping={"prompt": "Frage", "completion": "Antwort"})
    assert mapped.rows[0]["messages"][1]["content"] == "So."


def test_a_first_look_reads_the_beginning_only(write) -> None:
    path = write("a.jsonl", b'{"text": "' + b"x" * 10_000 + b'"}\n' + b'{"text": "y"}\n' * 2_000_000)
    began = time.perf_counter()
    assert len(peek(path, "a.jsonl").rows) == 20
    assert time.perf_counter() - began < 1


def test_a_broken_file_deep_inside_is_placed(write, import_file) -> None:
    with pytest.raises(UserError, match=re.escape("The quote opened on line 2002 never closes.")):
        import_file(write("a.csv", "text,id\n" + "a,1\n" * 2000 + '"b,2\n' + "c,3\n" * 10))


def test_rows_of_megabytes_are_grouped_and_shown_a_few_at_a_time(write, import_file, job, monkeypatch) -> None:
    """Whoever looks at ten rows of a file must not load a thousand of a megabyte each."""
    monkeypatch.setattr(rows, "PAGE_SIZE", 3 << 20)
    path = write("long.jsonl", b"".join(b'{"text": "%d %s"}\n' % (number, b"x" * (1 << 20)) for number in range(20)))
    import_file(path)
    target = job.out / "rows.parquet"
    assert pq.ParquetFile(target).num_row_groups == 3
    seen: list[int] = []
    while page := rows.page(target, after=seen[-1] if seen else -1, limit=10):
        assert len(page) <= 3
        assert all(row["row"]["text"].startswith(f"{row['index']} ") for row in page)
        seen += [row["index"] for row in page]
    assert seen == list(range(20))


def test_a_file_of_refused_lines_alone_makes_no_endless_list(write, import_file, refusals, job, monkeypatch) -> None:
    assert import_file(write("bad.jsonl", b'{"text": "one that is fine"}\n' + b"x\n" * 120_000))["refused"] == 120_000
    packed = (job.out / "refusals.jsonl.gz").stat().st_size
    with rows.open_refusals(job.out / "refusals.jsonl") as file:
        assert sum(1 for _ in file) == 120_000
    assert rows.refusals(job.out / "refusals.jsonl", 2, after=119_999) == [refusals()[0] | {"line": 120_001, "reason": ANY}]
    monkeypatch.setattr(rows, "MOST_REFUSED", packed // 2)
    result = import_file(write("bad.jsonl", b'{"text": "one that is fine"}\n' + b"x\n" * 120_000))
    assert result["refused"] == 120_000
    (listed,) = re.findall(r"The first ([0-9,]+) are listed\.", " ".join(result["warnings"]))
    with rows.open_refusals(job.out / "refusals.jsonl") as file:
        assert sum(1 for _ in file) == int(listed.replace(",", ""))
    assert packed // 2 <= (job.out / "refusals.jsonl.gz").stat().st_size < packed


def test_a_split_goes_by_columns_of_the_file(write, import_file, job) -> None:
    lines = [{"text": f"row {n}", "topic": "rare" if n % 10 == 0 else "common", "thread": n // 4} for n in range(200)]
    rules = {"stratify": "topic", "together": "thread"}
    result = import_file(write("a.jsonl", lines), validation_percent=20, rules=rules)
    assert sorted((stratum["name"], stratum["train"] + stratum["validation"]) for stratum in result["strata"]) == [
        ("common", 180),
        ("rare", 20),
    ]
    held_back = {row["index"] // 4 for row in rows.page(job.out / "rows.parquet", split="validation", limit=200)}
    trained = {row["index"] // 4 for row in rows.page(job.out / "rows.parquet", split="train", limit=200)}
    assert held_back
    assert not held_back & trained


def test_a_split_by_a_column_that_is_not_there_is_refused_with_those_that_are(write, import_file) -> None:
    for rule in ("stratify", "together"):
        with pytest.raises(UserError) as refused:
            import_file(write("a.jsonl", pairs(30)), rules={rule: "topic"})
        sentence = 'The split cannot go by column "topic", it is not in the file. Available: question, answer.'
        assert (refused.value.message, refused.value.fields) == (sentence, {f"rules.{rule}": sentence})
