"""A version's rows as a file for other programs: what is exported can be imported again as the same rows."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest
from asgiref.sync import async_to_sync
from django.test import Client as Browser

from studio.datasets import importing, rows
from studio.datasets.exporting import Export, cell
from studio.errors import UserError
from tests.datasets.conftest import QuietJob
from tests.fixtures import Api, make_key, make_member

CHATS = [
    {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f'Answer "{n}",\n{n}.'}]}
    for n in range(30)
]
LONG = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two? äöü 😀"},
        {"role": "assistant", "content": "2"},
    ]
}
WEIGHED = {
    "messages": [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1", "weight": 0},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2"},
    ]
}
CALLING = {
    "messages": [
        {"role": "user", "content": "Weather in Bern?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "It is sunny."},
    ],
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}],
}
TALKING = {
    "messages": [
        CALLING["messages"][0],
        CALLING["messages"][1] | {"content": "Let me look."},
        *CALLING["messages"][2:],
    ],
    "tools": CALLING["tools"],
}
PAIRS = [
    {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Question {n}?"}],
        "chosen": [{"role": "assistant", "content": f"Better {n}"}],
        "rejected": [{"role": "assistant", "content": f"Worse {n}"}],
    }
    for n in range(12)
]
TEXTS = [{"text": f'Text {n}\nwith lines, and "quotes".'} for n in range(12)]


@pytest.fixture
def exported(tmp_path):
    """Imports records, exports them, and imports the file: (facts before, facts after, the file)."""

    def run(records, *, format, spelling, split=None, **settings):
        before, folder = taken(tmp_path / "first", "rows.jsonl", "".join(json.dumps(row) + "\n" for row in records).encode(), **settings)
        export = Export(path=folder / "rows.parquet", shape=before["shape"], format=format, spelling=spelling, split=split)
        export.check()
        content = b"".join(export.pieces())
        after, _ = taken(tmp_path / "second", f"rows.{format}", content)
        return before, after, content

    def taken(folder, name, content, **settings):
        job = QuietJob(folder)
        (folder / name).write_bytes(content)
        return importing.run({"file": str(folder / name), "filename": name} | settings, job), job.out

    return run


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("spelling", ["openai", "sharegpt", "alpaca"])
@pytest.mark.parametrize("records", [CHATS, [*CHATS, LONG], PAIRS, TEXTS], ids=["chats", "turns", "pairs", "texts"])
def test_what_is_exported_is_imported_again_as_the_same_rows(exported, records, format, spelling):
    before, after, _ = exported(records, format=format, spelling=spelling)
    assert (after["refused"], after["rows"]) == (0, len(records))
    assert after["rows_sha256"] == before["rows_sha256"]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("spelling", ["openai", "sharegpt"])
@pytest.mark.parametrize("special", [WEIGHED, CALLING, TALKING], ids=["weights", "calls", "words beside calls"])
def test_weights_and_tool_calls_go_where_the_spelling_has_them(exported, special, format, spelling):
    before, after, _ = exported([*CHATS, special], format=format, spelling=spelling)
    assert (after["refused"], after["rows"]) == (0, 31)
    assert after["rows_sha256"] == before["rows_sha256"]


@pytest.mark.parametrize("special", [[WEIGHED], [CALLING, TALKING]])
def test_what_alpaca_cannot_say_is_refused_with_a_count(exported, special):
    with pytest.raises(UserError) as refused:
        exported([*CHATS, *special], format="jsonl", spelling="alpaca")
    number = {1: "1 row", 2: "2 rows"}[len(special)]
    assert refused.value.fields["spelling"] == (
        f"{number} with tool calls, weights or more than one answer cannot be said in Alpaca's spelling. Choose OpenAI."
    )


def test_earlier_turns_are_history_in_alpaca(exported):
    _, _, content = exported([*CHATS, LONG], format="jsonl", spelling="alpaca")
    lines = [json.loads(line) for line in content.splitlines()]
    assert lines[0] == {"instruction": "Question 0?", "input": "", "output": 'Answer "0",\n0.'}
    assert lines[-1] == {
        "instruction": "Two? äöü 😀",
        "input": "",
        "output": "2",
        "system": "Be brief.",
        "history": [["One?", "1"]],
    }


def test_openai_has_the_arguments_of_calls_as_text_and_sharegpt_a_role_for_them(exported):
    _, _, openai = exported([*CHATS, CALLING], format="jsonl", spelling="openai")
    call = json.loads(openai.splitlines()[-1])["messages"][1]["tool_calls"][0]
    assert call["function"] == {"name": "weather", "arguments": '{"city":"Bern"}'}


def test_sharegpt_calls_tools_in_roles_of_their_own(exported):
    _, _, content = exported([*CHATS, CALLING], format="jsonl", spelling="sharegpt")
    said = json.loads(content.splitlines()[-1])["conversations"]
    assert [message["from"] for message in said] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(said[1]["value"]) == {"id": "call_1", "name": "weather", "arguments": {"city": "Bern"}}


def test_one_split_alone_is_exported(exported):
    before, after, _ = exported(CHATS, format="jsonl", spelling="openai", split="validation", validation_percent=20)
    assert after["rows"] == before["split"]["validation"] == 6


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("http://x")'])
def test_no_spreadsheet_takes_a_cell_for_a_formula(exported, text):
    assert cell(text) == f"'{text}"
    _, _, content = exported([*CHATS, {"instruction": f"{text} ?", "output": text}][30:] * 12, format="csv", spelling="alpaca")
    for row in csv.DictReader(io.StringIO(content.decode(), newline="")):
        assert row["output"] == f"'{text}"
        assert not any(value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for value in row.values())


def test_a_parquet_file_has_columns_for_weights_and_calls_only_where_rows_have_them(exported, tmp_path):
    _, _, plain = exported(CHATS, format="parquet", spelling="openai")
    assert pq.read_schema(io.BytesIO(plain)).field("messages").type.value_type.num_fields == 2


def test_columns_for_weights_where_rows_have_them(exported):
    _, _, weighed = exported([*CHATS, WEIGHED], format="parquet", spelling="openai")
    message = pq.read_schema(io.BytesIO(weighed)).field("messages").type.value_type
    assert [field.name for field in message] == ["role", "content", "weight"]


def test_a_large_version_is_exported_in_pieces(tmp_path):
    job = QuietJob(tmp_path / "many")
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Q {n}", "completion": "A" * 300}) + "\n" for n in range(5000)))
    importing.run({"file": str(file), "filename": "many.jsonl"}, job)
    for format in ("jsonl", "csv", "parquet"):
        pieces = list(Export(path=job.out / "rows.parquet", shape="chat", format=format, spelling="openai").pieces())
        assert len(pieces) > 3
        assert max(map(len, pieces)) < 1 << 20
    assert rows.count(job.out / "rows.parquet") == 5000


@pytest.mark.parametrize(("asked", "field"), [({"format": "xlsx"}, "format"), ({"spelling": "../x"}, "spelling")])
def test_an_export_that_there_is_not_is_a_sentence(tmp_path, asked, field):
    with pytest.raises(UserError) as refused:
        Export(**{"path": tmp_path, "shape": "chat", "format": "jsonl", "spelling": "openai"} | asked).check()
    assert field in refused.value.fields


def whole(response):
    """What was sent piece by piece."""

    async def gathered():
        return b"".join([piece async for piece in response.streaming_content])

    assert response.status_code == 200, response
    return async_to_sync(gathered)()


def test_a_member_downloads_a_version_and_a_script_the_same_file(acme):
    browser = Browser()
    browser.force_login(acme.owner.user)
    page = f"/datasets/versions/{acme.version.pk}/export/"
    assert "12" in browser.get(page).content.decode()
    answer = browser.get(f"{page}file/?format=csv&spelling=alpaca&split=train")
    assert answer["Content-Disposition"] == 'attachment; filename="replies-v1-train-alpaca.csv"'
    content = whole(answer)
    assert content.splitlines()[0] == b"instruction,input,output,system,history"
    assert len(content.splitlines()) == 11
    script = acme.api.get(f"dataset-versions/{acme.version.pk}/export?format=csv&spelling=alpaca&split=train")
    assert whole(script) == content


@pytest.mark.parametrize("asked", ["format=xlsx", "spelling=x", "split=test", "format=%00"])
def test_a_download_that_there_is_not_is_refused_on_its_page(acme, asked):
    browser = Browser()
    browser.force_login(acme.owner.user)
    answer = browser.get(f"/datasets/versions/{acme.version.pk}/export/file/?{asked}")
    assert answer.status_code == 422
    assert "There is no such export." in answer.content.decode()
    assert acme.api.get(f"dataset-versions/{acme.version.pk}/export?{asked}").status_code == 422


def test_a_viewer_may_download_and_a_guest_may_not(acme):
    viewer = Api(make_key(make_member(acme.workspace, role="viewer", email="vic@example.com"), scopes=["read"]))
    guest = Api(make_key(make_member(acme.workspace, role="guest", email="gus@example.com", clients=[acme.client])))
    path = f"dataset-versions/{acme.version.pk}/export"
    assert len(whole(viewer.get(path)).splitlines()) == 12
    assert guest.get(path).status_code == 404
