"""The form of a new comparison: what it proposes, what it says while one types, and what Start makes."""

import re
from typing import Any

import pytest
from django.test import Client as Browser

from studio.comparisons.models import Arm, ArmRun, Comparison
from studio.comparisons.searching import proposed, settings_of
from studio.comparisons.sweeping import Range
from studio.orders.models import Slot
from studio.runs.models import Run
from studio.training.form import FormField, check_config
from studio.training.registry import load_plugins
from tests.fixtures import World, make_base_model, make_version

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("slot")]


@pytest.fixture
def ana(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


def sent(acme: World, **changes: Any) -> dict[str, Any]:
    """The form as it is sent when nobody has touched it."""
    untouched = {
        "project": acme.project.pk,
        "dataset_version": acme.version.pk,
        "base_model": acme.base.pk,
        "differs": "method",
        "ways": ["lora", "full"],
        "metric": ["f1"],
        "stops_hopeless": "1",
    }
    return untouched | changes


def started(ana: Browser, acme: World, **changes: Any) -> Comparison:
    answer = ana.post("/comparisons/new/", sent(acme, **changes))
    assert answer.status_code == 302, answer.content.decode()
    made: Comparison = Comparison.objects.get()
    return made


def test_lora_and_full_are_proposed_with_three_seeds(ana: Browser, acme: World) -> None:
    page = ana.get(f"/comparisons/new/?project={acme.project.pk}").content.decode()
    assert "6 runs, " in page
    assert page.count('name="ways"') >= 4
    assert 'value="lora" id="id_ways_lora" checked' in page
    assert 'value="full" id="id_ways_full" checked' in page


def test_start_queues_a_run_for_each_arm_and_seed(ana: Browser, acme: World) -> None:
    made = started(ana, acme)
    lora, full = Arm.objects.filter(comparison=made)
    assert (lora.name, full.name) == ("LoRA, rank 16", "Full fine-tuning")
    assert full.is_reference and not lora.is_reference
    assert lora.config["learning_rate"] == pytest.approx(10 * full.config["learning_rate"])
    for name in ("epochs", "max_steps", "max_length"):
        assert lora.config[name] == full.config[name] == made.shared_settings[name]
    runs = Run.objects.filter(arm_run__arm__comparison=made)
    assert sorted((run.plugin, run.config["seed"]) for run in runs) == sorted(
        (plugin, seed) for plugin in ("full_finetune", "peft_lora") for seed in (1, 2, 3)
    )
    assert "seed" not in lora.config
    assert {run.status for run in runs} == {"queued"}
    assert made.metrics == [{"kind": "f1", "name": "f1"}]


def test_every_arm_reads_as_many_rows_in_a_step(ana: Browser, acme: World) -> None:
    made = started(ana, acme, ways=["lora", "dora", "full"], effective_batch="6", seeds="7")
    assert {arm.config["batch_size"] * arm.config["gradient_accumulation"] for arm in made.arms.all()} == {6}
    assert made.seeds == [7]


@pytest.mark.parametrize(
    ("changes", "names", "setting", "values"),
    [
        ({"differs": "rank", "ranks": "4, 8"}, ["Rank 4", "Rank 8"], "rank", [4, 8]),
        ({"differs": "targets", "targets": "q_proj\nall-linear"}, ["q_proj", "All linear layers"], "targets", [["q_proj"], ["all-linear"]]),
        (
            {"differs": "learning_rate", "learning_rates": "1e-4 3e-4"},
            ["Learning rate 0.0001", "Learning rate 0.0003"],
            "learning_rate",
            [1e-4, 3e-4],
        ),
    ],
)
def test_arms_differ_in_one_setting(
    ana: Browser, acme: World, changes: dict[str, str], names: list[str], setting: str, values: list[Any]
) -> None:
    made = started(ana, acme, seeds="1", **changes)
    arms = list(made.arms.all())
    assert [arm.name for arm in arms] == names
    assert [arm.config[setting] for arm in arms] == values
    others = [{name: value for name, value in arm.config.items() if name not in (setting, "alpha")} for arm in arms]
    assert others[0] == others[1]


def test_learning_rates_are_three_around_the_usual_where_none_is_typed(ana: Browser, acme: World) -> None:
    made = started(ana, acme, differs="learning_rate", seeds="1")
    assert [arm.config["learning_rate"] for arm in made.arms.all()] == [6.7e-5, 2e-4, 6e-4]


def test_base_models_are_compared(ana: Browser, acme: World) -> None:
    other = make_base_model(acme.owner, name="Other")
    made = started(ana, acme, differs="base_model", bases=[acme.base.pk, other.pk], seeds="1")
    assert {arm.base_model for arm in made.arms.all()} == {acme.base, other}


def test_arms_of_different_rows_make_as_many_steps(ana: Browser, acme: World) -> None:
    larger = make_version(acme.owner, acme.project, name="More replies", count=24)
    made = started(ana, acme, differs="dataset_version", versions=[acme.version.pk, larger.pk], seeds="1", way="lora")
    steps = {arm.config["max_steps"] for arm in made.arms.all()}
    assert len(steps) == 1 and steps.pop() > 0


def test_a_sweep_by_grid_makes_all_its_arms_at_once(ana: Browser, acme: World) -> None:
    made = started(ana, acme, **swept(["learning_rate", "rank"], sweep_by="grid", rank="4, 8", learning_rate="1e-4 to 4e-4"))
    assert made.seeds == [1]
    assert [(arm.config["learning_rate"], arm.config["rank"]) for arm in made.arms.all()] == [
        (1e-4, 4),
        (1e-4, 8),
        (2e-4, 4),
        (2e-4, 8),
        (4e-4, 4),
        (4e-4, 8),
    ]


def test_a_sweep_by_tpe_begins_with_two(ana: Browser, acme: World) -> None:
    page = ana.post("/comparisons/new/outlook/", sent(acme, **swept(["learning_rate"], sweep_most="6"))).content.decode()
    assert "6 runs" in page
    made = started(ana, acme, **swept(["learning_rate"], sweep_most="6"))
    assert made.arms.count() == 2 and made.sweep is not None and made.sweep["most"] == 6
    assert made.sweep["space"] == {"learning_rate": {"low": 4e-5, "high": 1e-3, "log": True}}  # a fifth to five times the usual


def swept(settings: list[str], *, sweep_by: str = "tpe", sweep_most: str = "8", **values: Any) -> dict[str, Any]:
    """A sweep over these settings, as the form sends it; `values` are what was typed for each."""
    typed = {f"search_{name}": value for name, value in values.items()}
    return {"differs": "sweep", "search": settings, "sweep_by": sweep_by, "sweep_most": sweep_most, **typed}


def test_any_number_and_any_choice_of_the_way_to_train_can_be_searched(ana: Browser, acme: World) -> None:
    page = ana.post("/comparisons/new/outlook/?part=search", sent(acme, differs="sweep", way="lora")).content.decode()
    offered = set(re.findall(r'name="search" value="(\w+)"', page))
    assert {"learning_rate", "rank", "alpha", "dropout", "warmup", "scheduler", "weight_decay", "variant", "quantization"} <= offered
    assert not offered & {"epochs", "seed", "targets", "save_every", "keep"}
    assert not offered & {"learn_from", "preference", "preference_beta", "preference_margin"}  # their losses are not of the same
    assert page.index('value="rank"') < page.index("Further settings") < page.index('value="warmup"')
    whole = ana.post("/comparisons/new/outlook/?part=search", sent(acme, differs="sweep", way="full")).content.decode()
    assert {"freeze_embeddings", "layer_decay"} <= set(re.findall(r'name="search" value="(\w+)"', whole))
    assert 'value="rank"' not in whole
    values = {"rank": "4 to 32", "weight_decay": "", "scheduler": ["linear", "cosine"], "variant": ["lora", "dora"], "alpha": "8, 32"}
    made = started(ana, acme, **swept(list(values), sweep_by="random", sweep_most="3", **values))
    assert made.sweep is not None and made.sweep["space"] == {
        "weight_decay": {"low": 0.0, "high": 0.1, "log": False},
        "scheduler": ["linear", "cosine"],
        "rank": {"low": 4.0, "high": 32.0, "log": True},
        "alpha": [8.0, 32.0],
        "variant": ["lora", "dora"],
    }
    arms = list(made.arms.all())
    assert len(arms) == 3 and all(4 <= arm.config["rank"] <= 32 and arm.config["alpha"] in (8, 32) for arm in arms)


def test_a_switch_is_searched_both_ways_and_a_range_of_a_grid_is_three_values(ana: Browser, acme: World) -> None:
    made = started(ana, acme, way="full", **swept(["freeze_embeddings", "warmup"], sweep_by="grid"))
    assert [(arm.config["warmup"], arm.config["freeze_embeddings"]) for arm in made.arms.all()] == [
        (warmup, frozen) for warmup in (0.0, 0.1, 0.2) for frozen in (False, True)
    ]


@pytest.mark.parametrize(
    ("name", "typed", "tried"),
    [
        ("max_grad_norm", "1.04 to 1.05", [1.04, 1.045, 1.05]),
        ("learning_rate", "0.000104 to 0.000106", [0.000104, 0.000105, 0.000106]),
        ("rank", "100 to 110", [100, 105, 110]),
        ("rank", "8 to 9", [8, 9]),
        ("alpha", "16, 16.04", [16.0, 16.04]),
    ],
)
def test_a_grid_tries_what_lies_between_the_ends_of_a_narrow_range(
    ana: Browser, acme: World, name: str, typed: str, tried: list[float]
) -> None:
    made = started(ana, acme, **swept([name], sweep_by="grid", **{name: typed}))
    assert [arm.config[name] for arm in made.arms.all()] == tried
    assert len({arm.name for arm in made.arms.all()}) == len(tried)


def test_what_is_drawn_from_a_narrow_range_lies_within_it(ana: Browser, acme: World) -> None:
    made = started(ana, acme, **swept(["max_grad_norm"], sweep_by="random", sweep_most="6", max_grad_norm="1.0412 to 1.0448"))
    assert len({value for arm in made.arms.all() if 1.0412 <= (value := arm.config["max_grad_norm"]) <= 1.0448}) == 6


def test_what_is_proposed_lies_within_the_bounds_of_every_setting_of_every_plugin() -> None:
    for loaded in load_plugins().values():
        for field in settings_of(loaded.plugin) if loaded.plugin else []:
            values = proposed(field, field.default)
            tried = [values.low, values.high] if isinstance(values, Range) else values
            for value in tried:
                whole = round(value) if field.kind == "integer" else value
                assert field.name not in check_config(loaded.plugin.Config, {field.name: whole})[1], (loaded.name, field.name, tried)
            assert len(tried) > 1


@pytest.mark.parametrize(("kind", "default"), [("number", 0.0), ("integer", 0), ("number", 0.5), ("integer", 8)])
def test_what_is_proposed_of_a_setting_whose_multiples_matter_is_spread_by_them(kind: Any, default: float) -> None:
    values = proposed(FormField("strength", "Strength", kind, default, ge=0, le=64, log=True), default)
    assert isinstance(values, Range) and values.log and 0 < values.low < values.high <= 64


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("lora_plus", "0 to 16", "The range is spread by its logarithm, so its low end must be above 0."),
        ("learning_rate", "1e-3 to 1e-4", "The low end must be below the high end."),
        ("learning_rate", "fast", "Must be above 0 and at most 0.1."),
        ("learning_rate", "1e-4", "Give a range, such as 0.00004 to 0.001, or 2 to 24 values with commas between them."),
        ("rank", "8, 100000", "Rank must be a whole number from 1 to 512."),
        ("rank", "8.5 to 16", "Rank must be a whole number from 1 to 512."),
        ("rank", " ".join(map(str, range(1, 40))), "Give a range, such as 4 to 64, or 2 to 24 values with commas between them."),
        ("rank", "8, 8", "One of them stands there twice."),
        ("scheduler", ["linear"], "Choose at least two of them."),
        ("warmup", "0.5 to 1", "Must be at least 0 and below 1."),
        ("weight_decay", "nan to 1", "Must be from 0 to 1."),
    ],
)
def test_what_cannot_be_searched_is_said_beside_its_setting(ana: Browser, acme: World, name: str, typed: Any, said: str) -> None:
    answer = ana.post("/comparisons/new/", sent(acme, **swept([name], **{name: typed})))
    assert answer.status_code == 422
    page = answer.content.decode()
    assert f'data-error-for="search_{name}">{said}<' in page
    assert said in page[page.index(f'data-field="search_{name}"') :]
    assert not Comparison.objects.exists()


