"""The pages of releases: what they offer and show, what they refuse beside what was typed, and that they stay quick."""

from urllib.parse import urlencode

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from studio.releases.models import Approval, Gate, Release
from studio.workspaces.models import Client
from studio.workspaces.services import create_client, create_project
from tests.fixtures import make_artifact, make_deployment, make_member, make_order, make_release
from tests.releases.conftest import held_out, measured, trained


@pytest.fixture
def ana(acme):
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def page(browser, address, **form):
    answer = browser.post(address, form) if form else browser.get(address)
    return answer, answer.content.decode()


def test_an_adapter_offers_to_be_released_and_a_build_does_not(acme, ana):
    assert f"/releases/new/?artifact={acme.artifact.pk}" in page(ana, f"/artifacts/{acme.artifact.pk}/")[1]
    assert "/releases/new/?artifact=" not in page(ana, f"/artifacts/{acme.build.artifact.pk}/")[1]
    viewer = Browser()
    viewer.force_login(make_member(acme.workspace, role="viewer", email="vic@example.com").user)
    assert "/releases/new/" not in page(viewer, f"/artifacts/{acme.artifact.pk}/")[1]


def test_a_new_release_offers_only_what_answers_in_its_project(acme, ana):
    other = create_project(acme.owner, client=create_client(acme.owner, name="Globex"), name="Theirs")
    foreign = make_artifact(
        make_order(acme.owner, kind="train", client=other.client), other, {"x": b"1"}, name="Foreign", base_model=acme.base
    )
    text = page(ana, f"/releases/new/?project={acme.project.pk}")[1]
    assert f'<option value="{acme.artifact.pk}"' in text
    assert f'<option value="{acme.build.artifact.pk}"' not in text
    assert f'<option value="{foreign.pk}"' not in text
    assert "in-house-first-project-tiny-v1.0.0" in text
    empty = page(ana, f"/releases/new/?project={create_project(acme.owner, client=other.client, name='Empty').pk}")[1]
    assert "Nothing to release yet" in empty


def test_a_task_in_the_address_is_read_as_it_would_stand_in_the_name(acme, ana):
    Release.objects.filter(pk=make_release(acme.owner, acme.artifact).pk).update(task="first-aid", asked_with={"system": "Be calm."})
    for typed in ("First aid", "first\0-aid", "first-aid"):
        text = page(ana, f"/releases/new/?{urlencode({'project': acme.project.pk, 'task': typed})}")[1]
        assert 'name="task" value="first-aid"' in text
        assert "Be calm.</textarea>" in text
    assert 'name="task" value="first-project"' in page(ana, f"/releases/new/?{urlencode({'project': acme.project.pk, 'task': '—'})}")[1]


def test_without_a_project_one_is_chosen(acme, ana):
    assert f"/releases/new/?project={acme.project.pk}" in page(ana, "/releases/new/")[1]


def test_a_preview_says_what_the_rule_makes_of_it_and_makes_nothing(acme, ana):
    make_release(acme.owner, acme.artifact)
    form = {"artifact": acme.artifact.pk, "project": acme.project.pk, "task": "first-project"}
    answer, text = page(ana, "/releases/new/?preview=1", **form)
    assert answer.status_code == 200
    assert "There is nothing to release." in text
    assert (
        "Patch, since only what it is asked with changed: temperature."
        in page(ana, "/releases/new/?preview=1", **form, temperature="0.5")[1]
    )
    assert "Must be a number." in page(ana, "/releases/new/?preview=1", **form, temperature="warm")[1]
    assert Release.objects.count() == 1


def test_what_is_refused_stands_beside_its_field_and_nothing_typed_is_lost(acme, ana):
    form = {"artifact": acme.artifact.pk, "project": acme.project.pk, "task": "support", "system": "Be kind.", "notes": "The first."}
    answer, text = page(ana, "/releases/new/", **form, temperature="3", max_tokens="many")
    assert answer.status_code == 422
    assert "Must be a whole number." in text
    assert "Be kind.</textarea>" in text
    assert "The first.</textarea>" in text
    answer, text = page(ana, "/releases/new/", **form, temperature="3")
    assert "Must be a number from 0 to 2." in text
    assert not Release.objects.exists()
    answer, _ = page(ana, "/releases/new/", **form, temperature="0.3", stop="END\r\n\r\nSTOP")
    made = Release.objects.get()
    assert answer["Location"] == f"/releases/{made.pk}/"
    assert made.asked_with == {"system": "Be kind.", "temperature": 0.3, "stop": ["END", "STOP"]}


