"""The form of a new run: defaults that follow the case and say why, presets as cards, settings that go along to another way to train."""

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.test import Client as Browser
from django.urls import reverse
from playwright.sync_api import Page, expect

from studio.runs.models import Run
from studio.runs.services import create_run
from studio.workspaces.services import create_project
from tests.fixtures import World, make_version
from tests.visits import Visit
from tests.web.conftest import Do

TOKENS: dict[str, Any] = {"total": 9000, "supervised": 4000, "p50": 80, "p95": 300, "p99": 431, "longest": 500}
SENTENCE = "448, since 99 of 100 rows have at most 431 tokens."


@pytest.fixture
def ana(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


@pytest.fixture
def measured(acme: World) -> World:
    """The rows have been read with the base model's tokenizer."""
    measure(acme)
    return acme


def measure(world: World, **tokens: int) -> None:
    world.version.tokens = {str(world.base.pk): TOKENS | tokens}
    world.version.save(update_fields=["tokens"])


def opened(browser: Browser, world: World, **query: Any) -> Any:
    return browser.get(reverse("runs:new"), {"project": world.project.pk} | query)


def values(page: Any) -> dict[str, str]:
    return {drawn.field.name: drawn.value for drawn in (*page.context["basic"], *page.context["advanced"])}


def changed(page: Any) -> dict[str, str]:
    return {drawn.field.name: drawn.value for drawn in page.context["changed"]}


@dataclass(frozen=True)
class Answer:
    """The part of the page that follows what is typed."""

    status: int
    text: str

    @property
    def changed(self) -> dict[str, str]:
        """What is not default."""
        return dict(re.findall(r'data-changed="(\w+)">[^<]*</dt><dd>([^<]*?) <', self.text))

    def sent(self, name: str) -> dict[str, str]:
        """What the page's script is told: `filled` or `reasons`."""
        (found,) = re.findall(rf'data-{name}="([^"]*)"', self.text)
        told: dict[str, str] = json.loads(html.unescape(found))
        return told


def estimate(browser: Browser, world: World, **sent: str) -> Answer:
    answer = browser.post(reverse("runs:estimate"), {"project": world.project.pk, "plugin": "peft_lora"} | sent)
    return Answer(answer.status_code, answer.content.decode())


def asked(browser: Browser, world: World, page: Any, **edits: str) -> Answer:
    """The estimate for the form as `page` filled it in, with some fields edited or chosen."""
    form = {f"set_{name}": value for name, value in values(page).items()}
    return estimate(browser, world, **{"filled": page.context["filled"]} | form | edits)


def make_run(world: World, plugin: str, **config: Any) -> Run:
    return create_run(
        world.owner, project=world.project, name="Replies", plugin_name=plugin, config=config, base=world.base, version=world.version
    )


def test_the_form_starts_with_what_suits_the_case_and_says_why(slot: Any, measured: World, ana: Browser) -> None:
    page = opened(ana, measured)
    assert (values(page)["max_length"], values(page)["epochs"]) == ("448", "10")  # ten rows are read ten times
    assert changed(page) == {}
    assert f"Default here: <span data-reason>{SENTENCE}</span>" in page.content.decode()


def test_without_a_worker_the_defaults_are_there_as_well(measured: World, ana: Browser) -> None:
    page = opened(ana, measured)
    assert values(page)["max_length"] == "448"
    assert [card.estimate for card in page.context["cards"]] == [None] * 3


def test_what_is_started_is_what_stood_in_the_form(slot: Any, measured: World, ana: Browser) -> None:
    sent = {"project": measured.project.pk, "plugin": "peft_lora", "set_epochs": "2", "filled": '{"epochs": "2"}'}
    assert ana.post(reverse("runs:new"), sent).status_code == 302
    run = Run.objects.order_by("-created_at")[0]
    assert (run.config["epochs"], run.config["max_length"]) == (2.0, 448)


def test_untouched_fields_follow_another_dataset_and_edited_ones_stay(slot: Any, measured: World, ana: Browser) -> None:
    page = opened(ana, measured, dataset_version=measured.version.pk)
    other = make_version(measured.owner, measured.project, name="Longer", count=60)
    other.tokens = {str(measured.base.pk): TOKENS | {"p99": 500, "longest": 511}}
    other.save(update_fields=["tokens"])
    answer = asked(ana, measured, page, dataset_version=str(other.pk), set_epochs="7")
    assert answer.changed == {"epochs": "7"}
    assert answer.sent("filled")["max_length"] == "512"
    assert answer.sent("reasons")["max_length"] == "512, since the longest row has 511 tokens."


def test_presets_show_what_they_change_and_what_they_take(slot: Any, measured: World, ana: Browser) -> None:
    quick, balanced, thorough = opened(ana, measured).context["cards"]
    assert [(drawn.field.name, drawn.value, drawn.default) for drawn in quick.changes] == [("max_steps", "15", "0")]  # half of the 30
    assert balanced.changes == [] and balanced.is_chosen and not quick.is_chosen
    assert {drawn.field.name for drawn in thorough.changes} >= {"epochs", "rank", "keep"}
    assert quick.estimate.steps < balanced.estimate.steps < thorough.estimate.steps
    assert thorough.estimate.trainable_parameters > balanced.estimate.trainable_parameters


def test_ways_to_train_stand_side_by_side_with_what_they_take_here(slot: Any, measured: World, ana: Browser) -> None:
    slot.facts |= {"packages": dict.fromkeys(("torch", "transformers", "peft", "safetensors"), "1")}
    slot.save(update_fields=["facts"])
    ways = {way.loaded.name: way for way in opened(ana, measured).context["form"].ways}
    assert [*ways][:3] == ["peft_lora", "unsloth_lora", "full_finetune"] and [*ways][-1] == "rehearsal"
    assert ways["full_finetune"].estimate.memory.high > ways["peft_lora"].estimate.memory.high
    assert (ways["unsloth_lora"].hindrance, ways["unsloth_lora"].estimate) == ("Not on this worker", None)
    measured.version.facts |= {"shape": "preference"}
    measured.version.save(update_fields=["facts"])
    ways = {way.loaded.name: way for way in opened(ana, measured).context["form"].ways}
    assert (ways["rehearsal"].hindrance, ways["peft_lora"].hindrance) == ("Not for these rows", "")


def test_the_way_to_train_is_kept_while_the_project_is_found(measured: World, ana: Browser) -> None:
    page = ana.get(reverse("runs:new"), {"plugin": "full_finetune"}, follow=True)
    assert page.context["form"].plugin_name == "full_finetune"
    create_project(measured.owner, client=measured.client, name="Second")
    choice = ana.get(reverse("runs:new"), {"plugin": "full_finetune"}).content.decode()
    assert f"?plugin=full_finetune&amp;project={measured.project.pk}" in choice


def test_a_chosen_preset_fills_what_nobody_has_edited(slot: Any, measured: World, ana: Browser) -> None:
    page = opened(ana, measured)
    answer = asked(ana, measured, page, preset="Thorough", set_rank="4")
    assert answer.changed["rank"] == "4" and answer.changed["keep"] == "best"
    assert answer.sent("filled")["rank"] == "32"
    assert 'id="preset_3_words" hx-swap-oob="true"' in answer.text and 'id="way_3_figures" hx-swap-oob="true"' in answer.text
    assert asked(ana, measured, page, preset="No such preset").changed == {}


@pytest.mark.parametrize("filled", ["", "[", "[]", "7", '{"epochs": 3}', "[" * 100_000, '{"nothing": "3"}'])
def test_a_page_that_sends_back_something_odd_is_answered(slot: Any, measured: World, ana: Browser, filled: str) -> None:
    answer = estimate(ana, measured, set_epochs="3", filled=filled)
    assert (answer.status, answer.changed["epochs"]) == (200, "3")


def test_a_run_copied_to_full_fine_tuning_learns_at_a_tenth_of_the_rate_and_says_so(slot: Any, measured: World, ana: Browser) -> None:
    run = make_run(measured, "peft_lora", learning_rate=3e-4, rank=8, epochs=2.0, max_length=128)
    page = ana.get(reverse("runs:new"), {"from": run.pk, "plugin": "full_finetune"})
    assert {name: values(page)[name] for name in ("learning_rate", "epochs", "max_length")} == {
        "learning_rate": "0.00003",
        "epochs": "2",
        "max_length": "128",
    }
    text = page.content.decode()
    assert "The learning rate 0.0003 became 0.00003: all weights need about a tenth of what an adapter needs." in text
    assert re.search(r"Full fine-tuning has no Rank\b[^<]*: left out", text, re.IGNORECASE)
    assert page.context["form"].version == measured.version


def test_and_back_again_at_ten_times_the_rate(slot: Any, measured: World, ana: Browser) -> None:
    run = make_run(measured, "full_finetune", learning_rate=3e-5)
    page = ana.get(reverse("runs:new"), {"from": run.pk, "plugin": "peft_lora"})
    assert values(page)["learning_rate"] == "0.0003"
    assert "became 0.0003: an adapter needs about ten times" in page.content.decode()


def test_from_one_adapter_to_another_the_rate_stays(slot: Any, measured: World, ana: Browser) -> None:
    run = make_run(measured, "peft_lora", learning_rate=3e-4, rank=8, variant="dora")
    page = ana.get(reverse("runs:new"), {"from": run.pk, "plugin": "unsloth_lora"})
    assert (values(page)["learning_rate"], values(page)["rank"], values(page)["variant"]) == ("0.0003", "8", "lora")
    (notice,) = page.context["form"].notices
    assert notice == "Variant cannot be dora with LoRA (Unsloth), so it is lora now."


def test_what_was_typed_goes_along_to_another_way_to_train(slot: Any, measured: World, ana: Browser) -> None:
    page = opened(ana, measured, plugin="full_finetune", was="peft_lora", set_learning_rate="0.0005", set_rank="8", set_seed="x")
    assert changed(page) == {"learning_rate": "0.00005", "seed": "x"}
    assert len(page.context["form"].notices) == 2


def test_what_the_address_says_of_a_copy_stands_as_it_is(slot: Any, measured: World, ana: Browser) -> None:
    run = make_run(measured, "peft_lora", learning_rate=3e-4)
    page = ana.get(reverse("runs:new"), {"from": run.pk, "set_learning_rate": "0.0001", "was": "no such plugin"})
    assert values(page)["learning_rate"] == "0.0001"


@pytest.mark.browser
def test_somebody_chooses_a_preset_and_another_way_to_train(browse: Callable[[str, Do], None], world: World) -> None:
    measure(world)
    browse(f"/runs/new/?project={world.project.pk}", choose)


def choose(page: Page) -> None:
    visit = Visit(page, name="new-run")
    expect(page.get_by_role("radio", name="Balanced")).to_be_checked()
    expect(page.get_by_label("Max length", exact=True)).to_have_value("448")
    page.get_by_role("button", name="About Max length").focus()
    expect(page.get_by_text(SENTENCE)).to_be_visible()
    visit.look("defaults", everywhere=True)

    page.get_by_role("radio", name="Balanced").focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio", name="Thorough")).to_be_checked()
    expect(page.get_by_label("Rank", exact=True)).to_have_value("32")
    page.get_by_label("Learning rate", exact=True).fill("0.0004")
    page.get_by_role("radio", name="Quick try").check()
    expect(page.get_by_label("Rank", exact=True)).to_have_value("16")
    expect(page.get_by_label("Learning rate", exact=True)).to_have_value("0.0004")
    expect(page.locator("#estimate dt", has_text="Steps").locator("+ dd")).to_have_text("15")
    visit.look("quick-try")

    page.get_by_role("radio", name="Full fine-tuning").check()
    expect(page.get_by_text("The learning rate 0.0004 became 0.00004")).to_be_visible()
    expect(page.get_by_label("Learning rate", exact=True)).to_have_value("0.00004")
    visit.look("carried-over")
    assert visit.mistakes == []
