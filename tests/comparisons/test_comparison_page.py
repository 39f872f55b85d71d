"""The page of a comparison: how far it is, its curves piece by piece, what differs, and answers beside each other."""

from datetime import timedelta
from itertools import pairwise

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from studio.comparisons.curves import ALL_POINTS, LOOKED_THROUGH, POINTS
from studio.comparisons.differences import settings_of
from studio.comparisons.marks import marks_of
from studio.comparisons.models import Arm, ArmRun, Comparison
from studio.orders.models import Event, Order, Slot
from studio.training.registry import load_plugins
from studio.workspaces.models import Rate
from tests.comparisons.house import make_measured
from tests.fixtures import World, make_comparison, make_member, make_order, make_run


def signed_in(member) -> Browser:
    browser = Browser()
    browser.force_login(member.user)
    return browser


@pytest.fixture
def owner(acme: World) -> Browser:
    return signed_in(acme.owner)


@pytest.fixture
def running(acme: World, slot) -> Comparison:
    """Two arms with two seeds each: one has ended, one trains, one waits, one was stopped early."""
    comparison = make_comparison(acme, state=Comparison.State.RUNNING, seeds=(1, 2))
    first, second, third, fourth = orders_of(comparison)
    now = timezone.now()
    at_work = {"started_at": now - timedelta(seconds=30), "ended_at": None, "queue": "train", "worker": "test"}
    Order.objects.filter(pk=first.pk).update(latest={"validation_loss": 1.234})
    Order.objects.filter(pk=second.pk).update(status="running", done=30, total=60, unit="steps", **at_work)
    Order.objects.filter(pk=third.pk).update(status="queued", **(at_work | {"started_at": None, "worker": ""}))
    Order.objects.filter(pk=fourth.pk).update(status="stopped")
    ArmRun.objects.filter(run__order=fourth).update(ended_early="Its loss was far above that of the others.")
    return comparison


def orders_of(comparison: Comparison) -> list[Order]:
    return [each.run.order for each in ArmRun.objects.filter(arm__comparison=comparison).select_related("run__order", "arm")]


def report(order: Order, *, steps: int, first: int = 1, attempt: int = 1, look_every: int = 0, seq: int = 0) -> int:
    """Events as trainings report them: every metric is followed by a progress."""
    begun, events = timezone.now(), []
    for step in range(first, first + steps):
        at = begun + timedelta(seconds=step)
        told = {"step": step, "loss": 2 - step / 1e6, "tokens": step * 100, "memory": 1 << 30, "tokens_per_second": 512.0}
        bodies = [("metric", told), ("progress", {"done": step, "total": steps})]
        if look_every and step % look_every == 0:
            bodies.append(("metric", {"step": step, "validation_loss": 1.5}))
        for kind, body in bodies:
            seq += 1
            events.append(Event(order=order, seq=seq, attempt=attempt, at=at, type=kind, body=body))
    Event.objects.bulk_create(events, batch_size=2000)
    Order.objects.filter(pk=order.pk).update(last_seq=seq, attempt=attempt)
    return seq


def look(browser: Browser, comparison: Comparison, since: str = "") -> dict:
    answer = browser.get(f"/comparisons/{comparison.pk}/curves/", {"since": since})
    assert answer.status_code == 200
    return answer.json()


def stands(told: dict) -> str:
    return ",".join(run["stands"] for run in told["runs"])


def test_each_run_says_where_it_is(owner: Browser, running: Comparison):
    text = owner.get(f"/comparisons/{running.pk}/").content.decode()
    assert "2 of 4 runs have ended" in text
    assert "validation loss 1.23" in text
    assert "step 30 of 60" in text
    assert "Next in the queue" in text
    assert "Its loss was far above that of the others." in text
    assert all(f"/runs/{each.run_id}/" in text for each in ArmRun.objects.all())


