"""Comparisons from their first run to their measuring: what moves by itself, what people stop, add to, measure again and delete."""

from typing import Any

import pytest
from django.db import connection
from django.http import Http404
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.comparisons import rounds, services
from studio.comparisons.arms import ArmSpec
from studio.comparisons.measured import Measured
from studio.comparisons.models import Arm, ArmRun, Comparison
from studio.comparisons.sweeping import next_point, sweep_of
from studio.errors import UserError
from studio.orders.models import Event, Order, Slot
from studio.runs.models import Run
from studio.runs.services import plugin_of
from tests.comparisons.house import make_measured
from tests.fixtures import World, make_member, make_run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("slot")]
STEPS = {"epochs": 1.0, "max_steps": 10, "max_length": 64}


def begun(
    acme: World, *, seeds: tuple[int, ...] = (1, 2), sweep: dict[str, Any] | None = None, names: tuple[str, ...] = ("A", "B")
) -> Comparison:
    arms = [
        ArmSpec(name, "peft_lora", STEPS | {"rank": 8, "learning_rate": 1e-4 * (number + 1)}, acme.base, acme.version)
        for number, name in enumerate(names)
    ]
    return services.create_comparison(
        acme.owner, project=acme.project, name="Rates", differs="sweep" if sweep else "learning_rate", arms=arms, seeds=seeds, sweep=sweep
    )


def orders(comparison: Comparison) -> dict[tuple[str, int], Order]:
    return {
        (each.arm.name, each.seed): each.run.order
        for each in ArmRun.objects.filter(arm__comparison=comparison).select_related("arm", "run__order")
    }


def became(order: Order, status: str, *, looks: tuple[float, ...] = (), done: int = 10) -> None:
    """As a worker would have left it, with its looks at the validation rows spread over its steps."""
    for number, loss in enumerate(looks):
        step = round(number * done / max(1, len(looks) - 1))
        body = {"step": step, "total": 10, "validation_loss": loss}
        Event.objects.create(order=order, seq=number + 1, attempt=1, at=timezone.now(), type="metric", body=body)
    ended = None if status in Order.LIVE else timezone.now()
    latest = {"validation_loss": looks[-1]} if looks else {}
    Order.objects.filter(pk=order.pk).update(
        status=status, ended_at=ended, started_at=timezone.now(), latest=latest, done=done, total=10, last_seq=len(looks)
    )


def end_all(comparison: Comparison, status: str = "succeeded") -> None:
    for order in orders(comparison).values():
        became(order, status)


def test_each_arm_gets_a_run_for_each_seed_with_one_record_of_the_comparison(acme: World) -> None:
    made = begun(acme)
    runs = Run.objects.filter(arm_run__arm__comparison=made)
    assert sorted(run.name for run in runs) == ["Rates: A, seed 1", "Rates: A, seed 2", "Rates: B, seed 1", "Rates: B, seed 2"]
    assert AuditRecord.objects.filter(verb="comparison.create").count() == 1
    assert AuditRecord.objects.filter(verb="run.create").count() == 4
    assert made.shared_settings == STEPS | {"effective_batch": 8}


def test_arms_that_read_more_than_others_are_refused(acme: World) -> None:
    arms = [ArmSpec(str(steps), "peft_lora", {"max_steps": steps}, acme.base, acme.version) for steps in (10, 20)]
    with pytest.raises(UserError, match="would not read the same: the step limit"):
        services.create_comparison(acme.owner, project=acme.project, name="", differs="method", arms=arms)
    assert not Comparison.objects.exists() and not Run.objects.filter(plugin="peft_lora").exists()


def test_probe_rows_of_another_client_are_refused(acme: World) -> None:
    from studio.workspaces.services import create_client, create_project
    from tests.fixtures import make_version

    other = create_project(acme.owner, client=create_client(acme.owner, name="Globex"), name="Theirs")
    probe = make_version(acme.owner, other, name="Secret")
    arms = [ArmSpec(name, "peft_lora", {}, acme.base, acme.version) for name in "AB"]
    with pytest.raises(UserError, match="another client"):
        services.create_comparison(acme.owner, project=acme.project, name="", differs="method", arms=arms, probe=probe)


