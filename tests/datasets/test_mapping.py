"""A file whose columns nobody can guess: a person says what they mean, and the same upload is read again."""

import pytest
from django.test import Client as Browser
from django.urls import reverse

from studio.audit.models import AuditRecord
from studio.datasets.models import DatasetVersion
from studio.datasets.services import Upload, create_with_version
from tests.fixtures import World, make_member, work_off

ROWS = b"ticket_text,agent_reply,team\nWhere is it?,On its way.,north\nIs it late?,By a day.,south\n"


@pytest.fixture
def refused(acme: World) -> DatasetVersion:
    """A version whose import failed for unknown columns."""
    upload = Upload(filename="tickets.csv", chunks=[ROWS], size=len(ROWS), validation_percent=0)
    version = create_with_version(acme.owner, project=acme.project, name="Tickets", upload=upload)
    work_off(version.order)
    return DatasetVersion.objects.get(pk=version.pk)


def signed_in(user) -> Browser:
    browser = Browser()
    browser.force_login(user)
    return browser


def send(browser: Browser, version: DatasetVersion, *meanings: str):
    fields = {f"column_{number}": meaning for number, meaning in enumerate(meanings)}
    return browser.post(reverse("datasets:map", args=[version.pk]), fields)


def test_the_page_of_a_refused_file_asks_what_its_columns_mean(acme, refused):
    page = signed_in(acme.owner.user).get(reverse("datasets:version", args=[refused.pk])).content.decode()
    assert "Map the columns" in page
    assert all(text in page for text in ("ticket_text", "agent_reply", "Where is it?", "the answer to learn"))


def test_the_same_upload_becomes_a_version_with_rows(acme, refused):
    answer = send(signed_in(acme.owner.user), refused, "prompt", "completion", "")
    made = refused.dataset.newest
    assert answer.headers["Location"] == reverse("datasets:version", args=[made.pk])
    assert (made.number, made.filename, made.upload_sha256) == (2, "tickets.csv", refused.upload_sha256)
    assert AuditRecord.objects.filter(verb="dataset.add_version", object_id=str(made.pk)).count() == 1
    work_off(made.order)
    made.refresh_from_db()
    assert (made.facts["shape"], made.facts["rows"], made.mapping) == ("chat", 2, {"prompt": "ticket_text", "completion": "agent_reply"})


def test_what_was_chosen_is_kept_beside_the_reason_where_it_cannot_be_read(acme, refused):
    answer = send(signed_in(acme.owner.user), refused, "prompt", "", "")
    assert answer.status_code == 422
    page = answer.content.decode()
    assert "Choose columns for messages" in page
    assert '<option value="prompt" selected>' in page


@pytest.mark.parametrize(
    ("meanings", "reason"),
    [(("", "", ""), "Say what at least one column means."), (("prompt", "completion", "completion"), "Two columns have the same meaning.")],
)
def test_nothing_and_twice_the_same_are_refused(acme, refused, meanings, reason):
    answer = send(signed_in(acme.owner.user), refused, *meanings)
    assert answer.status_code == 422
    assert reason in answer.content.decode()
    assert refused.dataset.versions.count() == 1


def test_a_version_with_rows_is_not_read_in_another_way(acme):
    answer = send(signed_in(acme.owner.user), acme.version, "prompt")
    assert answer.status_code == 400
    assert "This version is not refused." in answer.content.decode()


def test_a_viewer_is_not_asked(acme, refused):
    browser = signed_in(make_member(acme.workspace, role="viewer", email="bob@example.com").user)
    assert "Map the columns" not in browser.get(reverse("datasets:version", args=[refused.pk])).content.decode()
    assert send(browser, refused, "prompt", "completion", "").status_code == 404