def test_while_results_are_measured_the_page_says_how_far_that_is(acme: World, owner: Browser):
    comparison = make_comparison(acme, state=Comparison.State.MEASURING)
    assert "Measuring waits for a free worker" in owner.get(f"/comparisons/{comparison.pk}/").content.decode()
    order = make_order(acme.owner, kind="comparison", client=acme.client, status="running")
    Order.objects.filter(pk=order.pk).update(phase_text="Reading the held-out rows", done=30, total=60, ended_at=None)
    Comparison.objects.update(order=order)
    text = owner.get(f"/comparisons/{comparison.pk}/").content.decode()
    assert "Reading the held-out rows" in text
    assert 'value="0.5000" aria-label="Measuring"' in text


def test_what_waits_with_nothing_at_work_says_what_for(owner: Browser, running: Comparison):
    Order.objects.filter(pk__in=[order.pk for order in orders_of(running)]).update(
        status="queued", queue="train", started_at=None, ended_at=None
    )
    assert "Nothing has begun yet · Next in the queue" in owner.get(f"/comparisons/{running.pk}/").content.decode()


def test_a_page_redraws_its_runs_until_the_comparison_has_ended(owner: Browser, running: Comparison):
    address, htmx = f"/comparisons/{running.pk}/?part=live", {"HX-Request": "true"}
    assert 'id="live"' in owner.get(address, headers=htmx).content.decode()
    Comparison.objects.update(state=Comparison.State.STOPPED)
    assert 'hx-trigger="every 3s"' in owner.get(address, headers=htmx).content.decode()  # one of its runs is still at work
    Order.objects.update(status="stopped")
    assert owner.get(address, headers=htmx).headers["HX-Refresh"] == "true"


def test_a_viewer_sees_everything_and_is_offered_no_change(acme: World, running: Comparison):
    text = signed_in(make_member(acme.workspace, role="viewer", email="vi@example.com")).get(f"/comparisons/{running.pk}/").content.decode()
    assert "2 of 4 runs have ended" in text
    assert "/stop/" not in text
    assert "/delete/" not in text


def test_a_guest_and_another_workspace_find_nothing(acme: World, rival: World, running: Comparison):
    guest = make_member(acme.workspace, role="guest", email="gu@example.com", clients=[acme.client])
    for stranger in (guest, rival.owner):
        for part in ("", "curves/"):
            assert signed_in(stranger).get(f"/comparisons/{running.pk}/{part}").status_code == 404


def test_a_failed_measuring_says_why_and_offers_another(acme: World, owner: Browser):
    comparison = make_comparison(acme, state=Comparison.State.FAILED)
    make_measured(comparison)
    Comparison.objects.update(error="The worker ran out of memory.")
    text = owner.get(f"/comparisons/{comparison.pk}/").content.decode()
    assert "The results could not be measured." in text
    assert "The worker ran out of memory." in text
    assert f"/comparisons/{comparison.pk}/again/" in text


def test_the_first_look_brings_everything_and_the_next_only_what_is_new(owner: Browser, running: Comparison):
    order = orders_of(running)[0]
    seq = report(order, steps=20, look_every=5)
    first = look(owner, running)
    assert first["runs"][0]["points"]["step"] == [*range(1, 21)]
    assert first["runs"][0]["looks"]["step"] == [5, 10, 15, 20]
    assert first["runs"][0]["points"]["tokens"][-1] == 2000
    again = look(owner, running, stands(first))
    assert [(run["whole"], run["points"]["step"], run["looks"]["step"]) for run in again["runs"]] == [(False, [], [])] * 4
    report(order, first=21, steps=5, look_every=5, seq=seq)
    later = look(owner, running, stands(again))
    assert later["runs"][0]["points"]["step"] == [21, 22, 23, 24, 25]
    assert later["runs"][0]["looks"]["step"] == [25]
    assert later["live"]


@pytest.mark.parametrize("since", ["x", "0-1.1", "0-1.1.9999999999999.0", "-1-1.1.1.1", ",,,", "9-9.1.5.5", "0-1.0.7.0"])
def test_a_page_that_stands_nowhere_is_told_everything(owner: Browser, running: Comparison, since):
    report(orders_of(running)[0], steps=5)
    assert look(owner, running, since)["runs"][0]["points"]["step"] == [1, 2, 3, 4, 5]


