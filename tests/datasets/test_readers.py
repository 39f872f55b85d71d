"""Files in the formats that people have are read record by record, whatever they are called."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from studio.datasets.readers import Line, Refusal, open_file


def read(path):
    reading = open_file(path, filename=path.name)
    return reading, list(reading.lines)


def texts(outcomes):
    assert all(isinstance(outcome, Line) for outcome in outcomes), outcomes
    return [(outcome.number, outcome.columns["text"]) for outcome in outcomes]


def test_json_lines_with_any_line_ends_and_blank_lines(write) -> None:
    reading, lines = read(write("a.jsonl", '{"text": "a"}\r\n\n{"text": "b"}\r{"text": "c\u2028d\u0085e"}'))
    assert texts(lines) == [(1, "a"), (3, "b"), (4, "c\u2028d\u0085e")]
    assert (reading.format, reading.blank, reading.position) == ("JSONL", 1, reading.size)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(write, encoding) -> None:
    _, lines = read(write("a.jsonl", '{"text": "zażółć 😀"}\n'.encode(encoding)))
    assert texts(lines) == [(1, "zażółć 😀")]


def test_a_json_array_is_read_element_by_element(write) -> None:
    rows = [{"text": f'{n} "quoted" \\ [{{' + "\\" * n, "n": [n, {"deep": [n]}]} for n in range(2000)]
    reading, lines = read(write("a.json", json.dumps(rows, indent=1)))
    assert reading.format == "JSON"
    assert [line.columns for line in lines] == rows
    assert [line.number for line in lines[:2]] == [2, 13]


def test_elements_survive_being_cut_anywhere_by_the_reader(write, monkeypatch) -> None:
    monkeypatch.setattr("studio.datasets.readers.text_stream.CHUNK", 7)
    rows = [{"text": 'a "b" \\" ü \\\\'}, {"text": "c\r\nd"}, {"text": ""}]
    assert [line.columns for line in read(write("a.json", json.dumps(rows, ensure_ascii=False)))[1]] == rows
    _, lines = read(write("b.jsonl", '{"text": "ü"}\r\n{"text": "b"}\r\n\r\n{"text": "c"}'))
    assert texts(lines) == [(1, "ü"), (2, "b"), (4, "c")]


def test_one_object_is_one_row(write) -> None:
    reading, lines = read(write("a.json", '{\n  "text": "a"\n}\n'))
    assert (reading.format, texts(lines)) == ("JSON", [(1, "a")])


def test_a_broken_element_does_not_take_the_next_one_with_it(write) -> None:
    reading, lines = read(write("a.json", '[{"text": "a"}, {"text": nope}\n{"text": "b"}, {"text": "c"},]'))
    assert [type(outcome) for outcome in lines] == [Line, Refusal, Refusal, Line]
    assert lines[2].reason == "Line 2: the comma before this object is missing."
    assert reading.notices == ["A comma too many on line 2 was passed over."]


def test_a_file_of_oddities_is_told_of_by_the_first(write) -> None:
    reading, lines = read(write("a.json", '[{"text": "a"}' + ",\n" * 200_000 + '{"text": "b"}]'))
    assert [line.columns["text"] for line in lines] == ["a", "b"]
    assert len(reading.notices) == 50
    assert reading.notices[-1] == "There is more like this."


def test_an_excerpt_stays_short_whatever_it_has_to_write_out(write) -> None:
    _, (long, *_) = read(write("a.csv", "text,id\n" + "\u202e" * 150 + "\nb,1\n"))
    assert long.excerpt == "\\u202E" * 26 + "\\u20…"
    _, (pointed, *_) = read(write("a.jsonl", '{"' + "\u202e" * 70 + "\": 'x'}\n" + '{"text": "b"}\n'))
    assert max(map(len, pointed.excerpt.split("\n"))) < 170


def test_a_cut_off_file_keeps_what_is_whole(write) -> None:
    for name, content, line in [
        ("a.jsonl", '{"text": "a"}\n{"text": "b', 2),
        ("a.json", '[{"text": "a"},\n{"text": "b', 2),
        ("b.json", '[{"text": "a"}\n', 2),
    ]:
        _, (whole, cut) = read(write(name, content))
        assert whole.columns == {"text": "a"}
        assert (cut.line, cut.reason) == (line, f"Line {line} is cut off; was the upload or export interrupted?")


def test_a_caret_stands_under_the_mistake(write) -> None:
    _, (refusal, _) = read(write("a.jsonl", '{"text": "a",}\n{"text": "b"}\n'))
    assert refusal.excerpt == '{"text": "a",}\n' + " " * 12 + "^"
    assert refusal.column == "13"


def test_what_hides_in_a_refused_line_is_shown(write) -> None:
    _, (refusal, _) = read(write("a.jsonl", '"\u202egnp.exe"\n{"text": "b"}\n'))
    assert refusal.excerpt == '"\\u202Egnp.exe"'


@pytest.mark.parametrize(("delimiter", "notice"), [(",", []), (";", ["semicolon"]), ("\t", ["tab"]), ("|", ["vertical bar"])])
def test_a_table_with_any_delimiter(write, delimiter, notice) -> None:
    rows = [["text", "id"], ['"two\nlines, and ""quotes"""', "007"], ["=1+1", "TRUE"], ["x", "1,5" if delimiter != "," else "1.5"]]
    reading, lines = read(write("a.csv", "\n".join(delimiter.join(row) for row in rows) + "\n\n"))
    assert texts(lines) == [(2, 'two\nlines, and "quotes"'), (4, "=1+1"), (5, "x")]
    assert [line.columns["id"] for line in lines[:2]] == ["007", "TRUE"]
    assert reading.notices == [f"Values are separated by a {name}." for name in notice]
    assert reading.blank == 1