def test_a_bump_below_the_rule_is_refused_on_the_page(acme, ana):
    make_release(acme.owner, acme.artifact)
    answer, text = page(ana, "/releases/new/", artifact=trained(acme).pk, project=acme.project.pk, bump="patch")
    assert answer.status_code == 422
    assert "at least a minor release" in text


def test_the_list_is_filtered_and_searched_by_name_and_hash(acme, ana):
    make_release(acme.owner, acme.artifact, stage="approved")
    client = create_client(acme.owner, name="Globex")
    project = create_project(acme.owner, client=client, name="Letters")
    order = make_order(acme.owner, kind="train", client=client)
    theirs = make_release(acme.owner, make_artifact(order, project, {"x": b"1"}, base_model=acme.base))

    def found(query):
        text = page(ana, f"/releases/?{query}")[1]
        table = text.partition('aria-label="Releases"><table')[2].partition("</table>")[0]
        return [name for name in ("in-house-first-project-tiny-v1.0.0", "globex-letters-tiny-v1.0.0") if name in table]

    both = ["in-house-first-project-tiny-v1.0.0", "globex-letters-tiny-v1.0.0"]
    assert found("") == both
    assert found(f"client={client.pk}") == [both[1]]
    assert found("stage=approved") == [both[0]]
    assert found("q=LETTERS") == [both[1]]
    assert found(f"q={theirs.artifact.sha256[:10]}") == [both[1]]
    assert found("q=nothing") == []
    assert found("stage=nothing&client=x&page=99") == both
    Client.objects.filter(pk=client.pk).update(archived_at=timezone.now())
    assert found("") == [both[0]]


def test_a_release_shows_what_changed_and_what_was_measured(acme, ana):
    first = make_release(acme.owner, acme.artifact, stage="approved")
    make_deployment(acme.project, first)
    made = make_release(acme.owner, trained(acme), version=(1, 1, 0), stage="candidate")
    Release.objects.filter(pk=made.pk).update(previous=first, asked_with={"system": "Be <b>kind</b>."})
    measured(acme, made, against=first, before=1.02, change=-2.0, low=-3.0, high=-1.0, learnt=3)
    text = page(ana, f"/releases/{made.pk}/")[1]
    for piece in (
        "weights: adapter Try",
        "weights: adapter Again",
        "rank: 32",
        "system prompt: Be &lt;b&gt;kind&lt;/b&gt;.",
        "−2.0 %",
        "Hello!",
        "3 rows were left out, since one of the two was trained on them.",
    ):
        assert piece in text, piece
    assert "in-house/support" in page(ana, f"/releases/{first.pk}/")[1]


def test_what_is_refused_on_a_release_stands_in_its_own_part(acme, ana):
    made = make_release(acme.owner, acme.artifact, stage="candidate")
    Gate.objects.create(project=acme.project, approvals=1)
    answer, text = page(ana, f"/releases/{made.pk}/stage/", form="stage", to="approved", comment="Now.")
    assert answer.status_code == 422
    assert "Something above is still missing." in text
    assert 'value="Now."' in text
    answer, text = page(ana, f"/releases/{made.pk}/approve/", form="say", approves="true", comment="I like it.")
    assert answer.status_code == 422
    assert "your approval would not count" in text
    assert "I like it.</textarea>" in text
    assert page(ana, f"/releases/{made.pk}/approve/", form="say")[0].status_code == 422
    assert not Approval.objects.exists()
    answer, text = page(ana, f"/releases/{made.pk}/edit/", form="notes", notes="x" * 10_001)
    assert answer.status_code == 422
    assert "At most 10,000 characters of text." in text


def test_a_viewer_sees_a_release_and_no_button_that_is_not_theirs(acme):
    made = make_release(acme.owner, acme.artifact, stage="candidate", shared=True)
    viewer = Browser()
    viewer.force_login(make_member(acme.workspace, role="viewer", email="vic@example.com").user)
    text = page(viewer, f"/releases/{made.pk}/")[1]
    for address in ("stage", "approve", "evaluate", "share", "edit"):
        assert f"/releases/{made.pk}/{address}/" not in text