@pytest.mark.parametrize("by", ["tpe", "random", "grid"])
def test_at_most_eight_settings_are_searched_at_once(ana: Browser, acme: World, by: str) -> None:
    nine = ["learning_rate", "rank", "alpha", "dropout", "warmup", "weight_decay", "scheduler", "variant", "lora_plus"]
    answer = ana.post("/comparisons/new/", sent(acme, **swept(nine, sweep_by=by, scheduler=["linear", "cosine"], variant=["lora", "dora"])))
    assert answer.status_code == 422
    assert 'data-error-for="search">Choose at most 8 settings.<' in answer.content.decode()


BITS = {"variant": ["lora", "dora"], "quantization": ["none", "8bit"], "rank": "4, 8"}


@pytest.mark.parametrize(("by", "count"), [("random", 6), ("tpe", 2)])
def test_what_cannot_be_trained_is_not_drawn(ana: Browser, acme: World, slot: Slot, by: str, count: int) -> None:
    Slot.objects.filter(pk=slot.pk).update(facts=slot.facts | {"packages": {"bitsandbytes": "0.48.0"}})
    made = started(ana, acme, **swept(list(BITS), sweep_by=by, sweep_most="8", **BITS))
    arms = [(arm.config["variant"], arm.config["quantization"]) for arm in made.arms.all()]
    assert len(arms) == count and ("dora", "8bit") not in arms


