"""Lines that are taken many at once become the same rows, hashes, counts and refusals as those that are taken one by one."""

import json
import random

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.datasets import fast_lane, importing, rows
from studio.datasets.readers import Line, Refusal, open_file
from studio.datasets.readers.blocks import BLOCK, blocks
from studio.errors import UserError
from studio.training.job import Stopped
from tests.datasets.conftest import QuietJob
from tests.datasets.corpus import LINES


def told(intake, draft, refusals):
    """All that an intake remembers, and the rows that it wrote."""
    return {
        "content": intake.content.hexdigest(),
        "hashes": list(intake.hashes),
        "turns": list(intake.findings.turns),
        "characters": list(intake.findings.characters),
        "statistics": intake.findings.statistics(),
        "columns": list(intake.seen.items()),
        "counts": [intake.records, intake.refused, intake.identical, intake.reading.blank],
        "passed over": intake.converter.passed_over,
        "preview": intake.preview,
        "notices": intake.notices(),
        "refusals": [refusal.as_dict() for refusal in refusals],
        "rows": pq.read_table(draft).to_pylist(),
    }


def both_ways(folder, path, *, mapping=None):
    """(taken one by one, taken by blocks, lines that were proven)."""
    found = []
    lane = None
    proven_lines = 0
    for way in ("one by one", "by blocks"):
        reading = open_file(path, filename=path.name, encoding="utf-8")
        first, detection = importing.begin(reading, mapping=mapping or {})
        refusals: list[Refusal] = []
        draft = folder / f"{way}.parquet"
        with rows.RowWriter(draft) as writer:
            if way == "one by one":
                intake = importing.Intake(reading, detection)
                for outcome in [*first, *reading.lines]:
                    if isinstance(taken := intake.take(outcome, writer), Refusal):
                        refusals.append(taken)
            else:
                lane = fast_lane.lane_for(detection, [line.columns for line in first if isinstance(line, Line)])
                reading = open_file(path, filename=path.name, encoding="utf-8")
                intake = importing.Intake(reading, detection)
                for block in blocks(reading) if lane else ():
                    proven = fast_lane.prove(lane, block)
                    proven_lines += int((proven.same | proven.loose).sum())
                    intake.take_block(proven, writer, refused=refusals.append)
        found.append(told(intake, draft, refusals))
    return (*found, proven_lines) if lane else (found[0], found[0], 0)


def said(role, content, **more):
    return {"role": role, "content": content} | more


def chats(number):
    return [
        {"messages": [said("system", "Be kind.")] * (n % 3 == 0) + [said("user", f"{n} + 1?"), said("assistant", f"It is {n + 1}. ☺")]}
        for n in range(number)
    ]


def shared(number):
    return [{"conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": "So.\nYes."}] * 2} for n in range(number)]


