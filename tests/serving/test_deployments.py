"""Deployments: what may be promoted, what a rollback brings back, and what the history says of it."""

import threading
from itertools import pairwise

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext

from studio.audit.models import AuditRecord
from studio.errors import UserError
from studio.releases.models import Release
from studio.serving import deploying
from studio.serving.models import Deployment
from studio.workspaces.services import archive_client, create_client, create_project
from tests.fixtures import Api, make_artifact, make_deployment, make_key, make_member, make_order, make_release


@pytest.fixture
def deployment(acme):
    return make_deployment(acme.project)


@pytest.fixture
def ana(acme):
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def approved(acme, minor, **more):
    return make_release(acme.owner, acme.artifact, version=(1, minor, 0), stage="approved", **more)


def promoted(acme, deployment, *minors):
    """These releases, promoted one after the other."""
    releases = [approved(acme, minor) for minor in minors]
    for release in releases:
        deploying.promote(acme.owner, deployment, release=release)
    return releases


def retire(release):
    Release.objects.filter(pk=release.pk).update(stage="retired")


def verbs():
    return [record.verb for record in AuditRecord.objects.filter(verb__startswith="deployment.").order_by("pk")]


def numbers(deployment):
    return [state.number for state in deployment.states.order_by("number")]


def test_a_promotion_says_who_when_why_and_what_came_before(acme, deployment):
    one, two = approved(acme, 0), approved(acme, 1)
    deploying.promote(acme.owner, deployment, release=one, why=" first\nof all ")
    deploying.promote(acme.owner, deployment, release=two, why="Fewer refusals")
    deployment.refresh_from_db()
    assert deployment.release == two
    newest, first = deployment.states.all()
    assert (first.number, first.release, first.why, first.user, first.key) == (1, one, "first of all", acme.owner.user, "")
    assert (newest.number, newest.change, newest.release, newest.why) == (2, "promote", two, "Fewer refusals")
    record = AuditRecord.objects.filter(verb="deployment.promote").first()
    assert record.change == {"release": [one.name, two.name], "state": [1, 2], "why": [None, "Fewer refusals"]}
    assert (record.client, record.label) == (acme.client, "in-house/support")


def test_what_is_promoted_already_is_left_alone(acme, deployment):
    (release,) = promoted(acme, deployment, 0)
    assert deploying.promote(acme.owner, deployment, release=release) is None
    assert (numbers(deployment), verbs()) == ([1], ["deployment.promote"])


@pytest.mark.parametrize(("stage", "words"), [("draft", "is a draft"), ("candidate", "is a candidate"), ("retired", "is retired")])
def test_only_an_approved_release_is_promoted_or_tried(acme, deployment, stage, words):
    promoted(acme, deployment, 0)
    unfit = make_release(acme.owner, acme.artifact, version=(1, 1, 0), stage=stage)
    for change, more in ((deploying.promote, {}), (deploying.try_canary, {"percent": 10})):
        with pytest.raises(UserError, match=f"{words}. Only an approved release can be promoted.") as problem:
            change(acme.owner, deployment, release=unfit, **more)
        assert list(problem.value.fields) == ["release"]
    assert numbers(deployment) == [1]


def test_a_release_of_another_project_is_refused(acme, deployment):
    project = create_project(acme.owner, client=acme.client, name="Other")
    artifact = make_artifact(make_order(acme.owner, kind="train", client=acme.client), project, {"a": b"a"}, base_model=acme.base)
    other = make_release(acme.owner, artifact, stage="approved")
    with pytest.raises(UserError, match="belongs to another project"):
        deploying.promote(acme.owner, deployment, release=other)


@pytest.mark.parametrize("cleared", [False, True], ids=["answering", "cleared"])
def test_a_release_of_another_task_has_a_deployment_of_its_own(acme, ana, deployment, cleared):
    promoted(acme, deployment, 0)
    other = approved(acme, 1)
    Release.objects.filter(pk=other.pk).update(task="summaries")
    other.refresh_from_db()
    if cleared:
        deploying.clear(acme.owner, deployment)
    for change, more in ((deploying.promote, {}), (deploying.try_canary, {"percent": 10})):
        with pytest.raises(UserError, match=f"in-house/support answers {acme.project.slug}, and .* is for summaries") as problem:
            change(acme.owner, deployment, release=other, **more)
        assert "Make another deployment" in problem.value.fields["release"]
    assert other.name not in ana.get(f"/deployments/{deployment.pk}/").content.decode()
    deploying.promote(acme.owner, make_deployment(acme.project, slug="summaries"), release=other)


