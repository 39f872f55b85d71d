"""What is in a file is shown before a version is made of it, whatever the file is."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import xlsxwriter
from django.conf import settings
from django.test import Client as Browser
from django.urls import reverse

from studio.audit.models import AuditRecord
from studio.datasets import previews
from studio.datasets.models import Dataset, DatasetVersion, Upload
from studio.errors import UserError
from tests.fixtures import make_upload, work_off

PAIRS = "".join(json.dumps({"question": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(40)).encode()
TICKETS = b"ticket_text,agent_reply,team\nWhere is it?,On its way.,north\nIs it late?,By a day.,south\n"


@pytest.fixture
def ana(acme) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


@pytest.fixture
def arrived(acme) -> Any:
    """A file that has arrived."""
    return lambda content, filename="replies.jsonl", **more: make_upload(
        acme.owner, acme.project, content=content, filename=filename, **more
    )


def page(browser: Browser, upload: Upload, **query: str) -> str:
    return browser.get(reverse("datasets:upload", args=[upload.pk]), query).content.decode()


def look(browser: Browser, upload: Upload, **chosen: str) -> str:
    return browser.post(reverse("datasets:upload_preview", args=[upload.pk]), chosen).content.decode()


def take(browser: Browser, upload: Upload, **chosen: str) -> Any:
    return browser.post(reverse("datasets:upload", args=[upload.pk]), chosen)


def columns(**meanings: str) -> dict[str, str]:
    chosen = {"columns": "mine"}
    for number, (name, meaning) in enumerate(meanings.items()):
        chosen |= {f"column_{number}_name": name, f"column_{number}": meaning}
    return chosen


def test_the_first_rows_are_shown_as_they_will_be_learnt_from(ana, arrived):
    text = page(ana, arrived(PAIRS))
    for shown in ("JSONL", "Each row is a chat", "question and answer", "What is 0 + 1?", "assistant", 'value="replies"'):
        assert shown in text, shown
    assert not DatasetVersion.objects.filter(dataset__name="replies").exists()


def test_one_click_makes_the_version(ana, arrived, acme):
    upload = arrived(PAIRS)
    answer = take(ana, upload)
    version = DatasetVersion.objects.get(dataset__name="replies")
    assert answer.headers["Location"] == reverse("datasets:version", args=[version.pk])
    assert (version.filename, version.upload_sha256, version.mapping, version.reading, version.rules) == (
        "replies.jsonl", upload.sha256, {}, {}, {},
    )  # fmt: skip
    assert not Upload.objects.exists()
    verbs = list(AuditRecord.objects.order_by("pk").values_list("verb", flat=True))[-2:]
    assert verbs == ["dataset.create", "dataset.add_version"]
    work_off(version.order)
    version.refresh_from_db()
    assert version.facts["rows"] == 40
    again = take(ana, upload)  # a double click, or the way back
    assert again.headers["Location"] == answer.headers["Location"]
    assert Dataset.objects.filter(project=acme.project, name="replies").count() == 1


def test_a_file_becomes_the_next_version_of_a_dataset(ana, arrived, acme):
    upload = arrived(PAIRS)
    assert "becomes the next version of Replies" in page(ana, upload, dataset=str(acme.version.dataset_id))
    take(ana, upload, dataset=str(acme.version.dataset_id))
    assert acme.version.dataset.newest.number == 2


def test_another_workspace_s_dataset_gets_no_version(ana, arrived, rival):
    upload = arrived(PAIRS)
    assert take(ana, upload, dataset=str(rival.version.dataset_id)).status_code == 404
    assert Upload.objects.filter(pk=upload.pk).exists()


def test_the_same_bytes_are_recognised_with_a_link(ana, arrived, acme):
    take(ana, arrived(PAIRS))
    version = DatasetVersion.objects.get(dataset__name="replies")
    work_off(version.order)
    version.refresh_from_db()
    day = f"{version.created_at.day} {version.created_at:%b}"
    text = page(ana, arrived(PAIRS), dataset=str(version.dataset_id))
    assert f'Already uploaded as <a href="{reverse("datasets:version", args=[version.pk])}">v1</a> on {day}.' in text
    assert ">replies v1</a>" in page(ana, arrived(PAIRS))


def test_columns_nobody_can_guess_are_asked_for_and_previewed(ana, arrived):
    upload = arrived(TICKETS, "tickets.csv")
    text = page(ana, upload)
    for shown in ("Need messages, or prompt + completion, or text.", "ticket_text", "Where is it?", "the answer to learn"):
        assert shown in text, shown
    half = look(ana, upload, **columns(ticket_text="prompt"))
    assert "Choose columns for messages" in half
    text = look(ana, upload, **columns(ticket_text="prompt", agent_reply="completion"))
    assert "On its way." in text and "Each row is a chat" in text
    assert "<html" not in text
    assert "Two columns have the same meaning." in look(ana, upload, **columns(ticket_text="prompt", agent_reply="prompt"))


def test_what_was_said_about_columns_is_what_is_imported(ana, arrived):
    upload = arrived(TICKETS, "tickets.csv")
    refused = take(ana, upload, **columns(ticket_text="", agent_reply=""))
    assert (refused.status_code, "Say what at least one column means." in refused.content.decode()) == (422, True)
    take(ana, upload, **columns(ticket_text="prompt", agent_reply="completion"), name="Tickets", refused="stop", seed="7")
    version = DatasetVersion.objects.get(dataset__name="Tickets")
    assert version.mapping == {"prompt": "ticket_text", "completion": "agent_reply"}
    assert (version.reading, version.seed) == ({"refused": "stop"}, 7)
    work_off(version.order)
    version.refresh_from_db()
    assert version.facts["rows"] == 2


def test_how_the_rows_are_split_can_be_said(ana, arrived):
    upload = arrived(TICKETS, "tickets.csv")
    said = columns(ticket_text="prompt", agent_reply="completion") | {"advanced": "1", "stratify": "team", "validation_percent": "12.5"}
    take(ana, upload, **said)
    version = DatasetVersion.objects.get(dataset__name="tickets")
    assert (version.rules, version.validation_percent) == ({"stratify": "team", "near_duplicates": False}, 12.5)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("validation_percent", "80", "Must be from 0 to 50 per cent."),
        ("validation_percent", "nan", "Must be from 0 to 50 per cent."),
        ("seed", "18446744073709551616", "Seed must be 0 to 4 294 967 295."),
        ("seed", "-1", "Seed must be 0 to 4 294 967 295."),
    ],
)
def test_what_cannot_be_meant_is_said_beside_its_field(ana, arrived, field, value, sentence):
    answer = take(ana, arrived(PAIRS), **{field: value})
    assert answer.status_code == 422
    assert sentence in answer.content.decode()


def test_lines_that_would_be_refused_are_shown_with_their_place(ana, arrived):
    text = page(ana, arrived(PAIRS + b'{"question": "And?", "answer": ""}\n', length=0))
    assert "Lines that would be refused" not in text  # it lies behind the first rows
    text = page(ana, arrived(b'{"question": "And?", "answer": ""}\n' + PAIRS))
    assert "Lines that would be refused" in text
    assert "Line 1: answer is empty, there is nothing to learn." in text


@pytest.mark.parametrize(
    ("content", "filename", "sentence"),
    [
        (b" \n\n", "a.jsonl", "The file is empty."),
        (b"%PDF-1.4 ...", "a.jsonl", "This is a PDF file"),
        (b'{"a": 1, "a": 2}\n', "a.jsonl", "appears twice"),
        (b'{"a": ' + b"[" * 1000 + b"]" * 1000 + b"}\n", "a.jsonl", "nested deeper than 64"),
        (b"\x80\x04\x95" + b"x" * 400, "a.jsonl", "This is a pickle file"),
        (b"PAR1" + b"\0" * 100, "a.parquet", "damaged"),
    ],
)
def test_a_file_that_cannot_be_read_says_why_and_can_be_discarded(ana, arrived, content, filename, sentence):
    upload = arrived(content, filename)
    text = page(ana, upload)
    assert sentence in text
    assert ana.post(reverse("datasets:upload_discard", args=[upload.pk])).status_code == 302
    assert not upload.path.exists()


def test_text_in_a_file_is_never_markup(ana, arrived):
    rows = [{"question": "<script>alert(1)</script>", "answer": "<img src=x onerror=alert(1)>"}]
    text = page(ana, arrived("".join(json.dumps(row) + "\n" for row in rows).encode(), "<b>.jsonl"))
    assert "<script>alert" not in text and "<img src=x" not in text and "<b>.jsonl" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_look_ends_at_its_limits(arrived, monkeypatch):
    upload = arrived(PAIRS)
    monkeypatch.setattr(previews, "PATIENCE", 0.01)
    with pytest.raises(UserError, match="took too long"):
        previews.preview(upload)


def test_a_look_knows_no_secret_of_the_server(monkeypatch):
    monkeypatch.setenv("STUDIO_SECRET_KEY", "x" * 60)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert not {name for name in previews.environment() if name.startswith(("STUDIO_", "HF_", "DJANGO_", "HOME"))}


def test_what_has_not_arrived_completely_says_how_to_go_on(ana, arrived):
    upload = arrived(PAIRS[:100], length=len(PAIRS))
    text = page(ana, upload)
    assert "Choose the same file again, and it goes on where it stopped." in text
    assert take(ana, upload).status_code == 200
    assert not DatasetVersion.objects.filter(dataset__name="replies").exists()


def test_a_file_that_was_refused_is_read_in_another_way_without_sending_it_again(ana, arrived, acme):
    upload = arrived(PAIRS + b'{"question": "And?", "answer": ""}\n')
    take(ana, upload, refused="stop")
    version = DatasetVersion.objects.get(dataset__name="replies")
    assert "you chose to stop at that" in work_off(version.order).error
    assert "Read it in another way" in ana.get(reverse("datasets:version", args=[version.pk])).content.decode()
    answer = ana.post(reverse("datasets:again", args=[version.pk]))
    once_more = Upload.objects.get()
    assert answer.headers["Location"] == f"{reverse('datasets:upload', args=[once_more.pk])}?dataset={version.dataset_id}"
    assert once_more.path.samefile(version_file(version))
    take(ana, once_more, dataset=str(version.dataset_id))
    made = version.dataset.newest
    work_off(made.order)
    made.refresh_from_db()
    assert (made.number, made.facts["rows"], made.facts["refused"]) == (2, 40, 1)
    text = ana.get(reverse("datasets:version", args=[made.pk])).content.decode()
    for told in ("Refused lines", "Line 41: answer is empty, there is nothing to learn.", "Download all"):
        assert told in text


def version_file(version: DatasetVersion) -> Path:
    return Path(settings.DATA_DIR, "uploads", version.upload)


def test_windows_1252_is_offered_with_a_preview(ana, arrived):
    upload = arrived('{"question": "Où?", "answer": "Café – là."}\n'.encode("cp1252") * 20, "cafe.jsonl")
    text = page(ana, upload)
    for told in ("0xf9 is not UTF-8. Convert from Windows-1252?", "As Windows-1252 it reads", "Café – là.", 'name="encoding"'):
        assert told in text, told
    text = look(ana, upload, encoding="cp1252", whole="1")
    assert "Each row is a chat" in text and "Café – là." in text
    take(ana, upload, encoding="cp1252")
    version = DatasetVersion.objects.get(dataset__name="cafe")
    assert version.reading == {"encoding": "cp1252"}
    work_off(version.order)
    version.refresh_from_db()
    assert version.facts["rows"] == 20


def test_a_sheet_of_a_workbook_is_chosen(ana, arrived):
    upload = arrived(workbook({"First": [["a", "b"], ["1", "2"]], "Chats": [["question", "answer"], ["Where?", "Here."]]}), "book.xlsx")
    text = page(ana, upload)
    assert 'name="sheet"' in text and ">Chats</option>" in text
    assert "Here." in look(ana, upload, sheet="Chats", whole="1")
    take(ana, upload, sheet="Chats")
    version = DatasetVersion.objects.get(dataset__name="book")
    work_off(version.order)
    version.refresh_from_db()
    assert (version.reading, version.facts["rows"]) == ({"sheet": "Chats"}, 1)


def workbook(pages: dict[str, list[list[str]]]) -> bytes:
    file = io.BytesIO()
    with xlsxwriter.Workbook(file, {"in_memory": True}) as book:
        for name, rows in pages.items():
            sheet = book.add_worksheet(name)
            for number, row in enumerate(rows):
                sheet.write_row(number, 0, row)
    return file.getvalue()


def test_a_file_that_is_gone_is_told(ana, arrived):
    upload = arrived(PAIRS)
    upload.path.unlink()
    assert "Send it again from the beginning." in page(ana, upload)
    assert take(ana, upload).status_code == 422