SHAPES = {
    "chat": chats(30),
    "ShareGPT": shared(30),
    "ShareGPT with our words": [{"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]}] * 30,
    "text": [{"text": f'"{n}" \\ \t \u007f é'} for n in range(30)],
    "prompt and completion": [{"prompt": f"{n}", "completion": "Yes, \\n."} for n in range(30)],
    "Alpaca": [{"instruction": f"{n}", "input": "of this" * (n % 2), "output": "So."} for n in range(30)],
    "Dolly": [{"instruction": f"{n}", "context": '", "response": "' * (n % 2), "response": "So."} for n in range(30)],
}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["tight", "wide"])
@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "as it is"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_every_shape_are_the_same(tmp_path, write, shape, escaped, separators) -> None:
    lines = [json.dumps(row, ensure_ascii=escaped, separators=separators) for row in SHAPES[shape]]
    path = write("a.jsonl", "\n".join(lines))
    one_by_one, by_blocks, proven = both_ways(tmp_path, path)
    assert by_blocks == one_by_one
    assert len(one_by_one["rows"]) == 30
    assert proven == 30


def test_a_column_that_a_person_named_is_taken_by_blocks_too(tmp_path, write) -> None:
    path = write("a.jsonl", [{"Frage": f"{n}?", "Antwort": "So."} for n in range(20)])
    one_by_one, by_blocks, proven = both_ways(tmp_path, path, mapping={"prompt": "Frage", "completion": "Antwort"})
    assert by_blocks == one_by_one
    assert proven == 20


ODD = [
    *(content.rstrip(b"\n") for _, name, content, _ in LINES if name.endswith(".jsonl") and len(content) < 3000 and b"\x92" not in content),
    b"",
    b"   ",
    b'{"messages": []}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " \\n\\t"}]}',
    b'{"messages": [{"role": "user", "content": "\xe2\x80\x83"}, {"role": "assistant", "content": "b"}]}',
    b'{"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "content": "c"}]}',
    b'{"messages": [{"content": "a", "role": "user"}, {"role": "assistant", "content": "b"}]}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": 7}',
    b'{"id": 7, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    b'{"messages":[{"role": "user", "content": "a"},{"role":"assistant", "content":"b"}] }',
    b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00 \\u00e4"}, {"role": "assistant", "content": "\\/"}]}',
    b'{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "b"}]}',
    b'{"messages": [{"role": "user", "content": "a\\u0000"}, {"role": "assistant", "content": "b"}]}',
    b'{"messages": [{"role": "user", "content": "\\u001b\\u000a\\b"}, {"role": "assistant", "content": "\\\\\\\\u0041"}]}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\\\\\" {\\"role\\": \\"x"}]}',
    b'{"messages": [{"role": "user", "content": "\\u3000"}, {"role": "assistant", "content": "\\u65e5\\u672c"}]}',
    b'{"messages": [{"role": "user", "content": "{\\"r"}, {"role": "assistant", "content": "{"}]}',
    b'{"messages": [{"role": "user", "content": "a\x7f"}, {"role": "assistant", "content": "\x7f"}]}',
    b'{"messages": [{"role": "user", "content": "\xf0\x9f\x98\x80\xc2\xa0"}, {"role": "assistant", "content": "\xc3\xa9"}]}',
    b'{"text": "another shape"}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"id": "call00001", "type": "function", '
    b'"function": {"name": "look", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "call00001", "content": "b"}, '
    b'{"role": "assistant", "content": "c"}]}',
]


@pytest.mark.parametrize("odd", range(len(ODD)))
def test_an_odd_line_among_others_is_judged_as_it_is_alone(tmp_path, write, odd) -> None:
    good = [json.dumps(row).encode() for row in chats(8)]
    path = write("a.jsonl", b"\n".join([*good, ODD[odd], *good, ODD[odd], ODD[odd]]))
    one_by_one, by_blocks, proven = both_ways(tmp_path, path)
    assert by_blocks == one_by_one
    assert proven >= 16


def test_odd_lines_all_at_once_are_told_in_their_order(tmp_path, write) -> None:
    good = [json.dumps(row).encode() for row in chats(50)]
    lines = good[:10] + ODD + good + ODD
    path = write("a.jsonl", b"\n".join(lines) + b"\n")
    one_by_one, by_blocks, _ = both_ways(tmp_path, path)
    assert by_blocks == one_by_one
    numbers = [refusal["line"] for refusal in by_blocks["refusals"]]
    assert numbers == sorted(numbers)
    assert len(numbers) > 40


def test_a_line_that_is_not_utf8_is_told_where_it_stands(job, write) -> None:
    lines = [orjson.dumps(row) for row in chats(200)]
    lines[150] = lines[150].replace(b"It", b"\x92t")
    with pytest.raises(UserError, match=r"Line 151, byte \d+: 0x92 is not UTF-8"):
        importing.run({"file": str(write("a.jsonl", b"\n".join(lines))), "filename": "a.jsonl"}, job)


def test_lines_without_end_and_over_the_limit_keep_their_numbers(tmp_path, write) -> None:
    good = [orjson.dumps(row) for row in chats(20)]
    endless = b'{"messages": "' + b"x" * (9 << 20)
    path = write("a.jsonl", b"\n".join([*good, endless, *good, endless[: 5 << 20], good[0], b"y" * (4 << 20), endless]))
    one_by_one, by_blocks, _ = both_ways(tmp_path, path)
    assert by_blocks == one_by_one
    assert [refusal["line"] for refusal in by_blocks["refusals"]] == [21, 42, 44, 45]


def test_a_file_of_many_blocks_is_taken_whole_and_in_groups(tmp_path, write, job) -> None:
    many = [{"messages": [said("user", f"{n}" * 20), said("assistant", "Yes. " * 60)]} for n in range(12_000)]
    path = write("a.jsonl", many)
    assert path.stat().st_size > 2 * BLOCK
    one_by_one, by_blocks, proven = both_ways(tmp_path, path)
    assert by_blocks == one_by_one
    assert proven == 12_000
    result = importing.run({"file": str(path), "filename": "a.jsonl"}, job)
    assert (result["rows"], result["rows_sha256"]) == (12_000, one_by_one["content"])
    file = pq.ParquetFile(job.out / "rows.parquet")
    assert {file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)} == {1000}
    assert [row["line"] for row in rows.page(job.out / "rows.parquet", after=11_997)] == [11_999, 12_000]