def test_it_is_measured_once_when_all_runs_have_ended(acme: World) -> None:
    made = begun(acme)
    assert rounds.advance() == []
    end_all(made)
    assert rounds.advance() == ["Rates: is measured"]
    made.refresh_from_db()
    assert made.state == "measuring" and made.order is not None and made.order.kind == "comparison"
    assert rounds.advance() == []
    assert Order.objects.filter(kind="comparison").count() == 1


def test_one_that_its_maker_has_left_is_measured_too(acme: World) -> None:
    made = begun(acme)
    Comparison.objects.filter(pk=made.pk).update(created_by=None)
    end_all(made)
    assert rounds.advance() == ["Rates: is measured"]


def test_a_failed_run_leaves_its_arm_to_the_other_seeds(acme: World) -> None:
    made = begun(acme)
    end_all(made)
    became(orders(made)["A", 1], "failed")
    rounds.advance()
    made.refresh_from_db()
    assert made.state == "measuring"
    assert [(each.arm.name, each.seed) for each in services.comparable(made)] == [("A", 2), ("B", 1), ("B", 2)]


def test_where_every_run_failed_there_is_nothing_to_measure(acme: World) -> None:
    made = begun(acme)
    end_all(made, "failed")
    rounds.advance()
    made.refresh_from_db()
    assert (made.state, made.order) == ("failed", None) and "None of its runs" in made.error


def test_a_paused_run_is_waited_for(acme: World) -> None:
    made = begun(acme)
    end_all(made)
    became(orders(made)["A", 1], "paused")
    assert rounds.advance() == []


@pytest.mark.parametrize(("status", "state"), [("failed", "failed"), ("stopped", "stopped")])
def test_a_measuring_that_ends_without_a_result_is_told(acme: World, status: str, state: str) -> None:
    made = begun(acme)
    end_all(made)
    rounds.advance()
    made.refresh_from_db()
    assert made.order is not None
    Order.objects.filter(pk=made.order.pk).update(status=status, error="Out of memory.", ended_at=timezone.now())
    rounds.advance()
    made.refresh_from_db()
    assert made.state == state and ("Out of memory." in made.error) == (status == "failed")


def test_a_run_that_is_worse_than_the_base_after_half_of_its_steps_is_stopped(acme: World) -> None:
    made = begun(acme, seeds=(1,))
    became(orders(made)["A", 1], "running", looks=(2.0, 2.5, 3.0), done=6)
    assert rounds.advance() == ["Rates: A, seed 1: stopped early"]
    stopped = ArmRun.objects.get(arm__name="A")
    assert stopped.ended_early == "After half of its steps the validation loss was 3, above the 2 of the untouched base model."
    assert stopped.run.order.stop_requested_at is not None
    assert rounds.advance() == []


def test_a_run_that_is_far_worse_than_what_has_ended_is_stopped(acme: World) -> None:
    made = begun(acme, seeds=(1,))
    became(orders(made)["B", 1], "succeeded", looks=(2.0, 1.0))
    became(orders(made)["A", 1], "running", looks=(2.0, 1.9, 1.8), done=6)
    rounds.advance()
    assert ArmRun.objects.get(arm__name="A").ended_early == "Its validation loss was 1.8, while B, the worst arm that has ended, came to 1."


@pytest.mark.parametrize(("looks", "done"), [((2.0, 3.0), 4), ((2.0, 1.5, 1.2), 6), ((), 6)])
def test_a_run_that_may_still_catch_up_goes_on(acme: World, looks: tuple[float, ...], done: int) -> None:
    made = begun(acme, seeds=(1,))
    became(orders(made)["B", 1], "succeeded", looks=(2.0, 1.0))
    became(orders(made)["A", 1], "running", looks=looks, done=done)
    assert rounds.advance() == []


def test_nothing_is_stopped_where_that_was_switched_off(acme: World) -> None:
    made = begun(acme, seeds=(1,))
    Comparison.objects.filter(pk=made.pk).update(stops_hopeless=False)
    became(orders(made)["A", 1], "running", looks=(2.0, 2.5, 3.0), done=6)
    assert rounds.advance() == []


