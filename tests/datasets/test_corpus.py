"""Bad files get a clear sentence, which is kept in the database and shown as it is; what is good in them is not lost."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client as Browser
from django.utils.html import escape

from studio.datasets import importing, rows, services
from studio.datasets.models import DatasetVersion
from studio.datasets.peeking import peek
from studio.errors import UserError
from studio.orders.kinds import KINDS
from studio.orders.models import Order
from studio.orders.services import claim, finish
from studio.worker.events import clean_json
from tests.datasets.conftest import QuietJob
from tests.datasets.corpus import FILES, GOOD, LINES, NAMES, ODD
from tests.fixtures import Api, make_key, make_owner


@pytest.fixture
def arrive(db, queue, job: QuietJob) -> Callable[..., DatasetVersion]:
    """Uploads a file and does its order as a worker does, but in this process. Returns the version as it then stands."""
    owner = make_owner()
    dataset = services.create_dataset(owner, project=owner.workspace.clients.get().projects.get(), name="Corpus")

    def arrived(name: str, content: bytes, **reading: str) -> DatasetVersion:
        upload = services.Upload(filename=name, chunks=[content], size=len(content), reading=reading)
        version = services.add_version(owner, dataset=dataset, upload=upload)
        order = claim(str(version.order_id), attempt=1, worker="test")
        assert order is not None
        try:
            found = clean_json(importing.run(KINDS["dataset"].payload(order), job))
        except UserError as error:
            assert finish(order, status=Order.Status.FAILED, result=clean_json(error.facts), error=error.message)
        else:
            shutil.copytree(job.out, version.folder)
            assert finish(order, status=Order.Status.SUCCEEDED, result=found, error="")
        return DatasetVersion.objects.select_related("order").get(pk=version.pk)

    return arrived


def shown(version: DatasetVersion) -> str:
    """The version's page, which the API must not contradict."""
    browser = Browser()
    browser.force_login(version.order.created_by)
    page = browser.get(f"/datasets/versions/{version.pk}/")
    member = version.order.workspace.members.get()
    answer = Api(make_key(member)).get(f"dataset-versions/{version.pk}")
    assert (page.status_code, answer.status_code) == (200, 200)
    assert answer.json()["status"] == version.status
    return page.content.decode()


@pytest.mark.parametrize(("name", "content", "sentence"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_a_file_that_cannot_be_used_is_refused_with_a_sentence(arrive, name: str, content: bytes, sentence: str) -> None:
    version = arrive(name, content)
    assert (version.status, version.order.error) == ("refused", sentence)
    assert escape(sentence) in shown(version)


def after_it(name: str, content: bytes) -> bytes:
    """A good row behind the bad one, where the case does not bring its own."""
    return content + GOOD if name.endswith(".jsonl") and b"role" not in content else content


@pytest.mark.parametrize(("name", "content", "sentence"), [case[1:] for case in LINES], ids=[case[0] for case in LINES])
def test_a_bad_line_is_refused_and_the_next_one_is_taken(arrive, name: str, content: bytes, sentence: str) -> None:
    version = arrive(name, after_it(name, content), encoding="utf-8")
    assert version.facts is not None, version.order.error
    (refusal,) = rows.refusals(version.folder / "refusals.jsonl")
    assert refusal["reason"] == sentence
    assert (version.facts["rows"], version.facts["refused"]) == (1, 1)
    assert len(refusal["excerpt"]) < 300
    assert escape(sentence) in shown(version)


@pytest.mark.parametrize(("name", "content", "count", "notice"), [case[1:] for case in ODD], ids=[case[0] for case in ODD])
def test_what_is_odd_but_clear_is_taken_and_told(arrive, name: str, content: bytes, count: int, notice: str) -> None:
    version = arrive(name, content)
    assert version.facts is not None, version.order.error
    assert (version.facts["rows"], version.facts["refused"]) == (count, 0)
    assert not notice or notice in version.facts["notices"]
    assert escape(notice) in shown(version)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_label_and_never_a_path(arrive, data_folder: Path, name: str) -> None:
    before = {path for path in data_folder.parent.rglob("*") if data_folder not in path.parents}
    version = arrive(name, GOOD * 2)
    assert version.is_ready
    assert "/" not in version.filename
    assert escape(version.filename) in shown(version)
    assert {path for path in data_folder.parent.rglob("*") if data_folder not in path.parents} == before


@pytest.mark.parametrize(("name", "content"), [case[1:3] for case in FILES + LINES], ids=[case[0] for case in FILES + LINES])
def test_a_first_look_never_fails_otherwise_than_with_a_sentence(write: Any, name: str, content: bytes) -> None:
    try:
        peek(write(name, content), name)
    except UserError as refused:
        assert refused.message.endswith((".", "?"))
