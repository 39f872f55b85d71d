"""The queue's page and calls: what each run waits for, moving runs, their times, the rules, and discarding a state."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from playwright.sync_api import Page, expect

from studio.audit.models import AuditRecord
from studio.orders.models import Order, Slot
from studio.runs.models import Run
from studio.runs.queue import ordinal
from studio.training import Estimate, Memory, Span
from studio.workspaces.models import Client, Workspace
from studio.workspaces.services import create_client, create_project
from tests.fixtures import World, make_member, make_run
from tests.visits import Visit
from tests.web.conftest import Do

LOW, NORMAL, HIGH = Order.Priority.values
NOTHING = dict.fromkeys(("weights", "adapter", "gradients", "optimizer", "activations", "logits", "overhead", "low", "high"), 1)
ESTIMATE = Estimate(
    memory=Memory(**NOTHING), trainable_parameters=0, steps=100, seconds=Span(low=600, high=600), disk=1, available=1
).model_dump(mode="json")


def queued(world: World, *names: str, project: Any = None, **columns: Any) -> list[Run]:
    """Runs of these names that wait, each expected to take ten minutes."""
    made = []
    for name in names:
        run = make_run(world.owner, project or world.project, world.base, world.version, status=Order.Status.QUEUED)
        Run.objects.filter(pk=run.pk).update(name=name, estimate=ESTIMATE)
        Order.objects.filter(pk=run.order_id).update(queue="train", started_at=None, ended_at=None, **columns)
        made.append(Run.objects.get(pk=run.pk))
    return made


def signed_in(member: Any) -> Browser:
    browser = Browser()
    browser.force_login(member.user)
    return browser


def shown(browser: Browser) -> list[str]:
    return [row.run.name for row in browser.get("/runs/queue/").context["queue"].rows]


def words(browser: Browser) -> dict[str, str]:
    return {row.run.name: row.words for row in browser.get("/runs/queue/").context["queue"].rows}


@pytest.fixture
def ana(acme: World, slot: Slot) -> Browser:
    return signed_in(acme.owner)


def test_numbers_are_said_as_people_say_them():
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 22, 101, 111)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "101st", "111th")
    ]


def test_the_page_says_what_each_run_waits_for(acme: World, ana: Browser):
    globex = create_client(acme.owner, name="Globex")
    globex.run_limit = 1
    globex.save()
    project = create_project(acme.owner, client=globex, name="Letters")
    (at_work,) = queued(acme, "At work", project=project, worker="test")
    Order.objects.filter(pk=at_work.order_id).update(status="running", started_at=timezone.now())
    queued(acme, "First", "Second")
    queued(acme, "Limited", project=project)
    queued(acme, "Later", start_at=timezone.now() + timedelta(days=40))
    moment = timezone.now() + timedelta(days=40)
    assert words(ana) == {
        "First": "Next in the queue, starts in about 10 min",
        "Second": "2nd in the queue, starts in about 20 min",
        "Limited": "Waits: the client's limit of 1 run is reached, starts in about 30 min",
        "Later": f"Waits for {moment:%d %b}, {moment:%H:%M} (UTC)",
    }
    (first,) = Run.objects.filter(name="First")
    assert "Next in the queue, starts in about 10 min" in ana.get(f"/runs/{first.pk}/").content.decode()


def test_without_a_worker_or_its_packages_the_page_says_so(acme: World, ana: Browser):
    (run,) = queued(acme, "Fast")
    Run.objects.filter(pk=run.pk).update(plugin="unsloth_lora")
    Slot.objects.update(facts={"packages": {"numpy": "2"}})
    assert words(ana) == {"Fast": "Waits: no worker offers LoRA (Unsloth)"}
    Slot.objects.all().delete()
    assert words(ana) == {"Fast": "Next in the queue, starts once a worker is there"}


def test_a_run_that_is_for_the_night_says_when_that_begins(acme: World, ana: Browser):
    queued(acme, "By night", at_night=True)
    begins = timezone.now() + timedelta(hours=2)
    Workspace.objects.update(night_from=begins.time(), night_until=(begins + timedelta(minutes=1)).time())
    assert words(ana)["By night"].endswith(f"{begins:%H:%M} (UTC), since it is only for the night")


def test_a_member_moves_a_run_and_it_stays_there(acme: World, ana: Browser):
    first, _, third = queued(acme, "First", "Second", "Third")
    assert ana.post(f"/runs/{third.pk}/move/", {"before": first.pk}).status_code == 302
    assert shown(ana) == ["Third", "First", "Second"]
    ana.post(f"/runs/{third.pk}/move/", {"before": ""})
    assert shown(ana) == ["First", "Second", "Third"]
    ana.post(f"/runs/{first.pk}/move/", {"before": third.pk})
    assert shown(ana) == ["Second", "First", "Third"]
    moved = AuditRecord.objects.filter(verb="run.move").order_by("id").values_list("label", "change")
    assert list(moved) == [("Third", {"place": [3, 1]}), ("Third", {"place": [1, 3]}), ("First", {"place": [1, 2]})]


def test_a_move_that_others_go_before_says_why(acme: World, ana: Browser):
    (urgent,) = queued(acme, "Urgent", priority=HIGH)
    (other,) = queued(acme, "Other")
    answer = ana.post(f"/runs/{other.pk}/move/", {"before": urgent.pk}, headers={"HX-Request": "true"}).content.decode()
    assert "but others still go first" in answer and "<html" not in answer
    assert shown(ana) == ["Urgent", "Other"]


def test_runs_of_others_keep_their_places(acme: World, rival: World, ana: Browser):
    """Whoever sees one client's runs moves only those, among the ranks that they had."""
    globex = create_client(acme.owner, name="Globex")
    project = create_project(acme.owner, client=globex, name="Letters")
    (ours,), (theirs,), (strangers,), (ours_too,) = (
        queued(acme, "Ours"),
        queued(acme, "Theirs", project=project),
        queued(rival, "Strangers"),
        queued(acme, "Ours too"),
    )
    bob = signed_in(make_member(acme.workspace, role="member", email="bob@example.com", clients=[acme.client]))
    assert shown(bob) == ["Ours", "Ours too"]
    assert "2 more that you cannot see" in bob.get("/runs/queue/").content.decode()
    bob.post(f"/runs/{ours_too.pk}/move/", {"before": ours.pk})
    waiting = Order.objects.filter(status="queued").order_by("rank").values_list("run__name", flat=True)
    assert list(waiting) == ["Ours too", "Theirs", "Strangers", "Ours"]
    assert bob.post(f"/runs/{ours.pk}/move/", {"before": theirs.pk}).status_code == 404
    assert bob.post(f"/runs/{theirs.pk}/move/", {"before": ""}).status_code == 404
    assert ana.post(f"/runs/{strangers.pk}/move/", {"before": ""}).status_code == 404