SPACE = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}


def test_a_sweeps_worse_half_ends_early(acme: World) -> None:
    names = ("A", "B", "C", "D")
    made = begun(acme, seeds=(1,), names=names, sweep={"by": "random", "space": SPACE, "most": 4, "prune": True})
    for name, loss in zip(names[:3], (1.0, 1.1, 1.2), strict=True):
        became(orders(made)[name, 1], "succeeded", looks=(2.0, *[loss] * 10))
    became(orders(made)["D", 1], "running", looks=(2.0, 1.9), done=4)
    assert rounds.advance() == ["Rates: D, seed 1: stopped early"]
    assert "half of the other runs had 1.1 by then" in ArmRun.objects.get(arm__name="D").ended_early


def test_tpe_makes_the_next_arm_when_a_place_is_free_and_knows_what_was_tried(acme: World) -> None:
    made = begun(acme, seeds=(1,), sweep={"by": "tpe", "space": SPACE, "most": 4, "prune": True})
    assert rounds.advance() == []
    became(orders(made)["A", 1], "succeeded", looks=(2.0, 1.5))
    assert rounds.advance() == []  # the other one takes the only worker
    became(orders(made)["B", 1], "succeeded", looks=(2.0, 1.2))
    assert len(rounds.advance()) == 1
    new = Arm.objects.get(comparison=made, number=2)
    assert 1e-5 <= new.config["learning_rate"] <= 1e-3 and new.name.startswith("Learning rate ")
    assert {name: new.config[name] for name in STEPS} == STEPS
    for _ in range(2):
        for order in Order.objects.filter(run__arm_run__arm__comparison=made, status="queued"):
            became(order, "succeeded", looks=(2.0, 1.3))
        rounds.advance()
    made.refresh_from_db()
    assert made.arms.count() == 4 and made.state == "measuring"
    assert len({arm.config["learning_rate"] for arm in made.arms.all()}) == 4


BITS = {"variant": ["dora", "lora"], "quantization": ["8bit", "none"]}
"""DoRA does not run beside a base in 8 bits."""


@pytest.fixture
def in_bits(slot: Slot) -> None:
    """The worker can load a base model in 8 bits."""
    Slot.objects.filter(pk=slot.pk).update(facts=slot.facts | {"packages": {"bitsandbytes": "0.48.0"}})


@pytest.mark.usefixtures("in_bits")
def test_tpe_goes_round_what_cannot_be_trained_and_ends_with_words_where_nothing_else_is_left(acme: World, client: Browser) -> None:
    made = begun(acme, seeds=(1,), sweep={"by": "tpe", "space": BITS, "most": 6, "prune": False})
    for _ in range(8):
        for order in Order.objects.filter(run__arm_run__arm__comparison=made, status="queued"):
            became(order, "succeeded", looks=(2.0, 1.3))
        rounds.advance()
    made.refresh_from_db()
    tried = [(arm.config["variant"], arm.config["quantization"]) for arm in made.arms.all()]
    assert sorted(set(tried)) == [("dora", "none"), ("lora", "8bit"), ("lora", "none")]
    assert made.state == "measuring"
    said = "No further combination was found that can be trained. Variant dora, quantization 8bit: DoRA runs beside"
    assert made.error.startswith(said)
    client.force_login(acme.owner.user)
    assert said in client.get(f"/comparisons/{made.pk}/").content.decode()
    services.end(made, "done", error=services.note_of(made))
    assert said in client.get(f"/comparisons/{made.pk}/").content.decode()
    Order.objects.filter(comparison=made).update(status="succeeded")
    assert services.add_seeds(acme.owner, made, [5]).error.startswith(said)


@pytest.mark.usefixtures("in_bits")
def test_what_cannot_be_trained_is_told_to_tpe_so_that_it_goes_elsewhere(acme: World) -> None:
    plugin = plugin_of("peft_lora")
    sweep = sweep_of({"by": "tpe", "space": {"rank": {"low": 1, "high": 512}, "learning_rate": [1e-4, 2e-4]}, "most": 24}, plugin)
    arms = [({"rank": rank, "learning_rate": 1e-4}, 1.0 + 1 / rank, False) for rank in range(2, 18, 2)]  # a larger one is always better
    point = next_point(sweep, plugin, arms, lambda point: "It is too large." if point["rank"] > 32 else "")
    assert point is not None and point["rank"] <= 32