def test_a_table_of_one_column_and_long_cells(write) -> None:
    _, lines = read(write("a.csv", "text\n" + "a" * 300_000 + '\n"b, c"\n'))
    assert [len(text) for _, text in texts(lines)] == [300_000, 4]


def test_a_column_without_a_name_gets_one(write) -> None:
    reading, lines = read(write("a.csv", ",text\n0,a\n"))
    assert lines[0].columns == {"column 1": "0", "text": "a"}
    assert reading.notices == ["Column 1 has no name."]


def test_parquet_with_nested_messages(write, tmp_path) -> None:
    messages = [[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]] * 600
    table = pa.table({"messages": messages, "price": pa.array([1] * 600, pa.decimal128(5))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=250)
    reading, lines = read(tmp_path / "a.parquet")
    assert [line.number for line in lines] == list(range(1, 601))
    assert lines[599].columns == {"messages": messages[0]}
    assert reading.notices == ["Column price has type decimal, not supported. It is left out."]


def test_each_line_of_a_text_is_a_row(write) -> None:
    reading, lines = read(write("a.txt", "one\ntwo\n\n"))
    assert texts(lines) == [(1, "one"), (2, "two")]
    assert reading.notices == ["Each line is one row."]


def test_paragraphs_are_joined_up_to_a_size(write) -> None:
    reading, lines = read(write("a.md", "# Title\n\nfirst\nsecond\n\n" + "x" * 1998 + "\n\nlast\n"))
    assert texts(lines) == [(1, "# Title\n\nfirst\nsecond"), (6, "x" * 1998), (8, "last")]
    assert "joined to rows of up to 2000 characters" in reading.notices[0]


@pytest.mark.parametrize(
    ("name", "content", "found", "told"),
    [
        ("a.csv", '{"text": "a"}\n{"text": "b"}\n', "JSONL", True),
        ("a.txt", '[{"text": "a"}]', "JSON", True),
        ("a.jsonl", "text,id\na,1\nb,2\n", "CSV", True),
        ("a", "text,id\na,1\nb,2\n", "CSV", False),
        ("a", "Just a sentence.\nAnd one more.\n", "text", False),
        ("a.txt", "{curly} words\nand more, of them\n", "text", False),
        ("a.txt", "[1] A footnote.\n[2] Another.\n", "text", False),
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', "JSONL", False),
    ],
)
def test_content_wins_over_the_name(write, name, content, found, told) -> None:
    reading, lines = read(write(name, content))
    assert reading.format == found
    assert all(isinstance(outcome, Line) for outcome in lines)
    assert any("It was read as" in notice for notice in reading.notices) == told
