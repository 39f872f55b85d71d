"""The playground: columns of one client's models, whose order and names a blind round hides, and which leaves room for everybody."""

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
from studio.releases.models import Release
from studio.serving import blind
from studio.serving.chat_views import AT_ONCE, WAITING, in_turn, question
from studio.serving.side_by_side import sides
from studio.workspaces.services import create_client, create_project
from tests.fixtures import World, make_artifact, make_deployment, make_member, make_order, make_release, make_version

PAGE = "serving:playground"
SUBJECT = {"workspace": "1", "base": "x", "base_sha256": "2", "adapter": "", "adapter_sha256": ""}


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


def asked_by(member: int) -> AsyncIterator[bytes]:
    return in_turn(member, SUBJECT, {"messages": []})


def test_a_person_waits_for_a_few_answers_at_once(settings: Any, tmp_path: Path):
    settings.ENGINE_SOCKET = str(tmp_path / "e.sock")

    async def ask_much() -> None:
        engine = await asyncio.start_unix_server(never, settings.ENGINE_SOCKET)
        waiting = [asyncio.create_task(first(asked_by(7))) for _ in range(AT_ONCE)]
        await asyncio.sleep(0.2)
        assert f"waiting for {AT_ONCE} answers" in (await first(asked_by(7)))["error"]
        another = asyncio.create_task(first(asked_by(8)))
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
    assert "not running" in in_a_thread(first(asked_by(7)))["error"]
    assert not WAITING


# ── Columns ──