def test_a_sweep_that_began_before_its_setting_was_refused_goes_on(acme: World) -> None:
    space = {"learn_from": ["answers", "last_answer"], **SPACE}
    made = begun(acme, seeds=(1,), sweep={"by": "tpe", "space": space, "most": 3, "prune": True})
    end_all(made)
    rounds.advance()
    assert Arm.objects.get(comparison=made, number=2).config["learn_from"] in ("answers", "last_answer")


def test_a_sweep_whose_maker_has_left_ends_with_what_it_has(acme: World) -> None:
    made = begun(acme, seeds=(1,), sweep={"by": "tpe", "space": SPACE, "most": 4, "prune": True})
    Comparison.objects.filter(pk=made.pk).update(created_by=None)
    end_all(made)
    rounds.advance()
    made.refresh_from_db()
    assert made.state == "measuring" and made.arms.count() == 2


def test_stopping_ends_its_runs_and_measures_what_was_done_of_two_arms(acme: World) -> None:
    made = begun(acme)
    for name in "AB":
        became(orders(made)[name, 1], "succeeded")
    services.stop(acme.owner, made)
    made.refresh_from_db()
    assert made.state == "measuring"
    assert {order.status for (_, seed), order in orders(made).items() if seed == 2} == {"stopped"}
    services.stop(acme.owner, made)
    made.refresh_from_db()
    assert made.state == "stopped" and made.order is not None and made.order.status == "stopped"
    with pytest.raises(UserError, match="already ended"):
        services.stop(acme.owner, made)


def test_stopping_with_one_arm_done_measures_nothing_by_itself(acme: World) -> None:
    made = begun(acme)
    became(orders(made)["A", 1], "succeeded")
    services.stop(acme.owner, made)
    made.refresh_from_db()
    assert (made.state, made.order) == ("stopped", None)
    services.again(acme.owner, made)
    made.refresh_from_db()
    assert made.state == "measuring"


def test_measuring_again_throws_away_one_that_came_to_nothing(acme: World) -> None:
    made = acme.comparison
    for each in ArmRun.objects.filter(arm__comparison=made):
        became(each.run.order, "succeeded")
    services.again(acme.owner, made)
    made.refresh_from_db()
    first = made.order_id
    with pytest.raises(UserError, match="still goes on"):
        services.again(acme.owner, made)
    Comparison.objects.filter(pk=made.pk).update(state="failed")
    Order.objects.filter(pk=first).update(status="failed")
    services.again(acme.owner, made)
    made.refresh_from_db()
    assert made.order_id != first and not Order.objects.filter(pk=first).exists()


def measured_once(acme: World) -> Comparison:
    """A comparison that was measured, with its order and what it left."""
    made = begun(acme, seeds=(1,))
    for order in orders(made).values():
        became(order, "succeeded")
    make_measured(made)
    services.measured(made)
    Comparison.objects.filter(pk=made.pk).update(state="done")
    made.refresh_from_db()
    return made


def test_measuring_again_keeps_what_was_measured_before_until_it_has_succeeded(acme: World) -> None:
    made = measured_once(acme)
    first = made.order_id
    for ended in ("failed", "stopped"):
        services.again(acme.owner, made)
        made.refresh_from_db()
        assert made.order_id != first and made.before_id == first
        Order.objects.filter(pk=made.order_id).update(status=ended, error="Out of memory.", ended_at=timezone.now())
        rounds.advance()
        made.refresh_from_db()
        assert (made.order_id, made.before, made.state) == (first, None, ended)
        assert Measured.of(made).answers(0, 1) and Order.objects.filter(kind="comparison").count() == 1
    services.again(acme.owner, made)
    again = Comparison.objects.get(pk=made.pk)
    make_measured(again)
    services.measured(again)
    again.refresh_from_db()
    assert (again.state, again.before) == ("done", None) and not Order.objects.filter(pk=first).exists()


