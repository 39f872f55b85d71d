"""The playground is everybody's: one person's questions leave room for those of others."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.test import Client as Browser
from django.urls import reverse

from studio.datasets.models import Draft
from studio.serving.views import AT_ONCE, WAITING, in_turn
from studio.workspaces.services import create_client, create_project
from tests.fixtures import World, make_version


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that takes questions and says nothing."""
    await reader.read(1 << 20)
    await asyncio.sleep(60)


def in_a_thread(work: Coroutine[Any, Any, Any]) -> Any:
    """The test's own thread may hold the event loop of a browser."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def first(answer: AsyncIterator[bytes]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await anext(answer))
    return found


def test_a_person_waits_for_a_few_answers_at_once(settings: Any, tmp_path: Path):
    settings.ENGINE_SOCKET = str(tmp_path / "e.sock")

    async def ask_much() -> None:
        engine = await asyncio.start_unix_server(never, settings.ENGINE_SOCKET)
        waiting = [asyncio.create_task(first(in_turn(7, {}))) for _ in range(AT_ONCE)]
        await asyncio.sleep(0.2)
        assert "waiting for 4 answers" in (await first(in_turn(7, {})))["error"]
        another = asyncio.create_task(first(in_turn(8, {})))
        await asyncio.sleep(0.2)
        assert not another.done()
        for task in (*waiting, another):
            task.cancel()
        await asyncio.gather(*waiting, another, return_exceptions=True)
        assert not WAITING  # who leaves gives their places back
        engine.close()

    in_a_thread(ask_much())


def test_without_an_engine_the_page_is_told_so(settings: Any, tmp_path: Path):
    settings.ENGINE_SOCKET = str(tmp_path / "nobody.sock")
    assert "not running" in in_a_thread(first(in_turn(7, {})))["error"]
    assert not WAITING


# ── Good answers ──

SAID = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On its way."}]


@pytest.fixture
def keep(acme: World) -> Any:
    browser = Browser()
    browser.force_login(acme.owner.user)

    def kept(messages: Any = SAID, **changed: Any) -> Any:
        form = {"dataset": acme.version.dataset_id, "target": f"adapter:{acme.artifact.pk}", "messages": json.dumps(messages)}
        return browser.post(reverse("serving:keep"), form | changed)

    return kept


def test_a_good_answer_waits_in_the_draft_of_a_dataset(keep, acme: World):
    assert keep().json() == {"kept": "Kept for Replies. It waits in your draft of its rows."}
    assert keep(target=f"base:{acme.base.pk}").json()["kept"].endswith("2 rows wait in your draft of its rows.")
    assert Draft.objects.get(version=acme.version).changes["added"] == [{"messages": SAID}] * 2


def test_what_a_client_s_model_said_stays_with_that_client(keep, acme: World):
    other = create_project(acme.owner, client=create_client(acme.owner, name="Globex"), name="Theirs")
    theirs = make_version(acme.owner, other, name="Theirs").dataset_id
    assert keep(dataset=theirs).status_code == 404
    assert keep(dataset=theirs, target=f"base:{acme.base.pk}").status_code == 200


@pytest.mark.parametrize(
    ("messages", "status", "said"),
    [
        ("nonsense", 422, "must be"),
        (SAID[:1], 422, "Every chat must end with an answer."),
        ([SAID[0], {"role": "assistant", "content": " "}], 422, "nothing to learn"),
    ],
)
def test_what_is_no_conversation_is_not_kept(keep, messages, status, said):
    answer = keep(messages)
    assert answer.status_code == status and said in answer.json()["error"]


def test_the_page_offers_the_datasets_of_the_client_alone(acme: World):
    other = create_project(acme.owner, client=create_client(acme.owner, name="Globex"), name="Theirs")
    make_version(acme.owner, other, name="Elsewhere entirely")
    browser = Browser()
    browser.force_login(acme.owner.user)
    page = browser.get(reverse("serving:playground"), {"artifact": acme.artifact.pk})
    assert "Keep good answers for" in page.content.decode()
    assert [dataset.name for dataset in page.context["datasets"]] == ["Replies"]