def test_of_an_archived_client_releases_are_read_and_not_changed(acme, ana):
    made = make_release(acme.owner, acme.artifact, stage="candidate")
    create_client(acme.owner, name="Globex")
    Client.objects.filter(pk=acme.client.pk).update(archived_at=timezone.now())
    answer, text = page(ana, f"/releases/{made.pk}/")
    assert answer.status_code == 200
    assert "This client is archived." in text
    for address in ("stage", "approve", "evaluate", "share", "edit"):
        assert f"/releases/{made.pk}/{address}/" not in text
        assert ana.post(f"/releases/{made.pk}/{address}/", {"to": "draft"}).status_code == 404


def test_the_gate_offers_only_what_is_held_out_for_its_client(acme, ana):
    rows = held_out(acme).dataset
    other = create_project(acme.owner, client=create_client(acme.owner, name="Globex"), name="Theirs")
    text = page(ana, f"/projects/{acme.project.pk}/gate/")[1]
    assert f'<option value="{rows.pk}"' in text
    assert f'<option value="{acme.version.dataset_id}"' not in text
    assert f'<option value="{rows.pk}"' not in page(ana, f"/projects/{other.pk}/gate/")[1]
    for foreign in (rows.pk, "nonsense"):
        answer, text = page(ana, f"/projects/{other.pk}/gate/", held_out=foreign, evaluated="on", margin="2", approvals="0")
        assert answer.status_code == 422
        assert "held out for this client" in text
    answer, _ = page(
        ana, f"/projects/{acme.project.pk}/gate/", held_out=rows.pk, evaluated="on", margin="1.5", approvals="2", roles=["admin"]
    )
    assert answer.status_code == 302
    gate = Gate.objects.get()
    assert (gate.held_out, gate.evaluated, gate.margin, gate.approvals, gate.roles) == (rows, True, 1.5, 2, ["admin"])


def test_no_page_of_releases_asks_once_for_each_row(acme, ana):
    def one_more(number):
        made = make_release(acme.owner, trained(acme, f"Try {number}"), version=(1, number, 0), stage="candidate", shared=True)
        make_deployment(acme.project, made, slug=f"slot-{number}")
        measured(acme, first)
        member = make_member(acme.workspace, role="admin", email=f"{number}@example.com")
        Approval.objects.create(release=first, user=member.user, email=member.user.email, role="admin", approves=number % 2 == 0)

    first = make_release(acme.owner, acme.artifact, stage="candidate")
    addresses = ("/releases/", f"/releases/{first.pk}/", f"/releases/new/?project={acme.project.pk}", f"/projects/{acme.project.pk}/")
    calls = ("/api/v1/releases", f"/api/v1/releases/{first.pk}")

    def queries(address):
        with CaptureQueriesContext(connection) as asked:
            answer = acme.api.get(address) if address.startswith("/api/") else ana.get(address)
        assert answer.status_code == 200, address
        return len(asked)

    for number in (1, 2):
        one_more(number)
    queries("/api/v1/releases")  # the first call notes when its key was used
    before = {address: queries(address) for address in (*addresses, *calls)}
    for number in range(3, 9):
        one_more(number)
    assert {address: queries(address) for address in (*addresses, *calls)} == before


def test_the_form_to_approve_names_the_answers_that_stand_on_the_page(acme, ana, max_):
    release = make_release(max_, acme.artifact, stage="candidate")
    assert 'name="evaluation" value="" form="say"' in page(ana, f"/releases/{release.pk}/")[1]
    seen = measured(acme, release, samples=[])
    text = page(ana, f"/releases/{release.pk}/")[1]
    assert f'name="evaluation" value="{seen.pk}" form="say"' in text
    assert 'id="say"' in text
    measured(acme, release)
    ana.post(f"/releases/{release.pk}/approve/", {"approves": "true", "evaluation": seen.pk})
    assert Approval.objects.get().samples == []
    assert page(ana, f"/releases/{release.pk}/approve/", approves="true", evaluation="x")[0].status_code == 422
