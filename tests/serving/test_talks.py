"""Conversations that somebody shares: everybody who sees the client's things sees them as they were, and goes on from them."""

import json
from typing import Any

import pytest
from django.test import Client as Browser
from django.urls import reverse
from django.utils.html import escape

from studio.artifacts.models import Artifact
from studio.audit.models import AuditRecord
from studio.serving.models import Talk
from studio.workspaces.models import Client
from studio.workspaces.services import create_client, create_project
from tests.fixtures import Api, World, make_artifact, make_key, make_member, make_order

TURNS = [
    {"prompt": "Where is <it>?", "answers": [{"text": "Who knows."}, {"text": "On its way.", "tokens": 4, "seconds": 0.2, "first": 0.1}]}
]


def signed_in(member: Any) -> Browser:
    browser = Browser()
    browser.force_login(member.user)
    return browser


@pytest.fixture
def ana(acme: World) -> Browser:
    return signed_in(acme.owner)


def share(browser: Browser, acme: World, turns: Any = TURNS, **changed: Any) -> Any:
    targets = [f"base:{acme.base.pk}", f"adapter:{acme.artifact.pk}"]
    form = {"column": targets, "client": acme.client.pk, "turns": json.dumps(turns), "settings": json.dumps({"temperature": 0.7})}
    return browser.post(reverse("serving:talks"), form | changed)


def test_whoever_sees_the_client_s_things_sees_it_as_it_was(ana, acme: World):
    address = share(ana, acme).json()["url"]
    Artifact.objects.filter(pk=acme.artifact.pk).update(name="Renamed since")
    max_ = signed_in(make_member(acme.workspace, role="viewer", email="max@example.com"))
    page = max_.get(address).content.decode()
    for said in ("Where is &lt;it&gt;?", "Who knows.", "On its way.", "Temperature", "ana@example.com"):
        assert said in page, said
    assert ">Try<" in page and "Renamed since" not in page
    assert "Delete this conversation" not in page
    record = AuditRecord.objects.get(verb="talk.share")
    assert record.client == acme.client and "Where" not in f"{record.label} {record.change}"


def test_it_is_not_there_for_whoever_does_not_see_the_client(ana, acme: World):
    address = share(ana, acme).json()["url"]
    other = create_client(acme.owner, name="Globex")
    for role in ("member", "guest"):
        member = make_member(acme.workspace, role=role, email=f"{role}@example.com", clients=[other])
        assert signed_in(member).get(address).status_code == 404
        assert signed_in(member).post(f"{address}delete/").status_code == 404


def test_it_goes_on_with_the_columns_that_still_answer(ana, acme: World):
    address = share(ana, acme).json()["url"]
    talk = Talk.objects.get()
    page = ana.get(reverse("serving:playground"), {"talk": talk.pk})
    assert [each["column"].target for each in page.context["columns"]] == [f"base:{acme.base.pk}", f"adapter:{acme.artifact.pk}"]
    assert page.context["turns"][0]["answers"][1]["text"] == "On its way."
    assert "Where is \\u003Cit\\u003E?" in page.content.decode()
    talk.columns[1]["target"] = "release:00000000-0000-0000-0000-000000000000"
    talk.save()
    page = ana.get(reverse("serving:playground"), {"talk": talk.pk})
    assert page.context["left_out"] == 1 and [len(turn["answers"]) for turn in page.context["turns"]] == [1]
    assert "cannot answer any more" in page.content.decode()
    assert ana.get(address).status_code == 200


@pytest.mark.parametrize(
    "turns",
    [
        [],
        "text",
        [{"prompt": "Hi", "answers": [{"text": "One."}]}],
        [{"prompt": "", "answers": [None, None]}],
        [{"prompt": "Hi", "answers": [{"text": "x" * 100_001}, None]}],
        [{"prompt": "Hi", "answers": [{"text": "Yes.", "html": "<b>"}, None]}],
        [{"prompt": "Hi", "answers": [None, None]}] * 101,
    ],
)
def test_what_is_no_conversation_is_not_shared(ana, acme: World, turns):
    answer = share(ana, acme, turns)
    assert answer.status_code == 422 and answer.json()["error"]
    assert not Talk.objects.exists()


def test_conversations_of_two_clients_are_not_shared(ana, acme: World):
    client = create_client(acme.owner, name="Globex")
    order = make_order(acme.owner, kind="train", client=client)
    foreign = make_artifact(order, create_project(acme.owner, client=client, name="Theirs"), {"x": b"1"}, base_model=acme.base)
    mixed = [f"adapter:{acme.artifact.pk}", f"adapter:{foreign.pk}"]
    assert share(ana, acme, column=mixed).status_code == 422
    assert share(ana, acme, column=[mixed[1], f"base:{acme.base.pk}"]).status_code == 422  # the page was acme's
    assert share(ana, acme, column="blind:0").status_code == 404
    assert not Talk.objects.exists()


def test_what_base_models_alone_were_asked_on_a_client_s_page_stays_that_client_s(ana, acme: World):
    alone = [{"prompt": "What did it say?", "answers": [{"text": "Half \x00 of it."}]}]
    assert share(ana, acme, alone, column=f"base:{acme.base.pk}").status_code == 200
    talk = Talk.objects.get()
    assert talk.client == acme.client and "\x00" not in talk.turns[0]["answers"][0]["text"]
    create_client(acme.owner, name="Another")  # stands before it in the list
    assert ana.get(reverse("serving:playground"), {"talk": talk.pk}).context["client"] == acme.client