def test_a_canary_begins_changes_and_ends(acme, deployment):
    (main,) = promoted(acme, deployment, 0)
    new = approved(acme, 1)
    assert deploying.try_canary(acme.owner, deployment, release=new, percent=5).number == 2
    assert deploying.try_canary(acme.owner, deployment, release=new, percent=5) is None
    assert deploying.try_canary(acme.owner, deployment, release=new, percent=50).number == 3
    assert (deployment.release, deployment.canary, deployment.canary_percent) == (main, new, 50)
    assert deploying.end_canary(acme.owner, deployment).number == 4
    assert deploying.end_canary(acme.owner, deployment) is None
    assert (deployment.release, deployment.canary, deployment.canary_percent) == (main, None, 0)
    assert verbs() == ["deployment.promote"] + ["deployment.canary"] * 3


def test_a_canary_becomes_the_release_that_answers(acme, deployment):
    promoted(acme, deployment, 0)
    new = approved(acme, 1)
    deploying.try_canary(acme.owner, deployment, release=new, percent=5)
    state = deploying.promote(acme.owner, deployment, release=new)
    assert (state.release, state.canary, state.canary_percent, state.change) == (new, None, 0, "promote")


@pytest.mark.parametrize("percent", [0, 100, -1, 1000])
def test_a_canary_takes_one_to_ninety_nine_per_cent(acme, deployment, percent):
    promoted(acme, deployment, 0)
    with pytest.raises(UserError) as problem:
        deploying.try_canary(acme.owner, deployment, release=approved(acme, 1), percent=percent)
    assert problem.value.fields == {"canary_percent": "Must be from 1 to 99 per cent of the requests."}


def test_a_canary_is_another_release_beside_one_that_answers(acme, deployment):
    release = approved(acme, 0)
    with pytest.raises(UserError, match="Nothing answers here yet"):
        deploying.try_canary(acme.owner, deployment, release=release, percent=5)
    deploying.promote(acme.owner, deployment, release=release)
    with pytest.raises(UserError, match="answers here already"):
        deploying.try_canary(acme.owner, deployment, release=release, percent=5)


def test_a_rollback_brings_back_what_answered_before(acme, deployment):
    one, _ = promoted(acme, deployment, 0, 1)
    state = deploying.roll_back(acme.owner, deployment)
    assert (state.number, state.change, state.release, state.back_to.number) == (3, "rollback", one, 1)
    assert Deployment.objects.get(pk=deployment.pk).release == one


def test_rolling_back_again_goes_further_back_and_never_forth(acme, deployment):
    one, two, _ = promoted(acme, deployment, 0, 1, 2)
    assert deploying.roll_back(acme.owner, deployment).release == two
    assert deploying.roll_back(acme.owner, deployment).release == one
    with pytest.raises(UserError, match="nothing to roll back to"):
        deploying.roll_back(acme.owner, deployment)
    assert numbers(deployment) == [1, 2, 3, 4, 5]


def test_after_a_rollback_a_new_promotion_is_rolled_back_to_what_answered_then(acme, deployment):
    one, _ = promoted(acme, deployment, 0, 1)
    deploying.roll_back(acme.owner, deployment)
    promoted(acme, deployment, 2)
    assert deploying.roll_back(acme.owner, deployment).release == one


def test_a_rollback_leads_to_any_earlier_state_whole(acme, deployment):
    main, new, last = approved(acme, 0), approved(acme, 1), approved(acme, 2)
    deploying.promote(acme.owner, deployment, release=main)
    deploying.try_canary(acme.owner, deployment, release=new, percent=20)
    deploying.promote(acme.owner, deployment, release=last)
    state = deploying.roll_back(acme.owner, deployment, to=2, why="It was the canary after all")
    assert (state.release, state.canary, state.canary_percent, state.why) == (main, new, 20, "It was the canary after all")
    assert deploying.roll_back(acme.owner, deployment, to=2) is None


