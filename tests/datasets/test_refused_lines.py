"""Every refused line of a file can be downloaded with its reason, however many they are."""

import json

from asgiref.sync import async_to_sync
from django.test import Client as Browser
from django.urls import reverse

from studio.datasets.models import DatasetVersion
from studio.datasets.services import Upload, create_with_version
from tests.fixtures import work_off

GOOD = b'{"text": "a row that is fine"}\n'


def uploaded(acme, content: bytes, **chosen) -> DatasetVersion:
    upload = Upload(filename="rows.jsonl", chunks=[content], size=len(content), **chosen)
    version = create_with_version(acme.owner, project=acme.project, name="Rows", upload=upload)
    work_off(version.order)
    return DatasetVersion.objects.get(pk=version.pk)


async def whole(answer) -> bytes:
    return b"".join([piece async for piece in answer.streaming_content])


def test_all_refused_lines_are_downloaded_and_the_first_hundred_shown(acme) -> None:
    version = uploaded(acme, GOOD + b'{"text": ""}\n' * 5000 + GOOD)
    assert (version.facts["rows"], version.facts["refused"]) == (2, 5000)
    browser = Browser()
    browser.force_login(acme.owner.user)
    assert "The first 100 of 5,000." in browser.get(reverse("datasets:version", args=[version.pk])).content.decode()
    answer = browser.get(reverse("datasets:refusals", args=[version.pk]))
    lines = [json.loads(line) for line in async_to_sync(whole)(answer).splitlines()]
    assert answer.headers["Content-Disposition"] == "attachment; filename=refusals.jsonl"
    assert [line["line"] for line in lines] == list(range(2, 5002))
    assert lines[-1]["reason"] == "Line 5001: text is empty, there is nothing to learn."


def test_a_person_who_chose_to_stop_at_refused_lines_gets_no_version(acme) -> None:
    version = uploaded(acme, GOOD + b'{"text": ""}\n' + GOOD, reading={"refused": "stop"})
    assert not version.is_ready
    assert "1 row was refused, and you chose to stop at that. Line 2: text is empty" in version.order.error


def test_what_the_split_goes_by_reaches_the_reading(acme) -> None:
    lines = b"".join(b'{"text": "row %d", "topic": "%s"}\n' % (number, b"rare" if number % 10 else b"common") for number in range(100))
    version = uploaded(acme, lines, rules={"stratify": "topic"}, validation_percent=10.0)
    assert sorted((stratum["name"], stratum["validation"]) for stratum in version.facts["strata"]) == [("common", 1), ("rare", 9)]
    refused = create_with_version(
        acme.owner,
        project=acme.project,
        name="Others",
        upload=Upload(filename="rows.jsonl", chunks=[lines], size=len(lines), rules={"together": "thread"}),
    )
    work_off(refused.order)
    refused.order.refresh_from_db()
    assert "The split cannot go by column" in refused.order.error