def test_a_viewer_sees_the_queue_and_moves_nothing(acme: World, ana: Browser):
    first, second = queued(acme, "First", "Second")
    eve = signed_in(make_member(acme.workspace, role="viewer", email="eve@example.com"))
    page = eve.get("/runs/queue/").content.decode()
    assert "Second" in page and "Move Second up" not in page and "Change the rules" not in page
    for address in ("move", "when"):
        assert eve.post(f"/runs/{second.pk}/{address}/", {"before": first.pk}).status_code == 404
    assert eve.post("/runs/queue/rules/", {"run_limit": "1"}).status_code == 404


def test_a_run_that_has_begun_meanwhile_is_not_moved(acme: World, ana: Browser):
    first, second = queued(acme, "First", "Second")
    Order.objects.filter(pk=second.order_id).update(status="running")
    answer = ana.post(f"/runs/{second.pk}/move/", {"before": first.pk}, follow=True).content.decode()
    assert "does not wait in the queue any more" in answer


def test_priority_and_times_can_be_changed_while_it_waits(acme: World, ana: Browser):
    first, second = queued(acme, "First", "Second")
    Workspace.objects.update(time_zone="Europe/Berlin")
    ana.post(f"/runs/{second.pk}/when/", {"priority": "2", "start_at": "2040-07-01T20:00", "at_night": "1"})
    order = Order.objects.get(pk=second.order_id)
    assert (order.priority, f"{order.start_at:%H:%M}", order.at_night) == (HIGH, "18:00", True)
    assert AuditRecord.objects.get(verb="run.schedule").change["priority"] == [NORMAL, HIGH]
    for wrong, sentence in (({"priority": "9"}, "low, normal or high"), ({"start_at": "soon"}, "Give a day and a time")):
        assert sentence in ana.post(f"/runs/{first.pk}/when/", wrong, follow=True).content.decode()
    Order.objects.filter(pk=first.order_id).update(status="succeeded")
    assert "already ended" in ana.post(f"/runs/{first.pk}/when/", {"priority": "0"}, follow=True).content.decode()


def test_the_page_asks_the_database_as_often_for_many_runs_as_for_few(acme: World, ana: Browser):
    queued(acme, "First", "Second")
    asked = []
    for more in ((), ("Third", "Fourth", "Fifth")):
        queued(acme, *more)
        with CaptureQueriesContext(connection) as queries:
            ana.get("/runs/queue/")
        asked.append(len(queries))
    assert asked[0] == asked[1]