@pytest.fixture
def ana(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


@pytest.fixture
def release(acme: World) -> Release:
    """One with settings of its own."""
    made = make_release(acme.owner, acme.artifact, shared=True, stage="approved")
    made.asked_with = {"system": "Be kind.", "temperature": 0.5}
    made.save()
    return made


@pytest.fixture
def globex(acme: World) -> Any:
    """An adapter of another client of the same workspace."""
    client = create_client(acme.owner, name="Globex")
    project = create_project(acme.owner, client=client, name="Theirs")
    order = make_order(acme.owner, kind="train", client=client)
    return make_artifact(order, project, {"adapter_model.safetensors": b"1"}, base_model=acme.base, name="Foreign")


def targets(page: Any) -> list[str]:
    return [each["column"].target for each in page.context["columns"]]


def test_the_newest_adapter_stands_beside_its_base(ana, acme: World):
    page = ana.get(reverse(PAGE))
    assert targets(page) == [f"base:{acme.base.pk}", f"adapter:{acme.artifact.pk}"]
    assert page.context["client"] == acme.client


def test_the_address_says_which_columns_stand_there_and_in_which_order(ana, acme: World, release):
    deployment = make_deployment(acme.project, release)
    wanted = [f"deployment:{deployment.pk}", f"release:{release.pk}", f"build:{acme.build.pk}", f"base:{acme.base.pk}"]
    page = ana.get(reverse(PAGE), {"client": acme.client.pk, "column": wanted})
    assert targets(page) == wanted
    text = page.content.decode()
    assert "in-house/support" in text and "/v1/chat/completions" in text  # how a program asks the deployment
    assert 'data-own="system temperature"' in text


def test_links_from_before_there_were_more_than_two_columns_still_lead_there(ana, acme: World):
    assert targets(ana.get(reverse(PAGE), {"artifact": acme.artifact.pk})) == [f"base:{acme.base.pk}", f"adapter:{acme.artifact.pk}"]
    assert targets(ana.get(reverse(PAGE), {"artifact": acme.build.artifact.pk})) == [f"base:{acme.base.pk}", f"build:{acme.build.pk}"]
    assert targets(ana.get(reverse(PAGE), {"base_model": acme.base.pk})) == [f"base:{acme.base.pk}"]


def test_one_client_s_models_never_stand_beside_another_s(ana, acme: World, globex):
    mixed = {"column": [f"adapter:{acme.artifact.pk}", f"adapter:{globex.pk}"]}
    assert ana.get(reverse(PAGE), mixed).status_code == 400
    assert ana.get(reverse("serving:column"), {"client": acme.client.pk, "column": f"adapter:{globex.pk}"}).status_code == 400
    own = ana.get(reverse(PAGE), {"column": [f"base:{acme.base.pk}", f"adapter:{globex.pk}"]})
    assert own.context["client"] == globex.project.client


def test_more_than_four_columns_do_not_stand_side_by_side(ana, acme: World):
    made = [make_release(acme.owner, acme.artifact, version=(2, minor, 0)) for minor in range(5)]
    answer = ana.get(reverse(PAGE), {"column": [f"release:{each.pk}" for each in made]})
    assert answer.status_code == 400 and "At most 4" in answer.content.decode()


def test_a_deployment_at_which_nothing_answers_says_so(ana, acme: World):
    answer = ana.get(reverse(PAGE), {"column": f"deployment:{make_deployment(acme.project).pk}"})
    assert answer.status_code == 400 and "Promote a release" in answer.content.decode()


@pytest.mark.parametrize("target", ["", "base", "base:", "nothing:1", "release:not-an-id"])
def test_what_names_nothing_is_not_there(ana, target):
    assert ana.get(reverse(PAGE), {"column": target}).status_code == 404
    assert ana.get(reverse("serving:column"), {"column": target}).status_code == 404


def test_another_column_is_chosen_from_what_the_client_has(ana, acme: World, globex, release):
    deployment = make_deployment(acme.project, release)

    def found(**query: Any) -> list[str]:
        groups = ana.get(reverse("serving:choices"), {"client": acme.client.pk, **query}).json()["groups"]
        return [thing["target"] for group in groups for thing in group["things"]]

    every = [f"deployment:{deployment.pk}", f"release:{release.pk}", f"adapter:{acme.artifact.pk}", f"build:{acme.build.pk}"]
    assert found() == [*every, f"base:{acme.base.pk}"]
    assert found(q="q8") == [f"build:{acme.build.pk}"]
    assert found(q="zebra") == []
    assert "Foreign" not in ana.get(reverse("serving:choices"), {"client": acme.client.pk}).content.decode()
    column = ana.get(reverse("serving:column"), {"client": acme.client.pk, "column": every[0]}).content.decode()
    assert f'data-target="{every[0]}"' in column and "Remove this column" in column


def test_few_are_offered_of_very_many(ana, acme: World, django_assert_max_num_queries):
    for minor in range(12):
        make_release(acme.owner, acme.artifact, version=(3, minor, 0))
    with django_assert_max_num_queries(30):
        groups = ana.get(reverse("serving:choices"), {"client": acme.client.pk}).json()["groups"]
    releases = next(group for group in groups if group["title"] == "Releases")
    assert len(releases["things"]) == 6 and releases["more"]


# ── What is asked ──


def sent(rf: Any, member: Any, target: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    told = {"target": target, "messages": [{"role": "user", "content": "Hi"}], **more}
    request = rf.post("/", json.dumps(told), content_type="application/json")
    request.member = member
    return question(request)[:2]


def test_a_release_answers_with_its_own_settings_until_somebody_sets_others(rf, acme: World, release):
    _, own = sent(rf, acme.owner, f"release:{release.pk}")
    assert own["messages"][0] == {"role": "system", "content": "Be kind."} and own["temperature"] == 0.5
    _, set_here = sent(rf, acme.owner, f"release:{release.pk}", settings={"system": "Be short.", "top_p": 0.8, "seed": 3})
    assert set_here["messages"][0]["content"] == "Be short." and len(set_here["messages"]) == 2
    assert (set_here["temperature"], set_here["top_p"], set_here["seed"]) == (0.5, 0.8, 3)


def test_everything_else_takes_the_likeliest_word_until_somebody_says_otherwise(rf, acme: World):
    _, plain = sent(rf, acme.owner, f"base:{acme.base.pk}")
    assert plain == {"max_tokens": 512, "temperature": 0.0, "messages": [{"role": "user", "content": "Hi"}]}
    _, warm = sent(rf, acme.owner, f"base:{acme.base.pk}", settings={"temperature": 1, "frequency_penalty": 0.4, "stop": ["END"]})
    assert (warm["temperature"], warm["frequency_penalty"], warm["stop"]) == (1.0, 0.4, ["END"])


def test_a_guest_hears_a_release_as_it_was_shared_with_them(rf, acme: World, release):
    gus = make_member(acme.workspace, role="guest", email="gus@example.com", clients=[acme.client])
    _, asked = sent(rf, gus, f"release:{release.pk}", settings={"system": "Tell me everything."}, max_tokens=40)
    assert asked["messages"][0]["content"] == "Be kind." and asked["max_tokens"] == 40


def chat(browser: Browser, target: str, **more: Any) -> Any:
    told = {"target": target, "messages": [{"role": "user", "content": "Hi"}], **more}
    return browser.post(reverse("serving:chat"), json.dumps(told), content_type="application/json")


@pytest.mark.parametrize("wrong", [{"temperature": 3}, {"max_tokens": 0}, {"seed": -1}, {"stop": ["x"] * 9}, {"unknown": 1}, "text"])
def test_settings_that_cannot_be_are_refused_in_words(ana, acme: World, wrong):
    answer = chat(ana, f"base:{acme.base.pk}", settings=wrong)
    assert answer.status_code == 422 and "cannot be used" in answer.json()["error"]


def test_a_column_of_another_client_than_the_page_s_is_not_asked(ana, acme: World, globex):
    assert chat(ana, f"adapter:{globex.pk}", client=str(acme.client.pk)).status_code == 422
    assert chat(ana, f"adapter:{globex.pk}", client=str(globex.project.client.pk)).status_code == 200


# ── Blind rounds ──


def test_a_blind_page_knows_no_name_and_no_id_of_what_answers(ana, acme: World, release):
    wanted = [f"base:{acme.base.pk}", f"release:{release.pk}"]
    page = ana.get(reverse(PAGE), {"client": acme.client.pk, "column": wanted, "blind": "1"})
    text = page.content.decode()
    assert 'data-target="blind:0"' in text and 'data-target="blind:1"' in text
    for hidden in (release.name, str(release.pk), str(acme.base.pk), acme.base.name):
        assert hidden not in text, hidden
    assert sorted(blind.opened(acme.owner, page.context["sealed"]).targets) == sorted(wanted)


def test_who_cannot_vote_is_shown_the_names(acme: World, release):
    viewer = Browser()
    viewer.force_login(make_member(acme.workspace, role="viewer", email="vera@example.com").user)
    wanted = [f"base:{acme.base.pk}", f"release:{release.pk}"]
    page = viewer.get(reverse(PAGE), {"client": acme.client.pk, "column": wanted, "blind": "1"})
    assert page.status_code == 200 and targets(page) == wanted and not page.context["sealed"]
    assert "Blind: you see" not in page.content.decode()


def test_the_order_is_drawn(acme: World, release):
    found = sides(acme.owner, [f"base:{acme.base.pk}", f"release:{release.pk}"])
    orders = {tuple(blind.opened(acme.owner, blind.sealed(acme.owner, found)).targets) for _ in range(40)}
    assert len(orders) == 2


def test_a_sealed_column_is_asked_by_its_place(rf, acme: World, release):
    found = sides(acme.owner, [f"base:{acme.base.pk}", f"release:{release.pk}"])
    token = blind.sealed(acme.owner, found)
    place = blind.opened(acme.owner, token).targets.index(f"release:{release.pk}")
    subject, body = sent(rf, acme.owner, f"blind:{place}", round=token)
    assert subject["adapter"] == str(acme.artifact.folder) and body["messages"][0]["content"] == "Be kind."


def test_a_round_is_its_owner_s_alone_and_lasts_a_day(ana, acme: World, release, monkeypatch):
    found = sides(acme.owner, [f"base:{acme.base.pk}", f"release:{release.pk}"])
    other = make_member(acme.workspace, role="owner", email="max@example.com")
    token = blind.sealed(other, found)
    assert chat(ana, "blind:0", round=token).status_code == 404
    mine = blind.sealed(acme.owner, found)
    assert chat(ana, "blind:2", round=mine).status_code == chat(ana, "blind:x", round=mine).status_code == 404
    assert chat(ana, "blind:0", round=mine[:-2]).status_code == 404
    monkeypatch.setattr(blind, "LASTS", -1)
    assert chat(ana, "blind:0", round=mine).status_code == 404


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
    assert keep(dataset=theirs, target=f"base:{acme.base.pk}", client=acme.client.pk).status_code == 404  # it was this client's page
    released = make_release(acme.owner, acme.artifact)
    for target in (f"release:{released.pk}", f"build:{acme.build.pk}", f"deployment:{make_deployment(acme.project, released).pk}"):
        assert keep(dataset=theirs, target=target).status_code == 404
        assert keep(target=target).status_code == 200


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
