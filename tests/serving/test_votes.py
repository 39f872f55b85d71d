"""Votes: which of several answers somebody found best, once for a blind round, and what they add up to for a client."""

import csv
import io
import uuid
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.test import Client as Browser
from django.urls import reverse

from studio.audit.models import AuditRecord
from studio.serving import blind
from studio.serving.models import Vote
from studio.serving.side_by_side import sides
from studio.serving.votes import tally
from studio.workspaces.services import create_client, create_project
from tests.fixtures import World, make_artifact, make_base_model, make_member, make_order

VOTES = "serving:votes"


@pytest.fixture
def ana(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


@pytest.fixture
def targets(acme: World) -> list[str]:
    return [f"base:{acme.base.pk}", f"adapter:{acme.artifact.pk}"]


def cast(browser: Browser, targets: list[str], best: Any, **more: Any) -> Any:
    told = {"column": targets, "prompt": "Where is it?", "answer": ["Who knows.", "On its way."], "best": best}
    return browser.post(reverse(VOTES), told | more)


def test_a_vote_names_the_best_and_is_on_record_without_what_was_said(ana, acme: World, targets):
    answer = cast(ana, targets, "1").json()
    assert answer["told"] == f"Counted: {acme.artifact.name} is best." and answer["best"] == 1
    vote = Vote.objects.get()
    assert (vote.client, vote.best, vote.blind, vote.answers) == (acme.client, 1, False, ["Who knows.", "On its way."])
    record = AuditRecord.objects.get(verb="vote.cast")
    assert record.client == acme.client and "Where is it?" not in f"{record.label} {record.change}"


def test_a_vote_on_base_models_is_of_the_client_whose_page_it_was(ana, acme: World):
    targets = [f"base:{acme.base.pk}", f"base:{make_base_model(acme.owner, name='Other').pk}"]
    assert cast(ana, targets, "0", client=acme.client.pk).status_code == 200
    assert Vote.objects.get().client == acme.client


def test_none_can_be_best(ana, targets):
    assert cast(ana, targets, "").json()["told"] == "Counted: none is better."
    assert Vote.objects.get().best is None


@pytest.mark.parametrize(
    ("best", "changed", "said"),
    [
        ("2", {}, "no such column"),
        ("-1", {}, "no such column"),
        ("first", {}, "no such column"),
        ("0", {"answer": ["One alone."]}, "do not fit"),
        ("0", {"prompt": "x" * 100_001}, "do not fit"),
    ],
)
def test_what_is_no_vote_is_refused(ana, targets, best, changed, said):
    answer = cast(ana, targets, best, **changed)
    assert answer.status_code == 422 and said in answer.json()["error"]
    assert not Vote.objects.exists()


def test_one_answer_alone_is_not_voted_on(ana, targets):
    assert "at least two" in cast(ana, targets[:1], "0", answer=["Yes."]).json()["error"]


def test_a_blind_round_tells_the_names_with_the_vote_and_takes_one(ana, acme: World, targets):
    token = blind.sealed(acme.owner, sides(acme.owner, targets))
    order = blind.opened(acme.owner, token).targets
    answer = cast(ana, [], "0", round=token)
    assert [column["target"] for column in answer.json()["columns"]] == order
    assert Vote.objects.get().blind
    again = cast(ana, [], "1", round=token)
    assert again.status_code == 422 and "You have voted" in again.json()["error"]
    assert Vote.objects.count() == 1 and AuditRecord.objects.filter(verb="vote.cast").count() == 1


def test_nobody_votes_in_another_s_round_or_across_clients(ana, acme: World, targets):
    other = make_member(acme.workspace, role="member", email="max@example.com")
    assert cast(ana, [], "0", round=blind.sealed(other, sides(other, targets))).status_code == 404
    client = create_client(acme.owner, name="Globex")
    order = make_order(acme.owner, kind="train", client=client)
    foreign = make_artifact(order, create_project(acme.owner, client=client, name="Theirs"), {"x": b"1"}, base_model=acme.base)
    assert cast(ana, [targets[1], f"adapter:{foreign.pk}"], "0").status_code == 422
    assert cast(ana, [targets[0], f"adapter:{foreign.pk}"], "0", client=acme.client.pk).status_code == 422
    assert not Vote.objects.exists()


def test_a_viewer_reads_votes_and_casts_none(acme: World, targets):
    vic = Browser()
    vic.force_login(make_member(acme.workspace, role="viewer", email="vic@example.com").user)
    assert vic.get(reverse(VOTES)).status_code == 200
    assert cast(vic, targets, "0").status_code == 404


def body_of_file(response: Any) -> str:
    async def everything() -> bytes:
        return b"".join([piece async for piece in response.streaming_content])

    return async_to_sync(everything)().decode()


def named(name: str) -> dict[str, str]:
    return {"target": f"release:{uuid.uuid5(uuid.NAMESPACE_DNS, name)}", "title": name, "note": "", "method": "lora"}


def test_the_tally_counts_each_pair_whichever_stood_first():
    one, two, three = named("one"), named("two"), named("three")
    votes = [([one, two], 0), ([two, one], 1), ([two, one], 0), ([one, two], None), ([one, two, three], 2)]
    found = {frozenset((pair.first["title"], pair.second["title"])): pair for pair in tally(votes)}
    pair = found[frozenset(("one", "two"))]
    won = dict(zip((pair.first["title"], pair.second["title"]), pair.wins, strict=False))
    assert (won["one"], won["two"], pair.wins[2]) == (2, 1, 1)  # that a third was best says nothing of these two
    assert sum(pair.shares) == 100
    beaten = found[frozenset(("one", "three"))]
    assert beaten.wins[0 if beaten.first == three else 1] == 1


@pytest.mark.parametrize(
    ("wins", "said"),
    [((5, 0), "too few"), ((6, 5), "Too close"), ((9, 1), "one is found better"), ((1, 9), "two is found better")],
)
def test_a_margin_that_chance_would_give_says_nothing(wins, said):
    votes = [([named("one"), named("two")], best) for best, count in enumerate(wins) for _ in range(count)]
    assert said in tally(votes)[0].sentence


def test_the_page_shows_one_client_s_votes_and_those_of_base_models(ana, acme: World, targets):
    cast(ana, targets, "1")
    globex = create_client(acme.owner, name="Globex")
    assert "Who is found" not in ana.get(reverse(VOTES)).content.decode()
    assert acme.artifact.name in ana.get(reverse(VOTES), {"client": acme.client.pk}).content.decode()
    assert "No votes yet" in ana.get(reverse(VOTES), {"client": globex.pk}).content.decode()
    assert "No votes yet" in ana.get(reverse(VOTES), {"blind": "1"}).content.decode()


def test_the_file_has_a_line_for_each_vote_and_no_formula(ana, acme: World, targets):
    cast(ana, targets, "1", answer=["=1+1", "On its way."])
    cast(ana, targets, "")
    text = body_of_file(ana.get(reverse("serving:votes_export"), {"client": acme.client.pk}))
    newest, oldest = csv.DictReader(io.StringIO(text))
    assert (oldest["best"], oldest["answer_1"], oldest["by"]) == (acme.artifact.name, "'=1+1", "ana@example.com")
    assert newest["best"] == "none" and newest["blind"] == "no"


# ── For scripts ──


def told(targets: list[str], **changed: Any) -> dict[str, Any]:
    return {"columns": targets, "prompt": "Where is it?", "answers": ["Who knows.", "On its way."], "best": 1} | changed


def test_a_script_casts_reads_and_lists_votes(acme: World, targets):
    made = acme.api.post("votes", told(targets))
    assert made.status_code == 201 and "On its way" not in made.content.decode()
    pk = made.json()["id"]
    (line,) = acme.api.get(f"votes?client={acme.client.pk}&blind=false").json()["items"]
    assert (line["id"], line["best"], line["blind"], line["by"]) == (pk, 1, False, "ana@example.com")
    assert "prompt" not in line
    assert acme.api.get("votes?blind=true").json()["items"] == []
    whole = acme.api.get(f"votes/{pk}").json()
    assert (whole["prompt"], whole["answers"]) == ("Where is it?", ["Who knows.", "On its way."])
    assert acme.api.post("votes", told(targets, best=None)).json()["best"] is None


def test_standings_of_a_script_are_those_of_the_page(ana, acme: World, targets):
    for best in (1, 1, 0, None):
        assert acme.api.post("votes", told(targets, best=best)).status_code == 201
    token = blind.sealed(acme.owner, sides(acme.owner, targets))
    assert cast(ana, [], "0", round=token).status_code == 200
    found = acme.api.get(f"votes/standings?client={acme.client.pk}").json()
    assert (found["votes"], found["more"]) == (5, False)
    (pair,) = found["pairs"]
    (shown,) = ana.get(reverse(VOTES), {"client": acme.client.pk}).context["pairs"]
    assert [pair["first_better"], pair["second_better"], pair["neither"]] == shown.wins
    assert (pair["votes"], pair["first"]["target"], pair["sentence"]) == (5, shown.first["target"], shown.sentence)
    assert acme.api.get("votes/standings?blind=true").json()["votes"] == 1
    globex = create_client(acme.owner, name="Globex")
    assert acme.api.get(f"votes/standings?client={globex.pk}").json() == {"votes": 0, "more": False, "pairs": []}


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"best": 2}, "best"),
        ({"best": 4}, "best"),
        ({"best": -1}, "best"),
        ({"answers": ["One alone."]}, "answers"),
        ({"answers": ["x" * 100_001, "y"]}, "answers"),
        ({"prompt": "x" * 100_001}, "prompt"),
        ({"columns": ["base:nothing", "base:other"]}, "columns"),
        ({"blind": True}, "blind"),
    ],
)
def test_what_is_no_vote_of_a_script_is_refused_by_its_field(acme: World, targets, changed, field):
    answer = acme.api.post("votes", told(targets, **changed))
    assert answer.status_code in (400, 422) and field in answer.json()["error"]["fields"], answer.content
    assert not Vote.objects.exists()


def test_a_script_votes_on_two_answers_at_least_and_on_one_clients(acme: World, targets):
    alone = acme.api.post("votes", told(targets[:1], answers=["Yes."], best=0))
    assert alone.status_code == 422 and "columns" in alone.json()["error"]["fields"]
    client = create_client(acme.owner, name="Globex")
    assert acme.api.post("votes", told(targets, client=str(client.pk))).status_code == 400
    assert not Vote.objects.exists()