def test_of_a_long_run_few_points_are_sent_evenly_and_none_is_missed_on_the_way(owner: Browser, running: Comparison):
    """As it grows, a page that looks again and again has the same points as one that comes last."""
    order, seq, told, kept = orders_of(running)[0], 0, {"runs": []}, []
    for piece in range(12):
        seq = report(order, first=1 + piece * 97, steps=97, look_every=50, seq=seq)
        told = look(owner, running, stands(told))
        run = told["runs"][0]
        kept = run["points"]["step"] if run["whole"] else kept + run["points"]["step"]
    at_once = look(owner, running)["runs"][0]
    assert kept == at_once["points"]["step"]
    assert POINTS / 4 < len(kept) <= POINTS
    gaps = [later - earlier for earlier, later in pairwise(kept)]
    assert max(gaps) < 4 * 12 * 97 / len(kept)
    assert at_once["looks"]["step"] == [*range(50, 12 * 97 + 1, 50)]


def test_many_runs_are_read_with_as_many_queries_as_few_and_answer_with_bounded_points(acme: World, owner: Browser, running: Comparison):
    for order in orders_of(running):
        report(order, steps=30, look_every=10)

    def queries() -> int:
        with CaptureQueriesContext(connection) as asked:
            look(owner, running)
        return len(asked)

    few = queries()
    arm = running.arms.first()
    for seed in range(3, 19):
        run = make_run(acme.owner, acme.project, acme.base, acme.version)
        ArmRun.objects.create(arm=arm, seed=seed, run=run)
        report(run.order, steps=400, look_every=20)
    assert queries() == few
    told = look(owner, running)
    assert sum(len(run["points"]["step"]) for run in told["runs"]) <= ALL_POINTS


def test_validation_losses_of_a_very_long_run_come_in_pieces(owner: Browser, running: Comparison):
    """Each answer looks through a share of the events, and says that there is more."""
    order = orders_of(running)[0]
    share = LOOKED_THROUGH // 4
    body = {"step": share + 5, "validation_loss": 1.25}
    Event.objects.create(order=order, seq=share + 5, attempt=1, at=timezone.now(), type="metric", body=body)
    Order.objects.filter(pk=order.pk).update(last_seq=share + 5)
    first = look(owner, running)
    assert first["more"]
    assert first["runs"][0]["looks"]["step"] == []
    second = look(owner, running, stands(first))
    assert second["runs"][0]["looks"]["step"] == [share + 5]
    assert not second["more"]


def test_what_a_plugin_reports_that_is_no_number_is_left_out(owner: Browser, running: Comparison):
    order = orders_of(running)[0]
    bodies = [{"step": 1, "loss": "low", "tokens": True}, {"step": "two", "loss": 1.0}, {"step": 3, "loss": 1.23456789, "memory": None}]
    for seq, body in enumerate(bodies, start=1):
        Event.objects.create(order=order, seq=seq, attempt=1, at=timezone.now(), type="metric", body=body)
    Order.objects.filter(pk=order.pk).update(last_seq=3)
    points = look(owner, running)["runs"][0]["points"]
    assert (points["step"], points["loss"], points["tokens"]) == ([3], [1.2346], [None])


def test_costs_are_told_to_those_who_may_see_them_where_there_is_a_rate(acme: World, owner: Browser, running: Comparison):
    Slot.objects.filter(name="test").update(facts={})
    assert all(run["per_hour"] is None for run in look(owner, running)["runs"])
    Rate.objects.create(workspace=acme.workspace, kind="CPU", per_hour="1.20", since="2026-01-01")
    assert [run["per_hour"] for run in look(owner, running)["runs"]] == [None, 1.2, None, None]  # one has a worker
    viewer = signed_in(make_member(acme.workspace, role="viewer", email="vi@example.com"))
    assert all(run["per_hour"] is None for run in look(viewer, running)["runs"])