def test_a_rollback_without_a_state_leaves_nothing_of_what_is_taken_back(acme, deployment):
    main, new = approved(acme, 0), approved(acme, 1)
    deploying.promote(acme.owner, deployment, release=main)
    deploying.try_canary(acme.owner, deployment, release=new, percent=20)
    assert deploying.before(deployment).number == 1  # the canary alone is taken back
    deploying.promote(acme.owner, deployment, release=new)
    state = deploying.roll_back(acme.owner, deployment)
    assert (state.release, state.canary, state.back_to.number) == (main, None, 1)


def test_a_rollback_to_a_release_that_was_retired_since_is_done_and_said(acme, ana, deployment):
    one, _ = promoted(acme, deployment, 0, 1)
    retire(one)
    answer = ana.post(f"/deployments/{deployment.pk}/rollback/", {"to": "1"}, follow=True)
    text = answer.content.decode()
    assert "It has been retired since" in text
    assert "This release has been retired." in text
    assert Deployment.objects.get(pk=deployment.pk).release == one


@pytest.mark.parametrize("stage", ["draft", "candidate"])
def test_what_must_be_approved_anew_comes_back_by_no_rollback(acme, deployment, stage):
    main, new = approved(acme, 0), approved(acme, 1)
    deploying.promote(acme.owner, deployment, release=main)
    deploying.try_canary(acme.owner, deployment, release=new, percent=20)
    promoted(acme, deployment, 2)
    for again in (main, new):
        Release.objects.update(stage="approved")
        Release.objects.filter(pk=again.pk).update(stage=stage)
        with pytest.raises(
            UserError, match=f"{again.name} is a {stage} again, so it answers nowhere. Approve it or retire it first."
        ) as problem:
            deploying.roll_back(acme.owner, deployment, to=2)
        assert list(problem.value.fields) == ["to"]
    assert numbers(deployment) == [1, 2, 3]


def test_an_archived_deployment_is_restored_only_with_what_is_still_approved_or_retired(acme, ana, deployment):
    (release,) = promoted(acme, deployment, 0)
    deploying.archive(acme.owner, deployment)
    Release.objects.filter(pk=release.pk).update(stage="draft")
    with pytest.raises(UserError, match="is a draft again, so it answers nowhere"):
        deploying.restore(acme.owner, deployment)
    answer = ana.post(f"/deployments/{deployment.pk}/restore/")
    assert (answer.status_code, "Approve it or retire it first." in answer.content.decode()) == (400, True)
    retire(release)
    assert deploying.restore(acme.owner, deployment)


def test_a_rollback_names_a_state_that_is_there(acme, deployment):
    promoted(acme, deployment, 0)
    deploying.clear(acme.owner, deployment)
    with pytest.raises(UserError) as problem:
        deploying.roll_back(acme.owner, deployment, to=7)
    assert problem.value.fields == {"to": "The history of in-house/support has no state 7."}
    with pytest.raises(UserError, match="Nothing answered in state 2"):
        deploying.roll_back(acme.owner, deployment, to=2)


def test_what_was_cleared_comes_back_by_a_rollback(acme, deployment):
    (release,) = promoted(acme, deployment, 0)
    assert deploying.clear(acme.owner, deployment, why="Wrong client").release is None
    assert deploying.clear(acme.owner, deployment) is None
    assert deploying.roll_back(acme.owner, deployment).release == release
    assert verbs() == ["deployment.promote", "deployment.clear", "deployment.rollback"]


def test_a_deployment_that_is_archived_points_nowhere_else(acme, deployment):
    promoted(acme, deployment, 0, 1)
    assert deploying.archive(acme.owner, deployment)
    assert not deploying.archive(acme.owner, deployment)
    for change in (deploying.roll_back, deploying.clear, deploying.end_canary):
        with pytest.raises(UserError, match="is archived"):
            change(acme.owner, deployment)
    assert deploying.restore(acme.owner, deployment)
    assert not deploying.restore(acme.owner, deployment)
    assert deploying.roll_back(acme.owner, deployment)
    assert verbs()[2:] == ["deployment.archive", "deployment.restore", "deployment.rollback"]