def test_other_encodings_and_line_ends_are_taken_by_blocks(tmp_path, write) -> None:
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in chats(50)) + "\r\n\r\n"
    for name, content in (("a.jsonl", b"\xef\xbb\xbf" + text.encode()), ("b.jsonl", text.encode("utf-16"))):
        one_by_one, by_blocks, proven = both_ways(tmp_path, write(name, content))
        assert by_blocks == one_by_one
        assert proven == 50


marks = ["\\", '"', "\\\\", '\\"', "\n", "\x1b", "\x00", "\x7f", "\u2028", "\u3000", "\ud83d", "{", '"}, {"role": "user"', "😀", "é"]
pieces = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(marks)), max_size=6).map("".join)
roles = st.sampled_from(["system", "user", "assistant", "human", "tool", ""])
conversations = st.lists(st.builds(lambda role, content: said(role, content), roles, pieces), max_size=4)
turns = st.builds(lambda asked, answered: [said("user", asked), said("assistant", answered)], pieces, pieces)
records = st.builds(lambda messages: {"messages": messages}, st.one_of(turns, conversations, turns.map(lambda turn: turn * 2)))


@settings(max_examples=60, deadline=None)
@given(rows_written=st.lists(records, min_size=1, max_size=12), wide=st.booleans(), escaped=st.booleans(), seed=st.integers(0, 2**32))
def test_whatever_is_said_is_said_the_same(tmp_path_factory, rows_written, wide, escaped, seed) -> None:
    """Some lines have a byte changed, dropped or doubled, as a broken export has."""
    dice = random.Random(seed)
    lines = []
    for row in rows_written:
        line = json.dumps(row, ensure_ascii=escaped, separators=(", ", ": ") if wide else (",", ":")).encode(errors="replace")
        if dice.random() < 0.3:
            at = dice.randrange(len(line))
            line = line[:at] + dice.choice([b"", line[at : at + 1] * 2, b'"', b"\\", b" "]) + line[at + 1 :]
        lines.append(line)
    folder = tmp_path_factory.mktemp("said")
    (folder / "a.jsonl").write_bytes(b"\n".join([orjson.dumps(chats(1)[0]), *lines]))
    one_by_one, by_blocks, _ = both_ways(folder, folder / "a.jsonl")
    assert by_blocks == one_by_one


def test_a_stop_is_heeded_between_blocks(write, tmp_path) -> None:
    class Impatient(QuietJob):
        def progress(self, done: float, total: float, unit: str = "") -> None:
            super().progress(done, total, unit)
            self.stop_asked = True

    path = write("a.jsonl", [{"text": f"{n} " + "x" * 1000} for n in range(8000)])
    job = Impatient(tmp_path / "impatient")
    with pytest.raises(Stopped):
        importing.run({"file": str(path), "filename": path.name}, job)
    assert job.reported[-1][0] < path.stat().st_size