def test_a_resumed_run_goes_where_it_stood(acme: World, ana: Browser):
    first, _ = queued(acme, "First", "Second")
    ana.post(f"/runs/{first.pk}/pause/")
    assert shown(ana) == ["Second"]
    ana.post(f"/runs/{first.pk}/resume/")
    assert shown(ana) == ["First", "Second"]


def test_an_admin_sets_the_rules(acme: World, ana: Browser):
    rules = {"run_limit": "2", "night_from": "22:00", "night_until": "05:30", "time_zone": "Europe/Berlin"}
    page = ana.post("/runs/queue/rules/", rules, follow=True).content.decode()
    assert "At most 2 runs of one client at once" in page and "from 22:00 to 05:30 (Europe/Berlin)" in page
    ana.post("/runs/queue/rules/", {"client": acme.client.pk, "run_limit": "3"})
    assert Client.objects.get(pk=acme.client.pk).run_limit == 3
    ana.post("/runs/queue/rules/", {"client": acme.client.pk, "run_limit": ""})
    assert Client.objects.get(pk=acme.client.pk).run_limit is None
    for wrong, sentence in (
        ({"run_limit": "0"}, "A number from 1 to 1000"),
        ({"run_limit": "many"}, "A number from 1 to 1000"),
        ({"night_from": "late"}, "Give a time, such as 20:00"),
        ({"time_zone": "Mars/Olympus"}, "Choose one from the list"),
    ):
        assert sentence in ana.post("/runs/queue/rules/", rules | wrong, follow=True).content.decode()
    assert Workspace.objects.get(pk=acme.workspace.pk).run_limit == 2
    verbs = AuditRecord.objects.order_by("id").values_list("verb", flat=True)
    assert [verb for verb in verbs if verb in ("queue.rules", "client.limit")] == ["queue.rules", "client.limit", "client.limit"]


def test_an_admin_of_one_client_sets_no_rule_for_all(acme: World, ana: Browser):
    max_ = signed_in(make_member(acme.workspace, role="admin", email="max@example.com", clients=[acme.client]))
    rules = {"run_limit": "1", "night_from": "22:00", "night_until": "05:30", "time_zone": "UTC"}
    assert "cannot change what holds for all" in max_.post("/runs/queue/rules/", rules, follow=True).content.decode()
    max_.post("/runs/queue/rules/", {"client": acme.client.pk, "run_limit": "1"})
    assert (Workspace.objects.get(pk=acme.workspace.pk).run_limit, Client.objects.get(pk=acme.client.pk).run_limit) == (None, 1)


def test_a_run_is_started_for_later(acme: World, ana: Browser):
    sent = {"project": acme.project.pk, "dataset_version": acme.version.pk, "base_model": acme.base.pk, "plugin": "rehearsal"}
    assert ana.post("/runs/new/", sent | {"priority": "0", "start_at": "2040-01-01T08:00", "at_night": "1"}).status_code == 302
    order = Order.objects.filter(kind="train").latest("created_at")
    assert (order.priority, order.start_at.year, order.at_night) == (LOW, 2040, True)
    assert ana.post("/runs/new/", sent | {"start_at": "soon", "name": "B"}).status_code == 422


@pytest.mark.django_db(transaction=True)
def test_a_failed_runs_state_is_discarded_after_asking(acme: World, ana: Browser):
    order = acme.run.order
    state = order.checkpoints / "step-00000007"
    state.mkdir(parents=True)
    (state / "manifest.json").write_text("{}")
    Order.objects.filter(pk=order.pk).update(status="failed", error="It broke.")
    page = ana.get(f"/runs/{acme.run.pk}/").content.decode()
    until = order.ended_at + timedelta(days=30)
    assert f"or until {until:%-d %B}" in page and "Discard what it could go on from?" in page
    said = ana.post(f"/runs/{acme.run.pk}/discard/", follow=True).content.decode()
    assert "It cannot be resumed any more." in said and "Discard what it could go on from?" not in said
    assert not order.checkpoints.exists() and acme.artifact.folder.exists()
    assert AuditRecord.objects.filter(verb="run.discard").count() == 1
    assert "nothing to discard" in ana.post(f"/runs/{acme.run.pk}/discard/", follow=True).content.decode()