def test_a_name_is_one_clients_alone(acme, ana):
    other = create_client(acme.owner, name="Globex")
    there = create_project(acme.owner, client=other, name="Replies")
    form = {"project": acme.project.pk, "slug": "Support EU"}
    assert ana.post("/deployments/new/", form).status_code == 302
    answer = ana.post("/deployments/new/", form)
    assert answer.status_code == 422
    assert "in-house/support-eu is there already." in answer.content.decode()
    assert ana.post("/deployments/new/", form | {"project": there.pk}).status_code == 302
    assert {str(made) for made in Deployment.objects.all()} == {"in-house/support-eu", "globex/support-eu"}
    answer = ana.post("/deployments/new/", form | {"slug": "—"})
    assert (answer.status_code, "Use letters, digits and dashes" in answer.content.decode()) == (422, True)


def test_a_page_says_that_a_second_click_changed_nothing(acme, ana, deployment):
    release = approved(acme, 0)
    for said in (f"Promoted {release.name} to in-house/support.", "in-house/support points there already. Nothing was changed."):
        answer = ana.post(f"/deployments/{deployment.pk}/promote/", {"release": release.pk}, follow=True)
        assert said in answer.content.decode()
    assert numbers(deployment) == [1]


def test_a_form_that_is_refused_keeps_what_was_typed(acme, ana, deployment):
    promoted(acme, deployment, 0)
    new = approved(acme, 1)
    form = {"release": new.pk, "canary_percent": "all", "why": "Let us <b>see</b>"}
    answer = ana.post(f"/deployments/{deployment.pk}/canary/", form)
    text = answer.content.decode()
    assert answer.status_code == 422
    assert "Must be from 1 to 99 per cent" in text
    assert "Let us &lt;b&gt;see&lt;/b&gt;" in text
    answer = ana.post(f"/deployments/{deployment.pk}/promote/", {"release": new.pk, "why": "a" * 501})
    assert (answer.status_code, "At most 500 characters." in answer.content.decode()) == (422, True)
    answer = ana.post(f"/deployments/{deployment.pk}/promote/", {"release": ""})
    assert (answer.status_code, "Choose a release." in answer.content.decode()) == (422, True)
    for typed in ("x", "0", "9"):
        answer = ana.post(f"/deployments/{deployment.pk}/rollback/", {"to": typed})
        assert (answer.status_code, "has no state" in answer.content.decode()) == (422, True)
    assert numbers(deployment) == [1]


def test_the_page_offers_the_release_before_and_every_earlier_state(acme, ana, deployment):
    promoted(acme, deployment, 0, 1, 2)
    text = ana.get(f"/deployments/{deployment.pk}/").content.decode()
    assert "Roll back to v1.1.0" in text
    assert text.count("Roll back to this") == 2
    viewer = Browser()
    viewer.force_login(make_member(acme.workspace, role="viewer", email="vic@example.com").user)
    text = viewer.get(f"/deployments/{deployment.pk}/").content.decode()
    assert "Roll back" not in text
    assert "in-house/support" in text


def test_the_list_says_what_answers_since_when_and_by_whom(acme, ana, deployment):
    (main,) = promoted(acme, deployment, 0)
    deploying.try_canary(acme.owner, deployment, release=approved(acme, 1), percent=7)
    with CaptureQueriesContext(connection) as one:
        text = ana.get("/deployments/").content.decode()
    assert "in-house/support" in text
    assert "by ana@example.com" in text
    assert "answers 7 per cent of the requests" in text
    for number in range(60):
        made = make_deployment(acme.project, slug=f"more-{number}")
        deploying.promote(acme.owner, made, release=main)
    with CaptureQueriesContext(connection) as many:
        text = ana.get("/deployments/").content.decode()
    assert len(many) == len(one)
    assert "1–50 of 61" in text


def test_what_answered_for_an_archived_client_stays_to_read(acme, ana, deployment):
    promoted(acme, deployment, 0, 1)
    create_client(acme.owner, name="Globex")
    archive_client(acme.owner, acme.client)
    answer = ana.get(f"/deployments/{deployment.pk}/")
    assert answer.status_code == 200
    assert "Roll back" not in answer.content.decode()
    assert ana.post(f"/deployments/{deployment.pk}/rollback/").status_code == 404
    assert acme.api.get(f"deployments/{deployment.pk}").json()["history"][0]["number"] == 2
    assert acme.api.post(f"deployments/{deployment.pk}/rollback").status_code == 404


