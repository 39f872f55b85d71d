"""What runs took is held against what was foreseen, shown beside the next estimate, and learnt from."""

from datetime import timedelta

import pytest
from django.test import Client as Browser
from django.urls import reverse
from django.utils import timezone

from studio.orders.models import Order
from studio.runs.accuracy import accuracy_on, corrected, learnt_factor, spread
from studio.runs.models import Run
from studio.runs.services import create_run, forecast, plugin_of
from studio.training import Estimate
from tests.fixtures import World, make_order, make_slot, work_off


@pytest.fixture(autouse=True)
def worker(db):
    return make_slot()


def start(world: World) -> Run:
    return create_run(
        world.owner,
        project=world.project,
        name="",
        plugin_name="rehearsal",
        config={"max_steps": 3, "seconds_per_step": 0.0},
        base=world.base,
        version=world.version,
    )


def foreseen(world: World) -> Estimate:
    plugin = plugin_of("rehearsal")
    found = forecast(plugin, plugin.Config(max_steps=3), base=world.base, version=world.version).estimate
    assert found is not None
    return found


def parts(estimate: Estimate) -> int:
    memory = estimate.memory.model_dump()
    return sum(value for name, value in memory.items() if name not in ("low", "high"))


def ended(world: World, ratio: float, *, worker: str = "test", correction: float = 1.0, **order: object) -> Run:
    """A run that took `ratio` times the memory and the time that were shown."""
    estimate = foreseen(world)
    middle = (estimate.seconds.low * estimate.seconds.high) ** 0.5
    run = Run.objects.create(
        project=world.project,
        name="Ended",
        plugin="rehearsal",
        config={},
        base_model=world.base,
        dataset_version=world.version,
        estimate=estimate.model_dump(mode="json"),
        correction={"memory": correction, "seconds": correction},
        measured={"memory": parts(estimate) * ratio, "seconds": middle * ratio},
        order=make_order(world.owner, kind="train", client=world.project.client),
    )
    Order.objects.filter(pk=run.order_id).update(worker=worker, **order)
    return run


def form(world: World) -> str:
    browser = Browser()
    browser.force_login(world.owner.user)
    sent = {"project": world.project.pk, "plugin": "rehearsal", "dataset_version": world.version.pk, "base_model": world.base.pk}
    return browser.post(reverse("runs:estimate"), sent).content.decode()


def test_a_run_keeps_what_it_took_beside_what_was_foreseen(acme):
    run = start(acme)
    work_off(run.order)
    run.refresh_from_db()
    assert run.estimate is not None and run.correction == {}
    assert run.measured == {"memory": run.order.latest["memory"], "seconds": pytest.approx(run.order.seconds, abs=0.1)}


def test_the_form_says_how_near_the_last_runs_came(acme):
    assert "data-accuracy" not in form(acme)
    work_off(start(acme).order)
    assert "The last such run on this worker, against the estimate:" in form(acme)


def test_the_range_goes_from_the_lowest_to_the_highest(acme):
    runs = [ended(acme, 1.0) for _ in range(2)]
    for run, ratio in zip(runs, (0.96, 1.09), strict=True):
        memory = parts(Estimate.model_validate(run.estimate)) * ratio
        Run.objects.filter(pk=run.pk).update(measured={"memory": memory})
    said = accuracy_on("test", plugin="rehearsal", workspace=acme.owner.workspace).sentence
    assert said == "The last 2 such runs on this worker, against the estimate: \N{MINUS SIGN}4…+9 % of the memory."
    assert spread([1.0, 1.0]) == "0 %" and spread([1.2]) == "+20 %"


def test_the_next_estimate_is_corrected_and_says_so(acme):
    before = foreseen(acme)
    for _ in range(4):
        ended(acme, 1.21)
        Run.objects.update(correction={})
    after = forecast(plugin_of("rehearsal"), plugin_of("rehearsal").Config(max_steps=3), base=acme.base, version=acme.version)
    assert after.accuracy is not None and after.estimate is not None
    learnt = after.accuracy.correction["memory"]
    assert 1.05 < learnt < 1.21
    assert parts(after.estimate) == pytest.approx(parts(before) * learnt, rel=0.001)
    assert after.estimate.memory.high == pytest.approx(before.memory.high * learnt, rel=0.001)
    assert any("so the estimate is corrected by that" in reason for reason in after.estimate.reasons)
    run = start(acme)
    assert run.correction["memory"] == pytest.approx(learnt)


def test_what_was_already_corrected_is_not_corrected_away(acme):
    run = ended(acme, 1.0, correction=1.3)
    accuracy = accuracy_on("test", plugin="rehearsal", workspace=acme.owner.workspace)
    assert accuracy.shown["memory"] == [pytest.approx(1.0)]
    assert accuracy.formula["memory"] == [pytest.approx(1.3)]
    assert run.correction["memory"] == 1.3


def test_few_runs_are_believed_a_little_and_none_without_bounds():
    assert learnt_factor([1.2]) == pytest.approx(1.2**0.2)
    assert learnt_factor([1.2] * 12) == pytest.approx(1.2**0.75)
    assert learnt_factor([1.0, 1.0, 1.0, 40.0]) == pytest.approx(1.0)
    assert (learnt_factor([9.0] * 12), learnt_factor([0.1] * 12)) == (1.5, 0.7)


def test_a_slight_correction_is_made_in_silence(acme):
    estimate = foreseen(acme)
    assert corrected(estimate, {"memory": 1.004}).reasons == estimate.reasons
    assert corrected(estimate, {}) == estimate
    (said,) = set(corrected(estimate, {"memory": 1.06, "seconds": 0.8}).reasons) - set(estimate.reasons)
    assert said == "Runs on this worker took 6 % more memory and 20 % less time than first thought, so the estimate is corrected by that."


def test_only_the_newest_runs_that_went_through_at_once_on_this_worker_count(acme):
    now = timezone.now()
    for age in range(14):
        ended(acme, 1.0 if age < 12 else 3.0, ended_at=now - timedelta(days=age))
    ended(acme, 3.0, worker="other")
    ended(acme, 3.0, attempt=2)
    ended(acme, 3.0, status=Order.Status.STOPPED)
    Run.objects.filter(pk=ended(acme, 3.0).pk).update(plugin="peft_lora")
    accuracy = accuracy_on("test", plugin="rehearsal", workspace=acme.owner.workspace)
    assert len(accuracy.shown["memory"]) == 12
    assert max(accuracy.shown["memory"]) < 1.5  # each is held against an estimate that had learnt from those before


def test_what_a_machine_has_taught_outlives_its_workers(acme):
    ended(acme, 2.0, worker="vm-1-4711")
    ended(acme, 3.0, worker="vm-1")
    ended(acme, 4.0, worker="vm-2-4711")
    seen = accuracy_on("vm-1-12", plugin="rehearsal", workspace=acme.owner.workspace).shown["memory"]
    assert sorted(seen) == pytest.approx([2.0, 3.0], rel=0.01)


def test_nothing_is_learnt_from_another_workspace(acme, rival):
    ended(rival, 1.4)
    assert accuracy_on("test", plugin="rehearsal", workspace=acme.owner.workspace).correction == {}
    assert "data-accuracy" not in form(acme)


def test_a_run_that_may_end_early_tells_its_memory_but_not_its_time(acme):
    run = start(acme)
    Run.objects.filter(pk=run.pk).update(config=run.config | {"early_stopping": 3})
    work_off(run.order)
    run.refresh_from_db()
    assert run.measured is not None and set(run.measured) == {"memory"}