def test_the_api_tells_the_queue_and_moves_runs(acme: World, slot: Slot):
    first, second = queued(acme, "First", "Second")
    told = acme.api.get("queue").json()
    assert [(item["run"], item["place"], item["waits"]) for item in told["items"]] == [
        (str(first.pk), 1, "Next in the queue, starts in a moment"),
        (str(second.pk), 2, "2nd in the queue, starts in about 10 min"),
    ]
    assert (told["workers"], told["working"], told["hidden"]) == (1, [], 0)
    moved = acme.api.post(f"runs/{second.pk}/move", {"before": str(first.pk)}).json()
    assert (moved["note"], [item["run"] for item in moved["items"]]) == ("", [str(second.pk), str(first.pk)])
    assert acme.api.post(f"runs/{second.pk}/move", {"before": str(acme.run.pk)}).status_code == 400
    changed = acme.api.patch(f"runs/{first.pk}", {"priority": "high", "start_at": "2040-01-01T08:00:00Z"}).json()
    assert (changed["priority"], changed["start_at"], changed["at_night"]) == ("high", "2040-01-01T08:00:00Z", False)
    assert acme.api.patch(f"runs/{first.pk}", {"start_at": None}).json()["start_at"] is None
    for wrong in ({"priority": "urgent"}, {"start_at": "2040-01-01T08:00:00"}, {"start_at": "9999-12-31T23:59:59Z"}, {"rank": 1}):
        assert acme.api.patch(f"runs/{first.pk}", wrong).status_code in (400, 422)


def test_the_api_sets_the_rules_and_starts_runs_for_later(acme: World, rival: World, slot: Slot):
    rules = acme.api.patch("queue/rules", {"run_limit": 2, "night_from": "21:30", "clients": {str(acme.client.pk): 4}}).json()
    assert rules == {
        "run_limit": 2,
        "night_from": "21:30:00",
        "night_until": "06:00:00",
        "time_zone": "UTC",
        "clients": {str(acme.client.pk): 4},
    }
    assert acme.api.get("queue/rules").json() == rules
    for wrong in ({"run_limit": 0}, {"time_zone": "Mars/Olympus"}, {"clients": {str(rival.client.pk): 1}}):
        assert acme.api.patch("queue/rules", wrong).status_code in (400, 422)
    assert acme.api.get("queue/rules").json() == rules
    body = {
        "project": str(acme.project.pk),
        "plugin": "rehearsal",
        "base_model": str(acme.base.pk),
        "dataset_version": str(acme.version.pk),
    }
    run = acme.api.post("runs", body | {"priority": "low", "start_at": "2040-01-01T08:00:00+02:00", "at_night": True}).json()
    assert (run["priority"], run["start_at"], run["at_night"]) == ("low", "2040-01-01T06:00:00Z", True)


@pytest.mark.django_db(transaction=True)
def test_the_api_discards_a_state(acme: World):
    assert acme.api.post(f"runs/{acme.run.pk}/discard").status_code == 400
    Order.objects.filter(pk=acme.run.order_id).update(status="paused")
    assert acme.api.post(f"runs/{acme.run.pk}/discard").json()["status"] == "stopped"


@pytest.mark.browser
def test_a_run_is_moved_with_the_mouse_and_with_the_keyboard(browse: Callable[[str, Do], None], world: World):
    project = create_project(world.owner, client=create_client(world.owner, name="Globex"), name="Letters of complaint")
    (at_work,) = queued(world, "Support answers", worker="test", done=40, total=100)
    Order.objects.filter(pk=at_work.order_id).update(status="running", started_at=timezone.now() - timedelta(minutes=4))
    queued(world, "Refunds", "Tone of voice")
    queued(world, "Urgent fix", priority=HIGH)
    queued(world, "Complaints", project=project)
    queued(world, "Everything", project=project, at_night=True)
    begins = timezone.now() + timedelta(hours=2)
    Workspace.objects.update(night_from=begins.time(), night_until=(begins + timedelta(hours=1)).time())
    browse("/runs/queue/", rearrange)


def rearrange(page: Page) -> None:
    visit, names = Visit(page, name="queue"), page.locator(".queue-name")
    expect(names).to_have_text(["Urgent fix", "Refunds", "Tone of voice", "Complaints", "Everything"])
    visit.look("queue", everywhere=True)

    voice = page.locator("[data-queue-row]", has_text="Tone of voice")
    voice.locator(".queue-grip").drag_to(page.locator("[data-queue-row]", has_text="Refunds"), target_position={"x": 40, "y": 4})
    expect(page.get_by_text("Tone of voice was moved.")).to_be_visible()
    expect(names).to_have_text(["Urgent fix", "Tone of voice", "Refunds", "Complaints", "Everything"])

    up = page.get_by_role("button", name="Move Complaints up")
    up.press("Enter")
    expect(names).to_have_text(["Urgent fix", "Tone of voice", "Complaints", "Refunds", "Everything"])
    expect(up).to_be_focused()

    voice.get_by_text("When").click()
    voice.get_by_label("Priority").select_option("Low")
    visit.look("when", whole=False)
    voice.get_by_role("button", name="Save").click()
    rearranged = ["Urgent fix", "Complaints", "Refunds", "Tone of voice", "Everything"]
    expect(names).to_have_text(rearranged)
    page.reload()
    expect(names).to_have_text(rearranged)

    page.get_by_text("Change the rules").click()
    visit.look("rules")
    assert visit.mistakes == []