def test_only_settings_that_differ_are_shown_and_a_learning_rate_of_its_own_is_explained(acme: World, running: Comparison):
    plugins = load_plugins()
    for arm, name in zip(running.arms.all(), ("peft_lora", "full_finetune"), strict=True):
        Arm.objects.filter(pk=arm.pk).update(plugin=name, config=plugins[name].plugin.Config().model_dump(mode="json"))
    arms = list(running.arms.select_related("base_model", "dataset_version__dataset"))
    settings = settings_of(running, arms)
    differing = {setting.label: setting for setting in settings.differing}
    assert differing["Method"].values == [plugins["peft_lora"].title, plugins["full_finetune"].title]
    assert "about ten times smaller" in differing["Learning rate"].why
    assert differing["Rank"].values[1] == ""
    assert {"Base model", "Dataset"} <= {setting.label for setting in settings.same}
    assert not any(setting.differs for setting in settings.same)


def test_many_arms_stand_below_each_other_with_what_differs(acme: World, owner: Browser, running: Comparison):
    for number in range(2, 8):
        Arm.objects.create(
            comparison=running,
            number=number,
            name=f"Try {number}",
            plugin="rehearsal",
            config=acme.run.config | {"seconds_per_step": number / 10},
            base_model=acme.base,
            dataset_version=acme.version,
        )
    settings = settings_of(running, list(running.arms.select_related("base_model", "dataset_version__dataset")))
    assert settings.by_arm[7] == ["0.7"]
    assert ">0.7</td>" in owner.get(f"/comparisons/{running.pk}/").content.decode()


def test_lora_is_indigo_full_is_orange_and_no_two_arms_look_alike(acme: World, running: Comparison):
    for number in range(2, 24):
        Arm.objects.create(
            comparison=running,
            number=number,
            name="More",
            plugin="peft_lora",
            config={},
            base_model=acme.base,
            dataset_version=acme.version,
        )
    Arm.objects.filter(number=1).update(plugin="full_finetune")
    Arm.objects.filter(number=0).update(plugin="peft_lora")
    marks = marks_of(running.arms.all())
    assert (marks[0].colour, marks[1].colour) == (0, 1)
    assert len(set(marks.values())) == len(marks) == 24


def test_answers_stand_beside_each_other_a_few_prompts_at_a_time(acme: World, owner: Browser):
    comparison = make_comparison(acme, seeds=(1, 2))
    said = {(arm, seed): [f"Arm {arm}, seed {seed}, prompt {number}." for number in range(7)] for arm in (0, 1) for seed in (1, 2)}
    make_measured(comparison, answers=said | {(-1, 0): [f"Untouched {number}." for number in range(7)]})
    first = owner.get(f"/comparisons/{comparison.pk}/").content.decode()
    assert all(f"Arm {arm}, seed 1, prompt 4." in first for arm in (0, 1))
    assert "Untouched 0." in first
    assert "prompt 5." not in first
    second = owner.get(f"/comparisons/{comparison.pk}/", {"page": "2", "seed": "2"}).content.decode()
    assert "Arm 1, seed 2, prompt 6." in second
    odd = owner.get(f"/comparisons/{comparison.pk}/", {"page": "x", "seed": "99999999999999999999", "arm": "abc"}).content.decode()
    assert "Arm 0, seed 1, prompt 0." in odd


def test_an_answer_is_text_whatever_it_says(acme: World, owner: Browser):
    comparison = make_comparison(acme)
    make_measured(comparison, answers={(arm, 1): ["<script>alert(1)</script>"] for arm in (0, 1)})
    text = owner.get(f"/comparisons/{comparison.pk}/").content.decode()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_page_asks_no_more_for_many_runs(acme: World, owner: Browser, running: Comparison):
    def queries() -> int:
        with CaptureQueriesContext(connection) as asked:
            owner.get(f"/comparisons/{running.pk}/")
        return len(asked)

    queries()
    few = queries()
    for number in range(2, 8):
        arm = Arm.objects.create(
            comparison=running,
            number=number,
            name="More",
            plugin="rehearsal",
            config={},
            base_model=acme.base,
            dataset_version=acme.version,
        )
        for seed in (1, 2):
            run = make_run(acme.owner, acme.project, acme.base, acme.version, status=Order.Status.QUEUED)
            Order.objects.filter(pk=run.order_id).update(queue="train", ended_at=None, started_at=None)
            ArmRun.objects.create(arm=arm, seed=seed, run=run)
    assert queries() <= few
