"""Kept answers are found, judged, corrected and made rows of, by whoever may, within their client."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.clients import erasing
from studio.datasets import drafting
from studio.errors import UserError
from studio.serving import answers, keeping
from studio.serving.answers import Wanted
from studio.serving.models import Keeping, KeptAnswer
from studio.workspaces import keys
from studio.workspaces.services import create_client, create_project
from tests.clients.test_exporting import jsonl, unzipped
from tests.fixtures import Api, World, make_deployment, make_kept, make_key, make_member, make_version


@pytest.fixture
def window(acme: World) -> Browser:
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def another(acme: World, question: str = "Can I return it?", answer: str = "Within a month.") -> KeptAnswer:
    assert acme.kept
    return make_kept(acme.deployment, acme.release, question=question, answer=answer)


def last(verb: str) -> Any:
    return AuditRecord.objects.filter(verb=verb).latest("pk")


def added_by(acme: World) -> list[Any]:
    version = acme.version
    return drafting.changes_of(drafting.draft_of(acme.owner, version)).added


# ── Reading and searching ──


def test_the_list_shows_how_each_begins_and_leads_to_all_of_it(window: Browser, acme: World) -> None:
    kept = another(acme, question="<b>Is</b> it\nsafe?", answer="x" * 5000)
    page = window.get("/answers/").content.decode()
    assert "&lt;b&gt;Is&lt;/b&gt; it safe?" in page
    assert "x" * 301 not in page
    whole = window.get(f"/answers/{kept.pk}/").content.decode()
    assert "x" * 5000 in whole
    assert f"chatcmpl-{kept.pk.hex}" in whole
    assert "<b>Is" not in whole


def test_words_are_found_in_any_case_and_script_in_question_and_answer(window: Browser, acme: World) -> None:
    other = acme.kept
    another(acme, question="Für wen ist das?", answer='ΑΘΗΝΑ liefert "nach Maß".')
    some = {"FÜR": 1, "αθηνα maß": 1, "tomor": 1, "come?": 1}
    for typed, count in (some | dict.fromkeys(("morrow", "user", "content", "für tomorrow", "%", "_"), 0)).items():
        found = Wanted(typed=typed).of(KeptAnswer.objects.all(), acme.owner)
        assert found.count() == count, typed
    assert "No answer like that" in window.get("/answers/?q=nobody").content.decode()
    assert str(other.pk) in window.get("/answers/?q=COME").content.decode()


def test_the_list_is_narrowed_by_what_people_said_by_days_and_by_what_answered(window: Browser, acme: World) -> None:
    kept, other = acme.kept, another(acme)
    answers.judge(acme.owner, kept, thumb=1)
    answers.judge(acme.owner, other, thumb=-1, correction="No.")
    KeptAnswer.objects.filter(pk=other.pk).update(at=timezone.now() - timedelta(days=3))

    def found(query: str) -> set[Any]:
        page = window.get(f"/answers/?{query}").content.decode()
        return {row.pk for row in (kept, other) if str(row.pk) in page}

    today = timezone.now().date()
    assert found("judged=good") == {kept.pk}
    assert found("judged=bad") == found("judged=corrected") == {other.pk}
    assert found("judged=open") == set()
    assert found(f"since={today - timedelta(days=1)}") == {kept.pk}
    assert found(f"until={today - timedelta(days=1)}") == {other.pk}
    assert found("since=0000-99-99&until=9999-12-31&judged=nonsense") == {kept.pk, other.pk}
    assert found(f"deployment={acme.deployment.pk}") == found(f"release={acme.release.pk}") == {kept.pk, other.pk}
    elsewhere = make_deployment(acme.project, slug="elsewhere")
    assert found(f"deployment={elsewhere.pk}") == set()


def test_one_leads_to_its_neighbours_within_the_filter(window: Browser, acme: World) -> None:
    made = [acme.kept, another(acme), another(acme)]
    for number, kept in enumerate(made):
        KeptAnswer.objects.filter(pk=kept.pk).update(at=timezone.now() - timedelta(minutes=number), thumb=number % 2)
    page = window.get(f"/answers/{made[1].pk}/").content.decode()
    assert f'href="/answers/{made[0].pk}/?" data-key="k"' in page
    assert f'href="/answers/{made[2].pk}/?" data-key="j"' in page
    page = window.get(f"/answers/{made[2].pk}/?judged=open").content.decode()
    assert f'href="/answers/{made[0].pk}/?judged=open" data-key="k"' in page
    assert 'data-key="j"' not in page


def test_a_hostile_conversation_is_bounded_on_its_page(window: Browser, acme: World) -> None:
    assert acme.kept
    messages: list[Any] = [{"role": "user", "content": "hm"}] * 500
    messages += ["no object", {"role": ["odd"], "content": {"a": 1}}, {"role": "r" * 500, "content": "y" * 30_000}, None, 7]
    odd = {"content": [{"type": "text", "text": "part"}, "plain", 3], "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}, 5]}
    told: dict[str, Any] = {"deployment": acme.deployment, "release": acme.release, "key": None, "at": timezone.now()}
    kept = keeping.keep(pk=uuid.uuid4(), messages=messages, answer=odd, **told)
    assert kept is not None
    assert kept.beginning == "part plain look({})"
    page = window.get(f"/answers/{kept.pk}/").content.decode()
    assert "305 earlier messages not shown." in page
    assert "10,000 more characters" in page
    assert len(page) < 200_000


# ── Judging ──


def test_a_thumb_and_a_correction_are_given_and_taken_back(window: Browser, acme: World) -> None:
    kept = acme.kept
    assert window.post(f"/answers/{kept.pk}/judge/?judged=open", {"thumb": "1"})["Location"] == f"/answers/{kept.pk}/?judged=open"
    kept.refresh_from_db()
    assert (kept.thumb, kept.judged_by) == (1, acme.owner.user)
    assert last("answer.judge").change == {"thumb": [0, 1]}
    window.post(f"/answers/{kept.pk}/judge/", {"correction": "  On Monday.  "})
    kept.refresh_from_db()
    assert (kept.thumb, kept.correction) == (1, "On Monday.")
    assert last("answer.judge").change == {"corrected": [False, True]}  # its text is in no log
    window.post(f"/answers/{kept.pk}/judge/", {"thumb": "0", "correction": ""})
    kept.refresh_from_db()
    assert (kept.thumb, kept.correction) == (0, "")
    window.post(f"/answers/{kept.pk}/judge/", {"thumb": "0"})
    assert AuditRecord.objects.filter(verb="answer.judge").count() == 3


@pytest.mark.parametrize("sent", [{"thumb": "5"}, {"thumb": "up"}, {"correction": "x" * 100_001}])
def test_what_is_no_judgement_is_refused_and_what_was_typed_stays(window: Browser, acme: World, sent: dict[str, str]) -> None:
    answer = window.post(f"/answers/{acme.kept.pk}/judge/", sent)
    assert answer.status_code == 422
    assert not AuditRecord.objects.filter(verb="answer.judge").exists()
    assert sent.get("correction", "") in answer.content.decode()


def test_a_viewer_sees_no_answer_and_judges_none(acme: World) -> None:
    bob = Browser()
    bob.force_login(make_member(acme.workspace, role="viewer", email="bob@example.com").user)
    for address in ("/answers/", f"/answers/{acme.kept.pk}/"):
        assert bob.get(address).status_code == 404
    assert bob.post(f"/answers/{acme.kept.pk}/judge/", {"thumb": "1"}).status_code == 404


# ── Adding to a dataset ──


def test_a_good_answer_becomes_a_row_of_a_draft(window: Browser, acme: World) -> None:
    kept, dataset = acme.kept, acme.version.dataset
    told = {"dataset": dataset.pk, "answer": kept.pk}
    assert window.post("/answers/add/", told)["Location"] == f"/answers/{kept.pk}/"
    asked = {"role": "user", "content": "When does it come?"}
    assert added_by(acme) == [{"messages": [asked, {"role": "assistant", "content": "Tomorrow."}]}]
    kept.refresh_from_db()
    assert kept.dataset_version == acme.version
    assert last("draft.change").change == {"added": 1}
    assert "has them already" in window.post("/answers/add/", told, follow=True).content.decode()
    assert len(added_by(acme)) == 1


def test_a_correction_is_learnt_instead_of_the_answer(acme: World) -> None:
    answers.judge(acme.owner, acme.kept, thumb=-1, correction="On Monday.")
    answers.add(acme.owner, acme.version.dataset, answers.visible(acme.owner, "answer.view").get())
    assert added_by(acme)[0]["messages"][-1] == {"role": "assistant", "content": "On Monday."}


def test_all_good_ones_of_a_filter_are_added_in_one_change(window: Browser, acme: World) -> None:
    good, corrected, bad = acme.kept, another(acme, question="Corrected?"), another(acme, question="Bad?")
    another(acme, question="Nobody judged?")
    empty = another(acme, question="Empty?", answer="")
    answers.judge(acme.owner, good, thumb=1), answers.judge(acme.owner, empty, thumb=1)
    answers.judge(acme.owner, corrected, thumb=-1, correction="Better."), answers.judge(acme.owner, bad, thumb=-1)
    told = {"dataset": acme.version.dataset_id}
    page = window.post("/answers/add/", told, follow=True).content.decode()
    assert "Added 2 rows to your draft of Replies. 1 could not be rows." in page
    assert sorted(row["messages"][0]["content"] for row in added_by(acme)) == ["Corrected?", "When does it come?"]
    assert AuditRecord.objects.filter(verb="draft.change").count() == 1
    again = another(acme, question="One more?")
    answers.judge(acme.owner, again, thumb=1)
    assert "Added 1 row to your draft" in window.post("/answers/add/?q=more", told, follow=True).content.decode()
    assert "Judge some first" in window.post("/answers/add/?q=more", told, follow=True).content.decode()


def test_after_a_draft_was_discarded_they_can_be_added_again_and_after_it_was_saved_not(acme: World) -> None:
    answers.judge(acme.owner, acme.kept, thumb=1)
    rows = answers.visible(acme.owner, "answer.view")
    dataset = acme.version.dataset
    answers.add_all(acme.owner, dataset, rows)
    drafting.discard(acme.owner, acme.version)
    assert answers.add_all(acme.owner, dataset, rows).rows == 1
    newer = make_version(acme.owner, acme.project, name="Other")
    newer.dataset, newer.number = dataset, 2
    newer.save()
    with pytest.raises(UserError, match="Judge some first"):
        answers.add_all(acme.owner, dataset, rows)


def test_so_many_are_added_at_once_and_the_rest_is_told(acme: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "AT_ONCE", 2)
    for number in range(5):
        answers.judge(acme.owner, another(acme, question=f"Question {number}?"), thumb=1)
    told = answers.add_all(acme.owner, acme.version.dataset, answers.visible(acme.owner, "answer.view"))
    assert (told.rows, told.left) == (2, 3)
    assert told.as_words(acme.version.dataset).endswith("3 are left. Add again.")
    told = answers.add_all(acme.owner, acme.version.dataset, answers.visible(acme.owner, "answer.view"))
    assert (told.rows, told.left) == (2, 1)
    assert len(added_by(acme)) == 4


def test_what_one_client_was_told_becomes_no_row_of_another(window: Browser, acme: World) -> None:
    other = create_project(acme.owner, client=create_client(acme.owner, name="Globex", slug=""), name="Q", slug="")
    dataset = make_version(acme.owner, other, name="Theirs").dataset
    answers.judge(acme.owner, acme.kept, thumb=1)
    assert window.post("/answers/add/", {"dataset": dataset.pk, "answer": acme.kept.pk}).status_code == 404
    assert "Judge some first" in window.post("/answers/add/", {"dataset": dataset.pk}, follow=True).content.decode()
    assert window.post(f"/answers/add/?project={acme.project.pk}", {"dataset": dataset.pk}).status_code == 404
    assert drafting.draft_of(acme.owner, dataset.versions.get()) is None


# ── The setting ──


def test_a_project_says_that_it_keeps_answers_and_its_pages_say_so(window: Browser, acme: World) -> None:
    address = f"/answers/of/{acme.project.pk}/"
    assert "No request and no answer" in window.get(address).content.decode()
    assert window.post(address, {"days": "14"}).status_code == 302
    for page in (address, f"/projects/{acme.project.pk}/", f"/deployments/{acme.deployment.pk}/", f"/answers/?project={acme.project.pk}"):
        assert "14 days" in window.get(page).content.decode(), page
    assert f"/answers/?project={acme.project.pk}" in window.get(f"/projects/{acme.project.pk}/").content.decode()
    deployment = window.get(f"/deployments/{acme.deployment.pk}/").content.decode()
    assert f"/answers/?deployment={acme.deployment.pk}" in deployment
    assert f"/settings/?deployment={acme.deployment.pk}#new-key" in deployment
    assert last("answer.keep").change == {"days": [None, 14], "deleted": 0}


def test_what_would_be_deleted_is_asked_about_first(window: Browser, acme: World) -> None:
    address, kept = f"/answers/of/{acme.project.pk}/", acme.kept
    KeptAnswer.objects.filter(pk=kept.pk).update(at=timezone.now() - timedelta(days=20))
    asked = window.post(address, {"days": "7"})
    assert asked.status_code == 422
    assert "This deletes 1 answer older than 7 days." in asked.content.decode()
    assert 'name="confirm" value="7"' in asked.content.decode()
    assert window.post(address, {"days": "1", "confirm": "7"}).status_code != 302
    assert KeptAnswer.objects.exists()
    assert window.post(address, {"days": "7", "confirm": "7"}).status_code == 302
    assert not KeptAnswer.objects.exists()


def test_stopping_deletes_what_was_kept(window: Browser, acme: World) -> None:
    address = f"/answers/of/{acme.project.pk}/"
    assert acme.kept
    assert "stop-keeping" in window.get(address).content.decode()
    assert "1 deleted" in window.post(address, {"stop": "true"}, follow=True).content.decode()
    assert not KeptAnswer.objects.exists()


@pytest.mark.parametrize("days", ["0", "366", "-1", "many", "", "١"])
def test_days_that_are_none_are_refused_beside_their_field(window: Browser, acme: World, days: str) -> None:
    answer = window.post(f"/answers/of/{acme.project.pk}/", {"days": days})
    assert answer.status_code == 422
    assert "Keep them for 1 to 365 days." in answer.content.decode()


def test_a_member_sees_that_answers_are_kept_and_cannot_change_it(acme: World) -> None:
    bob = Browser()
    bob.force_login(make_member(acme.workspace, role="member", email="bob@example.com").user)
    assert acme.kept
    assert "30 days" in bob.get(f"/projects/{acme.project.pk}/").content.decode()
    assert bob.get(f"/answers/of/{acme.project.pk}/").status_code == 404
    assert bob.post(f"/answers/{acme.kept.pk}/delete/").status_code == 404
    assert KeptAnswer.objects.exists()


def test_one_is_deleted_for_good_and_that_is_recorded(window: Browser, acme: World) -> None:
    kept = acme.kept
    window.post(f"/answers/{kept.pk}/delete/")
    assert not KeptAnswer.objects.exists()
    assert last("answer.delete").object_id == str(kept.pk)


# ── For scripts ──


def test_a_script_reads_judges_and_deletes_them(acme: World) -> None:
    kept = acme.kept
    listed = acme.api.get("answers?judged=open&q=tomorrow").json()["items"]
    assert [(item["id"], item["question"], item["corrected"]) for item in listed] == [(str(kept.pk), "When does it come?", False)]
    assert "messages" not in listed[0]
    whole = acme.api.get(f"answers/chatcmpl-{kept.pk.hex}").json()
    assert whole["messages"] == [{"role": "user", "content": "When does it come?"}]
    assert whole["answer"]["content"] == "Tomorrow."
    told = acme.api.post(f"answers/chatcmpl-{kept.pk.hex}/judge", {"thumb": -1, "correction": "On Monday."})
    assert (told.status_code, told.json()["thumb"], told.json()["corrected"]) == (200, -1, True)
    assert acme.api.get(f"answers/{kept.pk}").json()["correction"] == "On Monday."
    assert acme.api.delete(f"answers/{kept.pk}").status_code == 204
    assert acme.api.get(f"answers/{kept.pk}").status_code == 404


def test_the_list_of_a_script_goes_on_where_it_ended(acme: World) -> None:
    made = {str(acme.kept.pk)} | {str(another(acme).pk) for _ in range(4)}
    found, address = [], "answers?limit=2"
    while address:
        page = acme.api.get(address).json()
        found += [item["id"] for item in page["items"]]
        address = page["next"]
    assert len(found) == 5
    assert set(found) == made


@pytest.mark.parametrize("name", ["chatcmpl-", "chatcmpl-xyz", "nothing", "chatcmpl-" + "0" * 32])
def test_an_id_that_is_none_is_not_found(acme: World, name: str) -> None:
    assert acme.api.get(f"answers/{name}").status_code == 404
    assert acme.api.post(f"answers/{name}/judge", {"thumb": 1}).status_code == 404


@pytest.mark.parametrize("sent", [{"thumb": 2}, {"thumb": "good"}, {"correction": "x" * 100_001}, {"stars": 5}])
def test_a_judgement_that_is_none_is_refused_by_its_field(acme: World, sent: dict[str, Any]) -> None:
    answer = acme.api.post(f"answers/{acme.kept.pk}/judge", sent)
    assert answer.status_code == 422
    assert list(answer.json()["error"]["fields"]) == list(sent)


def test_an_end_users_thumb_comes_by_the_key_that_asked(acme: World) -> None:
    """The shop's key is narrowed to its deployment: it judges what it asked, sees nothing, and judges no other's."""
    others = acme.kept
    key, secret = keys.create(acme.owner, name="shop", scopes=[], deployments=[acme.deployment])
    told: dict[str, Any] = {"deployment": acme.deployment, "release": acme.release, "at": timezone.now(), "messages": [], "answer": {}}
    own = keeping.keep(pk=uuid.uuid4(), key=key, **told)
    assert own is not None
    shop = Api(secret)
    assert shop.post(f"answers/chatcmpl-{own.pk.hex}/judge", {"thumb": 1}).status_code == 200
    own.refresh_from_db()
    assert own.thumb == 1
    assert last("answer.judge").key == "shop"
    assert shop.post(f"answers/{others.pk}/judge", {"thumb": 1}).status_code == 404
    for path in ("answers", f"answers/{own.pk}"):
        assert shop.get(path).status_code == 404
    assert shop.delete(f"answers/{own.pk}").status_code == 404


def test_a_key_of_one_client_judges_no_other_clients_answers(acme: World) -> None:
    other = create_client(acme.owner, name="Globex", slug="")
    api = Api(make_key(acme.owner, scopes=["inference", "deploy"], clients=[other]))
    assert api.post(f"answers/{acme.kept.pk}/judge", {"thumb": 1}).status_code == 404
    assert api.get("answers").json()["items"] == []


def test_a_script_turns_keeping_on_and_off(acme: World) -> None:
    address = f"projects/{acme.project.pk}/keeping"
    assert acme.api.get(address).json() == {"days": None}
    assert acme.api.patch(address, {"days": 3}).json() == {"days": 3}
    assert acme.kept
    refused = acme.api.patch(address, {"days": None})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "confirm")
    assert KeptAnswer.objects.exists()
    assert acme.api.patch(address, {"days": None, "confirm": True}).json() == {"days": None}
    assert not KeptAnswer.objects.exists()
    assert acme.api.patch(address, {"days": 400}).status_code == 422


def test_pages_ask_as_often_however_many_answers_there_are(window: Browser, acme: World) -> None:
    assert acme.kept
    with CaptureQueriesContext(
        connection,
    ) as few:
        window.get(f"/answers/?project={acme.project.pk}")
    for number in range(30):
        another(acme, question=f"Question {number}?")
    with CaptureQueriesContext(connection) as many:
        window.get(f"/answers/?project={acme.project.pk}")
    assert len(many) <= len(few)


# ── With its client ──


def test_what_is_kept_of_a_client_is_exported_without_the_copy_for_searching(acme: World) -> None:
    answers.judge(acme.owner, acme.kept, thumb=-1, correction="On Monday.")
    files = unzipped(acme.api.get(f"clients/{acme.client.pk}/export"))
    (line,) = jsonl(files["records/kept_answers.jsonl"])
    assert (line["messages"], line["answer"]["content"]) == ([{"role": "user", "content": "When does it come?"}], "Tomorrow.")
    assert (line["thumb"], line["correction"], line["judged_by"]) == (-1, "On Monday.", "ana@example.com")
    assert "words" not in line
    assert jsonl(files["records/keepings.jsonl"])[0]["days"] == 30


@pytest.mark.django_db(transaction=True)
def test_an_erased_client_leaves_no_answer_and_its_keys_without_reach(acme: World) -> None:
    key, secret = keys.create(acme.owner, name="shop", scopes=[], deployments=[acme.deployment])
    other = create_project(acme.owner, client=create_client(acme.owner, name="Globex", slug=""), name="Q", slug="")
    _, wide = keys.create(acme.owner, name="both", scopes=[], deployments=[acme.deployment, make_deployment(other, slug="theirs")])
    assert acme.kept
    erasing.erase(acme.owner, acme.client, typed=acme.client.name, reason="")
    assert not KeptAnswer.objects.exists()
    assert not Keeping.objects.exists()
    key.refresh_from_db()
    assert key.revoked_at is not None
    assert Api(secret).get("me").status_code == 401
    assert [named["name"] for named in Api(wide).get("me").json()["deployments"]] == ["globex/theirs"]