def test_one_that_is_stopped_while_it_is_measured_again_is_left_alone_until_its_worker_has_heard(acme: World) -> None:
    made = measured_once(acme)
    first = made.order_id
    services.again(acme.owner, made)
    made.refresh_from_db()
    Order.objects.filter(pk=made.order_id).update(status="running")
    services.stop(acme.owner, made)
    for change in (services.again, services.delete_comparison, services.add_seeds):
        with pytest.raises(UserError, match="still being stopped"):
            change(acme.owner, made)
    assert rounds.advance() == []
    Order.objects.filter(pk=made.order_id).update(status="stopped", ended_at=timezone.now())
    rounds.advance()
    made.refresh_from_db()
    assert (made.order_id, made.before, made.state) == (first, None, "stopped")
    services.delete_comparison(acme.owner, made)
    with pytest.raises(Http404):
        services.delete_comparison(acme.owner, made)


def test_nothing_is_begun_for_a_client_that_is_archived(acme: World) -> None:
    made = begun(acme)
    acme.client.archived_at = timezone.now()
    acme.client.save()
    assert rounds.advance() == []
    end_all(made)
    rounds.advance()
    made.refresh_from_db()
    assert (made.state, made.order) == ("stopped", None) and "archived" in made.error


@pytest.mark.parametrize("changes", [{"keep": "best"}, {"early_stopping": 3}])
def test_arms_that_would_not_train_to_their_end_are_refused(acme: World, changes: dict[str, Any]) -> None:
    arms = [ArmSpec(str(rank), "peft_lora", {"rank": rank} | changes, acme.base, acme.version) for rank in (8, 16)]
    with pytest.raises(UserError, match="to its end"):
        services.create_comparison(acme.owner, project=acme.project, name="", differs="rank", arms=arms)


def test_a_second_click_is_one_that_asks_for_the_very_same(acme: World) -> None:
    def clicked(rank: int, **more: Any) -> Comparison:
        arms = [ArmSpec(name, "peft_lora", {"rank": rank, "learning_rate": rate}, acme.base, acme.version) for name, rate in RATES]
        told: dict[str, Any] = {"name": "", "differs": "learning_rate", "seeds": (1,), "by_hand": True}
        return services.create_comparison(acme.owner, project=acme.project, arms=arms, **told | more)

    first = clicked(8)
    assert clicked(8) == first
    others = [clicked(16), clicked(8, probe=acme.version), clicked(8, metrics=[{"kind": "exact_match"}])]
    assert len({first.pk, *(each.pk for each in others)}) == 4


def test_a_run_is_not_held_against_one_of_another_base_model(acme: World) -> None:
    made = begun(acme, seeds=(1,))
    Arm.objects.filter(comparison=made, name="B").update(base_model=acme.newer)
    became(orders(made)["B", 1], "succeeded", looks=(2.0, 1.0))
    became(orders(made)["A", 1], "running", looks=(2.0, 1.9, 1.8), done=6)
    assert rounds.advance() == []


@pytest.mark.parametrize(("low", "high", "log"), [(8.1, 8.4, False), (0.4, 8, True), (0.2, 0.4, True)])
def test_a_range_without_whole_numbers_is_refused(low: float, high: float, log: bool) -> None:
    with pytest.raises(UserError) as refused:
        sweep_of({"by": "tpe", "space": {"rank": {"low": low, "high": high, "log": log}}}, plugin_of("peft_lora"))
    assert "whole numbers" in refused.value.fields["sweep.rank"]


def test_a_sweep_of_which_nobody_can_tell_what_to_try_next_ends_with_what_it_has(acme: World) -> None:
    made = begun(acme, seeds=(1,), sweep={"by": "tpe", "space": SPACE, "most": 4, "prune": True})
    plugin = plugin_of("peft_lora")
    with pytest.raises(UserError, match="could not be found"):
        rounds.tried_next(made, sweep_of(made.sweep or {}, plugin), plugin, [({"learning_rate": 1e-4}, float("nan"), False)], lambda _: "")
    Comparison.objects.filter(pk=made.pk).update(sweep=made.sweep | {"space": {"rank": {"low": 8.1, "high": 8.4, "log": False}}})
    end_all(made)
    rounds.advance()
    rounds.advance()
    made.refresh_from_db()
    assert made.state == "measuring" and made.arms.count() == 2