def test_its_maker_and_admins_take_it_back_and_nobody_else(acme: World):
    mia, max_ = (make_member(acme.workspace, role="member", email=f"{name}@example.com") for name in ("mia", "max"))
    first, second = (share(signed_in(mia), acme).json()["url"] for _ in range(2))
    refused = signed_in(max_).post(f"{first}delete/")
    assert refused.status_code == 400 and "an admin" in refused.content.decode()
    assert signed_in(mia).post(f"{first}delete/").status_code == 302
    assert signed_in(acme.owner).post(f"{second}delete/").status_code == 302
    assert not Talk.objects.exists()
    assert AuditRecord.objects.filter(verb="talk.delete").count() == 2


def test_the_list_is_of_one_client_or_of_all_that_are_not_archived(ana, acme: World):
    share(ana, acme)
    globex = create_client(acme.owner, name="Globex")
    listed = reverse("serving:talks")
    assert "Where is &lt;it&gt;?" in ana.get(listed).content.decode()
    assert "Nothing is shared yet" in ana.get(listed, {"client": globex.pk}).content.decode()
    Client.objects.filter(pk=acme.client.pk).update(archived_at="2026-01-01T00:00:00Z")
    assert "Nothing is shared yet" in ana.get(listed).content.decode()
    assert "Where is &lt;it&gt;?" in ana.get(listed, {"client": acme.client.pk}).content.decode()
    assert share(ana, acme).status_code == 404  # nothing is done for it any more


# ── For scripts ──


def written(acme: World, **changed: Any) -> dict[str, Any]:
    turns = [{"prompt": "Where is it?", "answers": [None, {"text": "On its way.", "tokens": 4}]}]
    columns = [f"base:{acme.base.pk}", f"adapter:{acme.artifact.pk}"]
    return {"columns": columns, "turns": turns, "asked_with": {"temperature": 0.7}} | changed


def test_a_script_shares_reads_lists_and_takes_back(acme: World):
    made = acme.api.post("talks", written(acme))
    assert made.status_code == 201 and "On its way" not in made.content.decode()
    pk = made.json()["id"]
    whole = acme.api.get(f"talks/{pk}").json()
    assert (whole["title"], whole["questions"], whole["asked_with"]) == ("Where is it?", 1, {"temperature": 0.7})
    assert whole["turns"][0]["answers"][0] is None and whole["turns"][0]["answers"][1]["text"] == "On its way."
    assert whole["client"] == str(acme.client.pk) and whole["shared_by"] == "ana@example.com"
    (line,) = acme.api.get(f"talks?client={acme.client.pk}").json()["items"]
    assert (line["id"], line["title"], line["columns"][1]["title"]) == (pk, "Where is it?", acme.artifact.name)
    assert "turns" not in line
    assert acme.api.delete(f"talks/{pk}").status_code == 204
    assert acme.api.get(f"talks/{pk}").status_code == 404


@pytest.mark.parametrize("prompt", ["42", "null", '{"a": 1}', "x" * 500])
def test_a_first_question_of_any_kind_heads_its_line(ana, acme: World, prompt):
    acme.api.post("talks", written(acme, turns=[{"prompt": prompt, "answers": [None, None]}]))
    assert acme.api.get("talks").json()["items"][0]["title"] == prompt[:80]
    assert f">{escape(prompt[:80])}</a>" in ana.get(reverse("serving:talks")).content.decode()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"columns": ["base:nothing"]}, "columns"),
        ({"columns": []}, "columns"),
        ({"columns": ["nothing"]}, "columns"),
        ({"turns": []}, "turns"),
        ({"turns": [{"prompt": "Hi", "answers": [None]}]}, "turns"),
        ({"turns": [{"prompt": "", "answers": [None, None]}]}, "turns.0.prompt"),
        ({"asked_with": {"temperature": 9}}, "temperature"),
        ({"asked_with": {"heat": 1}}, "heat"),
        ({"client": "00000000-0000-0000-0000-000000000000"}, "client"),
    ],
)
def test_what_a_script_cannot_share_is_refused_by_its_field(acme: World, changed, field):
    answer = acme.api.post("talks", written(acme, **changed))
    assert answer.status_code in (400, 422) and field in answer.json()["error"]["fields"], answer.content
    assert not Talk.objects.exists()


def test_a_script_takes_back_only_what_its_maker_may(acme: World):
    mia, max_ = (make_member(acme.workspace, role="member", email=f"{name}@example.com") for name in ("mia", "max"))
    pk = Api(make_key(mia)).post("talks", written(acme)).json()["id"]
    refused = Api(make_key(max_)).delete(f"talks/{pk}")
    assert refused.status_code == 400 and "an admin" in refused.json()["error"]["message"]
    assert Talk.objects.exists()
    reader = Api(make_key(acme.owner, scopes=["read"]))
    assert reader.get(f"talks/{pk}").status_code == 200
    assert {reader.post("talks", written(acme)).status_code, reader.delete(f"talks/{pk}").status_code} <= {403, 404}
    assert Talk.objects.count() == 1


def test_a_list_of_a_script_leaves_out_archived_clients_unless_asked(acme: World):
    assert acme.talk
    create_client(acme.owner, name="Globex")
    Client.objects.filter(pk=acme.client.pk).update(archived_at="2026-01-01T00:00:00Z")
    assert acme.api.get("talks").json()["items"] == []
    for asked in (f"talks?client={acme.client.pk}", "talks?archived=true"):
        assert len(acme.api.get(asked).json()["items"]) == 1, asked
    assert acme.api.delete(f"talks/{acme.talk.pk}").status_code == 404