def test_where_nothing_that_was_drawn_can_be_trained_it_is_said_why(ana: Browser, acme: World) -> None:
    answer = ana.post("/comparisons/new/", sent(acme, **swept(["quantization"], quantization=["8bit", "4bit"])))  # of no such worker
    assert answer.status_code == 422 and "needs the package bitsandbytes" in answer.content.decode()


def test_nothing_to_search_is_no_sweep(ana: Browser, acme: World) -> None:
    page = ana.post("/comparisons/new/", sent(acme, **swept([]))).content.decode()
    assert 'data-error-for="search">Choose at least one setting.<' in page
    other = ana.post("/comparisons/new/", sent(acme, way="full", **swept(["rank"]))).content.decode()  # it knows no rank
    assert 'data-error-for="search">Choose at least one setting.<' in other


def test_a_run_is_the_first_arm_of_a_comparison_like_it(ana: Browser, acme: World) -> None:
    run = Run.objects.create(
        project=acme.project,
        name="Mine",
        plugin="peft_lora",
        config={
            "epochs": 5.0,
            "learning_rate": 1e-4,
            "rank": 8,
            "alpha": 8.0,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "max_steps": 0,
            "max_length": 64,
        },
        base_model=acme.base,
        dataset_version=acme.version,
        order=Run.objects.get(pk=acme.run.pk).order.__class__.objects.create(
            workspace=acme.workspace, client=acme.client, kind="train", queue="train", status="succeeded"
        ),
    )
    page = ana.get(f"/comparisons/new/?like={run.pk}").content.decode()
    assert "Begins from" in page and f'name="like" value="{run.pk}"' in page
    made = started(ana, acme, like=run.pk, seeds="1")
    lora, full = made.arms.all()
    assert (lora.config["epochs"], lora.config["rank"], lora.config["alpha"], lora.config["learning_rate"]) == (5.0, 8, 8.0, 1e-4)
    assert (full.config["epochs"], full.config["max_length"], full.config["learning_rate"]) == (5.0, 64, 1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ways": ["lora"]}, "Choose at least two that differ."),
        ({"ways": []}, "Choose at least one way to train."),
        ({"differs": "base_model"}, "Choose at least two that differ."),
        ({"differs": "dataset_version"}, "Choose at least two that differ."),
        ({"seeds": "1, 1"}, "One of them stands there twice."),
        ({"seeds": "one"}, "Whole numbers, such as 1, 2, 3"),
        ({"differs": "rank", "way": "full"}, "Choose a way to train that has one, such as LoRA."),
        ({"differs": "rank", "ranks": "8, 100000"}, "Rank must be a whole number from 1 to 512."),
        ({"differs": "learning_rate", "learning_rates": "nan, 1e-4"}, "Numbers, such as 1e-4, 2e-4, 4e-4"),
        ({"epochs": "-1"}, "Must be above 0 and at most 1"),
        ({"metric": ["regex"]}, "This is needed."),
        ({"metric": ["json_valid"], "metric_json_valid_json_schema": "{"}, "This is not JSON."),
        ({"metric": ["json_valid"], "metric_json_valid_json_schema": '{"const": ' + "[" * 100_000}, "This is nested too deeply."),
        ({"metric": ["json_valid"], "metric_json_valid_json_schema": '{"const": "\\u0000"}'}, "cannot be stored"),
        ({"differs": "sweep", "search": ["learning_rate"], "sweep_most": "1"}, "greater than or equal to 2"),
        ({"differs": "sweep", "search": ["learning_rate"], "sweep_by": "luck"}, "Input should be"),
        (
            {"differs": "sweep", "sweep_by": "grid", "search": ["learning_rate", "warmup", "weight_decay"]},
            "The grid has more than 24 points. List fewer values.",
        ),
    ],
)
def test_what_cannot_be_is_said_beside_its_field(ana: Browser, acme: World, changes: dict[str, Any], said: str) -> None:
    answer = ana.post("/comparisons/new/", sent(acme, **changes))
    assert answer.status_code == 422
    assert said in answer.content.decode().replace("\u202f", " ").replace("&#x27;", "'")
    assert not Comparison.objects.exists() and not ArmRun.objects.exists()


def test_rows_without_validation_have_nothing_to_measure_on(ana: Browser, acme: World) -> None:
    acme.version.facts["split"]["validation"] = 0
    acme.version.save()
    answer = ana.post("/comparisons/new/", sent(acme))
    assert answer.status_code == 422 and "Split it with some rows for validation" in answer.content.decode()


def test_a_second_click_makes_no_second_comparison(ana: Browser, acme: World) -> None:
    for _ in range(2):
        assert ana.post("/comparisons/new/", sent(acme, seeds="1")).status_code == 302
    assert Comparison.objects.count() == 1 and ArmRun.objects.count() == 2


def test_another_clients_things_are_not_compared(ana: Browser, acme: World) -> None:
    from tests.fixtures import make_world

    other = make_world("eve@example.com", "Globex")
    for name, value in (
        ("project", other.project.pk),
        ("dataset_version", other.version.pk),
        ("base_model", other.base.pk),
        ("probe", other.version.pk),
    ):
        assert ana.post("/comparisons/new/", sent(acme, **{name: value})).status_code == 404