RATES = (("A", 1e-4), ("B", 2e-4))


def test_more_seeds_train_each_arm_again(acme: World) -> None:
    made = begun(acme)
    with pytest.raises(UserError, match="still goes on"):
        services.add_seeds(acme.owner, made)
    Comparison.objects.filter(pk=made.pk).update(state="done")
    end_all(made)
    services.add_seeds(acme.owner, made)
    made.refresh_from_db()
    assert made.seeds == [1, 2, 3, 4] and made.state == "running"
    assert sorted(seed for name, seed in orders(made) if name == "A") == [1, 2, 3, 4]
    end_all(made)
    Comparison.objects.filter(pk=made.pk).update(state="done")
    with pytest.raises(UserError, match="seeds cannot be used"):
        services.add_seeds(acme.owner, made, [4])


def test_deleting_leaves_the_runs_and_takes_the_measurement(acme: World) -> None:
    made = begun(acme)
    with pytest.raises(UserError, match="Stop it first"):
        services.delete_comparison(acme.owner, made)
    end_all(made)
    rounds.advance()
    Comparison.objects.filter(pk=made.pk).update(state="done")
    Order.objects.filter(kind="comparison").update(status="succeeded", ended_at=timezone.now())
    services.delete_comparison(acme.owner, made)
    assert not Comparison.objects.exists() and not Order.objects.filter(kind="comparison").exists()
    assert Run.objects.filter(name__startswith="Rates").count() == 4


def test_a_dataset_that_a_comparison_uses_says_so_and_stays(acme: World) -> None:
    from studio.datasets.deleting import delete_dataset

    made = begun(acme)
    with pytest.raises(UserError, match="comparison Rates"):
        delete_dataset(acme.owner, acme.version.dataset)
    made.refresh_from_db()


def test_the_list_finds_by_client_state_and_words_with_as_many_queries_for_many(acme: World, client: Browser) -> None:
    client.force_login(acme.owner.user)
    made = begun(acme)
    page = client.get("/comparisons/").content.decode()
    assert "Rates" in page and "2 arms, 2 seeds" in page
    assert "Rates" in client.get("/comparisons/?q=rat&state=running").content.decode()
    assert "No comparison like that" in client.get("/comparisons/?state=done").content.decode()
    with CaptureQueriesContext(
        connection,
    ) as few:
        client.get("/comparisons/")
    for number in range(5):
        Comparison.objects.create(project=acme.project, name=f"More {number}", differs="rank", seeds=[1], created_by=acme.owner.user)
    with CaptureQueriesContext(connection) as many:
        client.get("/comparisons/")
    assert len(many) == len(few)
    made.project.client.archived_at = timezone.now()
    made.project.client.save()
    assert "Rates" not in client.get("/comparisons/").content.decode()


def test_a_viewer_sees_and_changes_nothing(acme: World, client: Browser) -> None:
    made = begun(acme)
    viewer = make_member(acme.workspace, role="viewer", email="vic@example.com")
    client.force_login(viewer.user)
    assert "New comparison" not in client.get("/comparisons/").content.decode()
    for verb in ("stop", "again", "rename", "seeds", "delete"):
        assert client.post(f"/comparisons/{made.pk}/{verb}/").status_code == 404
    assert client.get(f"/comparisons/new/?project={acme.project.pk}").status_code == 404


def test_what_is_refused_on_a_page_is_said_there(acme: World, client: Browser) -> None:
    made = begun(acme)
    make_run(acme.owner, acme.project, acme.base, acme.version)
    client.force_login(acme.owner.user)
    page = client.post(f"/comparisons/{made.pk}/delete/", follow=True).content.decode()
    assert "Stop it first, then delete it." in page
    assert client.post(f"/comparisons/{made.pk}/rename/", {"name": "Better"}).status_code == 302
    made.refresh_from_db()
    assert made.name == "Better"