def test_the_api_promotes_tries_rolls_back_and_clears(acme):
    api = Api(make_key(acme.owner, scopes=["read", "deploy"]))
    made = api.post("deployments", {"project": str(acme.project.pk), "slug": "support"})
    assert (made.status_code, made.json()["name"], made.json()["history"]) == (201, "in-house/support", [])
    path = f"deployments/{made.json()['id']}"
    one, two = approved(acme, 0), approved(acme, 1)
    assert api.post(f"{path}/promote", {"release": str(one.pk), "why": "First"}).json()["release"]["name"] == one.name
    assert api.post(f"{path}/promote", {"release": str(one.pk)}).json()["changed"] is False
    tried = api.post(f"{path}/promote", {"release": str(two.pk), "canary_percent": 20}).json()
    assert (tried["release"]["id"], tried["canary"]["id"], tried["canary_percent"]) == (str(one.pk), str(two.pk), 20)
    assert api.delete(f"{path}/canary").json()["canary"] is None
    api.post(f"{path}/promote", {"release": str(two.pk)})
    rolled = api.post(f"{path}/rollback", {"why": "It is night"}).json()
    assert rolled["release"] == {"id": str(one.pk), "name": one.name, "stage": "approved"}
    newest = rolled["history"][0]
    assert (newest["change"], newest["back_to"], newest["why"], newest["key"]) == ("rollback", 3, "It is night", "test")
    assert api.post(f"{path}/rollback", {"to": 4}).json()["release"]["id"] == str(two.pk)
    assert api.post(f"{path}/clear").json()["release"] is None
    assert api.delete(path).status_code == 204
    assert api.get("deployments").json()["items"] == []
    assert [found["id"] for found in api.get("deployments?archived=true").json()["items"]] == [made.json()["id"]]
    assert api.post(f"{path}/restore").json()["archived_at"] is None
    assert [state["number"] for state in api.get(path).json()["history"]] == [7, 6, 5, 4, 3, 2, 1]


def test_the_api_refuses_with_the_field_and_the_reason(acme, deployment):
    draft = make_release(acme.owner, acme.artifact)
    path = f"deployments/{deployment.pk}"
    for body, field in (
        ({"release": str(draft.pk)}, "release"),
        ({}, "release"),
        ({"release": str(draft.pk), "canary_percent": 100}, "canary_percent"),
        ({"release": str(draft.pk), "when": "now"}, "when"),
    ):
        answer = acme.api.post(f"{path}/promote", body)
        assert (answer.status_code, list(answer.json()["error"]["fields"])) == (422, [field]), body
    assert acme.api.post(f"{path}/rollback").status_code == 400
    assert acme.api.post(f"{path}/rollback", {"to": 3}).status_code == 422
    assert acme.api.post("deployments", {"project": str(acme.project.pk), "slug": "support"}).status_code == 422
    assert not deployment.states.exists()


def test_a_key_that_may_only_read_changes_nothing(acme, deployment):
    promoted(acme, deployment, 0, 1)
    reader = Api(make_key(acme.owner, scopes=["read", "write", "train", "inference"]))
    assert reader.get(f"deployments/{deployment.pk}").status_code == 200
    assert reader.post(f"deployments/{deployment.pk}/rollback").status_code == 404
    assert numbers(deployment) == [1, 2]


@pytest.mark.django_db(transaction=True)
def test_promotions_at_the_same_moment_leave_a_history_without_gaps(acme, deployment):
    releases, each = [approved(acme, minor) for minor in range(6)], 5
    errors, start = [], threading.Barrier(len(releases))

    def go(release):
        try:
            start.wait(10)
            for _ in range(each):
                deploying.promote(acme.owner, Deployment.objects.get(pk=deployment.pk), release=release)
        except Exception as error:  # told in the test's own thread
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=go, args=(release,)) for release in releases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not [thread for thread in threads if thread.is_alive()]
    assert errors == []
    states = list(deployment.states.order_by("number"))
    assert [state.number for state in states] == list(range(1, len(states) + 1))
    assert all(one.release_id != other.release_id for one, other in pairwise(states))
    assert len(states) == AuditRecord.objects.filter(verb="deployment.promote").count()
    assert Deployment.objects.get(pk=deployment.pk).release_id == states[-1].release_id
