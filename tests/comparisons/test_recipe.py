"""A comparison by the API and by a file: what both make, what the file of one says, and the command that follows it."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from studio.comparisons import rounds
from studio.comparisons.figures import Verdict
from studio.comparisons.models import ArmRun, Comparison
from studio.comparisons.recipe import read_recipe, recipe_of
from studio.errors import UserError
from studio.orders.models import Order, Slot
from studio.runs.models import Run
from studio.workspaces.models import Project
from tests.fixtures import World

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("slot")]
SHIPPED = Path(__file__).resolve().parents[2] / "recipes" / "lora_or_full.yaml"


def body(acme: World, **changes: Any) -> dict[str, Any]:
    told = {
        "project": str(acme.project.pk),
        "dataset_version": str(acme.version.pk),
        "base_model": str(acme.base.pk),
        "arms": [{"plugin": "peft_lora", "config": {"rank": 8}}, {"plugin": "full_finetune", "config": {}}],
        "seeds": [1, 2],
        "budget": {"max_steps": 5, "effective_batch": 4, "max_length": 64},
    }
    return told | changes


def test_a_script_makes_a_comparison_and_reads_how_it_stands(acme: World) -> None:
    answer = acme.api.post("comparisons", body(acme, metrics=[{"kind": "exact_match"}]))
    assert answer.status_code == 201, answer.content
    made = answer.json()
    assert (made["state"], made["differs"], made["arm_count"]) == ("running", "method", 2)
    assert [arm["name"] for arm in made["arms"]] == ["LoRA, rank 8", "Full fine-tuning"]
    assert [arm["is_reference"] for arm in made["arms"]] == [False, True]
    assert [arm["config"]["learning_rate"] for arm in made["arms"]] == [2e-4, 2e-5]
    for arm in made["arms"]:
        assert arm["config"]["max_steps"] == 5 and arm["config"]["batch_size"] * arm["config"]["gradient_accumulation"] == 4
        assert [(run["seed"], run["status"]) for run in arm["runs"]] == [(1, "queued"), (2, "queued")]
    assert acme.api.get(f"comparisons/{made['id']}").json() == made
    listed = acme.api.get(f"comparisons?project={acme.project.pk}&state=running").json()
    assert [line["id"] for line in listed["items"]] == [made["id"]] and listed["next"] is None
    stopped = acme.api.post(f"comparisons/{made['id']}/stop")
    assert stopped.status_code == 202 and stopped.json()["state"] == "stopped"
    assert acme.api.post(f"comparisons/{made['id']}/measure").json()["error"]["message"].startswith("None of its runs")
    more = acme.api.post(f"comparisons/{made['id']}/seeds", {"seeds": [9]})
    assert more.status_code == 202 and more.json()["seeds"] == [1, 2, 9]
    assert acme.api.delete(f"comparisons/{made['id']}").status_code == 400
    acme.api.post(f"comparisons/{made['id']}/stop")
    assert acme.api.delete(f"comparisons/{made['id']}").status_code == 204
    assert Run.objects.filter(plugin="peft_lora").count() == 3


def test_a_script_sweeps(acme: World) -> None:
    sweep = {"by": "grid", "space": {"rank": [4, 8], "dropout": [0.0, 0.1]}}
    made = acme.api.post("comparisons", body(acme, sweep=sweep, arms=[{"plugin": "peft_lora"}], seeds=[1])).json()
    assert made["differs"] == "sweep"
    assert [arm["name"] for arm in made["arms"]] == [
        "Rank 4, dropout 0",
        "Rank 4, dropout 0.1",
        "Rank 8, dropout 0",
        "Rank 8, dropout 0.1",
    ]


def test_a_script_draws_what_can_be_trained(acme: World, slot: Slot) -> None:
    Slot.objects.filter(pk=slot.pk).update(facts=slot.facts | {"packages": {"bitsandbytes": "0.48.0"}})
    space = {"variant": ["dora", "lora"], "quantization": ["8bit", "none"]}
    sweep = {"by": "random", "space": space, "most": 4}
    assert acme.api.post("comparisons", body(acme, sweep=sweep, arms=[{"plugin": "peft_lora"}], seeds=[1])).status_code == 201
    drawn = {(arm.config["variant"], arm.config["quantization"]) for arm in Comparison.objects.get().arms.all()}
    assert drawn == {("dora", "none"), ("lora", "8bit"), ("lora", "none")}


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"arms": [{"plugin": "peft_lora"}]}, "arms", "at least two"),
        ({"arms": [{"plugin": "peft_lora", "config": {"rnak": 8}}] * 2}, "arms.0.rnak", "Did you mean rank?"),
        ({"arms": [{"plugin": "nothing"}] * 2}, "arms.0.plugin", ""),
        ({"arms": [{"plugin": "peft_lora", "config": {"epochs": 1.0}}, {"plugin": "peft_lora"}], "budget": {}}, "arms", "the same epochs"),
        ({"seeds": [1, 1]}, "seeds", "different"),
        ({"seeds": [-1]}, "seeds", "whole numbers"),
        ({"differs": "colour"}, "differs", "One of method"),
        ({"metrics": [{"kind": "regex", "pattern": "("}]}, "metric_regex_pattern", ""),
        ({"metrics": [{"kind": "judge", "model": "base:00000000-0000-0000-0000-000000000000"}]}, "metric_judge_model", "Choose"),
        ({"budget": {"epoch": 1}}, "budget.epoch", ""),
        ({"sweep": {"by": "tpe", "space": {"seed": [1, 2]}}, "arms": [{"plugin": "peft_lora"}]}, "sweep.seed", "alike"),
        (
            {"sweep": {"by": "tpe", "space": {"learn_from": ["answers", "last_answer"]}}, "arms": [{"plugin": "peft_lora"}]},
            "sweep.learn_from",
            "It changes what the validation loss means",
        ),
        (
            {"sweep": {"by": "grid", "space": {"preference": ["dpo", "simpo"], "rank": [4]}}, "arms": [{"plugin": "peft_lora"}]},
            "sweep.preference",
            "It changes what the validation loss means",
        ),
        ({"sweep": {"by": "grid", "space": {"rank": {"low": 1, "high": 8}}}, "arms": [{"plugin": "peft_lora"}]}, "sweep.rank", "List its"),
        ({"sweep": {"by": "tpe", "space": {"rank": [0]}}, "arms": [{"plugin": "peft_lora"}]}, "sweep.rank", "from 1 to 512"),
    ],
)
def test_what_a_script_got_wrong_is_named(acme: World, changes: dict[str, Any], field: str, said: str) -> None:
    answer = acme.api.post("comparisons", body(acme, **changes))
    assert answer.status_code == 422, answer.content
    fields = answer.json()["error"]["fields"]
    found = next((text for name, text in fields.items() if name.endswith(field)), None)
    assert found is not None and said in found, fields
    assert not Comparison.objects.exists()


def test_a_file_of_a_comparison_starts_the_same_one_again(acme: World, tmp_path: Path) -> None:
    acme.api.post("comparisons", body(acme, metrics=[{"kind": "accuracy", "labels": ["yes", "no: maybe"]}]))
    first = Comparison.objects.select_related("project__client").get()
    text = recipe_of(first)
    assert acme.api.get(f"comparisons/{first.pk}/comparison.yaml").content.decode() == text
    file = tmp_path / "comparison.yaml"
    file.write_text(text)
    said = StringIO()
    call_command("compare", str(file), stdout=said)
    assert "is queued with 4 runs, as ana@example.com." in said.getvalue()
    second = Comparison.objects.exclude(pk=first.pk).get()
    same = ("name", "differs", "seeds", "metrics", "shared_settings", "stops_hopeless")
    assert {name: getattr(second, name) for name in same} == {name: getattr(first, name) for name in same}
    arms = [[(arm.name, arm.plugin, arm.config, arm.is_reference) for arm in each.arms.all()] for each in (first, second)]
    assert arms[0] == arms[1]


def test_the_shipped_recipe_is_lora_against_full_over_three_seeds(acme: World) -> None:
    acme.base.name = "SmolLM2-135M-Instruct"
    acme.base.save()
    acme.version.dataset.name = "identity"
    acme.version.dataset.save()
    Project.objects.filter(pk=acme.project.pk).update(name="First project")
    call_command("compare", str(SHIPPED), stdout=StringIO())
    made = Comparison.objects.get()
    assert [arm.plugin for arm in made.arms.all()] == ["peft_lora", "full_finetune"]
    assert ArmRun.objects.filter(arm__comparison=made).count() == 6 and made.seeds == [1, 2, 3]


def test_a_command_follows_to_the_verdict(acme: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acme.api.post("comparisons", body(acme, seeds=[1]))
    file = tmp_path / "comparison.yaml"
    file.write_text(recipe_of(Comparison.objects.select_related("project__client").get()))
    looks, found = [], Verdict(differs="rank", sentence="LoRA keeps all of it.")

    def meanwhile(_: float) -> None:
        """What workers and rounds do while the command sleeps."""
        looks.append(1)
        made = Comparison.objects.order_by("-created_at").first()
        assert made is not None
        Order.objects.filter(run__arm_run__arm__comparison=made).update(
            status="succeeded", ended_at=timezone.now(), latest={"validation_loss": 1.23456}
        )
        rounds.advance_one(made.pk)
        if len(looks) > 1:
            Comparison.objects.filter(pk=made.pk).update(state="done", verdict=found.model_dump(mode="json"))

    monkeypatch.setattr("time.sleep", meanwhile)
    monkeypatch.setattr("studio.comparisons.management.commands.compare.close_old_connections", lambda: None)  # it is the test's own
    said = StringIO()
    call_command("compare", str(file), "--follow", stdout=said)
    lines = said.getvalue()
    assert "LoRA, rank 8, seed 1: done, validation loss 1.235" in lines
    assert "Measuring: queued" in lines
    assert lines.rstrip().endswith("LoRA keeps all of it.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a list", "not a comparison's"),
        ("name: x", "client"),
        ("seed: 3", "There is no"),
        ("name: &a x", "anchor"),
    ],
)
def test_a_file_that_is_no_comparison_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        read_recipe(text.encode())
    told = refused.value.message + str(refused.value.fields)
    assert said in told
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(CommandError):
        call_command("compare", str(file), stdout=StringIO())
