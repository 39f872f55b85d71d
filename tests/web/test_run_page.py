"""A run's page: what it says while it goes on, what came of it, and what to try next."""

import html
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import Client as Browser
from django.utils import timezone
from playwright.sync_api import Locator, Page, expect

from studio.orders.models import Event, Order
from studio.runs.models import Run
from studio.runs.services import create_run
from studio.settings import price
from tests.fixtures import World, make_artifact, make_member
from tests.visits import Visit
from tests.web.conftest import Do


@pytest.fixture
def ana(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


@pytest.fixture
def run(acme: World, slot: Any) -> Run:
    """Of 100 steps in three epochs, as the database has it once it has ended."""
    made = create_run(
        acme.owner, project=acme.project, name="Replies", plugin_name="peft_lora", config={}, base=acme.base, version=acme.version
    )
    ended(made, status=Order.Status.SUCCEEDED)
    return made


def ended(run: Run, *, status: str, error: str = "", result: dict[str, Any] | None = None) -> None:
    now = timezone.now()
    Order.objects.filter(pk=run.order_id).update(status=status, error=error, result=result, started_at=now, ended_at=now)


def told(run: Run, *, losses: dict[int, float], looks: dict[int, float] | None = None, attempt: int = 1, **extra: float) -> None:
    """Figures as a worker reports them: training losses and validation losses by step."""
    seq = Order.objects.get(pk=run.order_id).last_seq
    reported = [
        (
            step,
            {
                "loss": loss,
                "epoch": step / 100 * 3,
                "tokens": 50 * step,
                "memory": 900_000_000,
                "learning_rate": 2e-4,
                "grad_norm": 1.0,
                **extra,
            },
        )
        for step, loss in losses.items()
    ]
    reported += [(step, {"validation_loss": loss}) for step, loss in (looks or {}).items()]
    reported.sort(key=lambda each: each[0])
    now = timezone.now()
    events = [
        Event(order=run.order, seq=seq + number, attempt=attempt, at=now, type="metric", body={"step": step, "total": 100, **numbers})
        for number, (step, numbers) in enumerate(reported, 1)
    ]
    Event.objects.bulk_create(events)
    Order.objects.filter(pk=run.order_id).update(last_seq=seq + len(events), attempt=attempt, latest=events[-1].body)


def falling(start: float = 2.4, end: float = 1.2, *, steps: int = 100) -> dict[int, float]:
    """Losses that fall fast, then rest."""
    return {step: end + (start - end) * 0.9**step for step in range(1, steps + 1)}


def page(browser: Browser, run: Run) -> str:
    """The words of the page, without its scripts and marks."""
    text = browser.get(f"/runs/{run.pk}/").content.decode()
    words = re.sub(r"<script.*?</script>|<[^>]+>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(words).split())


def offers(browser: Browser, run: Run) -> dict[str, dict[str, str]]:
    """Words of each button that opens a filled form, and the settings that it changes."""
    text = browser.get(f"/runs/{run.pk}/").content.decode()
    links = re.findall(r'<a class="button[^"]*" href="(/runs/new/\?[^"]+set_[^"]+)">(?:<svg.*?</svg>)?([^<]+)</a>', text)
    return {
        words.strip(): {name: value[0] for name, value in parse_qs(urlsplit(link.replace("&amp;", "&")).query).items() if name != "from"}
        for link, words in links
    }


def test_an_ended_run_tells_what_came_of_it(run, ana):
    told(run, losses=falling(), looks={0: 2.5, 30: 1.5, 60: 1.31, 90: 1.3, 100: 1.3})
    said = page(ana, run)
    assert "It learnt from 10 rows of Replies" in said and "in 100 steps, which read them 3.0 times (5,000 tokens)" in said
    assert "The training loss fell from 2." in said and "to 1.20" in said
    assert (
        "On rows that it never saw, the loss went from 2.50 to 1.30, close to the training loss. It did not learn its rows by heart" in said
    )
    assert re.search(r"It took 900 MB of memory at the peak; [\d.]+ [MG]B to [\d.]+ [MG]B were expected", said)
    assert "Nothing stands out" in said
    assert offers(ana, run) == {}


def test_a_run_that_learns_by_heart_is_told_to_train_for_less(run, ana):
    told(run, losses=falling(end=0.6), looks={0: 2.5, 30: 1.6, 50: 1.5, 80: 1.6, 100: 1.8})
    said = page(ana, run)
    assert "it was lowest at step 50, with 1.50. It has begun to learn its rows by heart." in said
    assert offers(ana, run) == {
        "Try epochs 1.5": {"set_epochs": "1.5"},
        "Try keep best and early stopping 3": {"set_keep": "best", "set_early_stopping": "3"},
    }


def test_rows_that_were_not_all_read_are_not_called_known_by_heart(run, ana):
    told(run, losses=falling(), looks={0: 2.5, 30: 1.6, 50: 1.5, 80: 1.6, 100: 1.8}, epoch=0.4)
    said = page(ana, run)
    assert "it was lowest at step 50, with 1.50. Its steps seem to be too large" in said
    assert "has begun to learn its rows by heart" not in said
    assert offers(ana, run) == {"Try learning rate 0.00004": {"set_learning_rate": "0.00004"}}


def test_a_run_that_made_the_model_worse_leads_with_that_and_offers_the_usual_rate(run, ana):
    Run.objects.filter(pk=run.pk).update(config=run.config | {"learning_rate": 0.1})
    told(run, losses=falling(), looks={0: 2.3, 50: 40.0, 100: 70.0})
    make_artifact(run.order, run.project, {"adapter_model.safetensors": b"weights"}, name="Replies", base_model=run.base_model)
    assert "Your adapter is ready, but worse than before training" in page(ana, run)
    assert offers(ana, run)["Try learning rate 0.0002"] == {"set_learning_rate": "0.0002"}


def test_a_validation_loss_that_stayed_is_told_as_such(run, ana):
    told(run, losses=falling(), looks={0: 1.621, 50: 1.62, 100: 1.62}, epoch=0.4)
    said = page(ana, run)
    assert "On rows that it never saw, the loss stayed at 1.62" in said and "by heart" not in said


def test_a_run_that_was_still_falling_is_told_to_train_for_longer(run, ana):
    told(run, losses=falling(), looks={0: 2.5, 25: 2.0, 50: 1.7, 75: 1.5, 100: 1.35})
    assert "The validation loss was still falling at the end" in page(ana, run)
    assert offers(ana, run)["Try epochs 6"] == {"set_epochs": "6"}


def test_a_run_that_learnt_hardly_anything_is_told_to_learn_faster(run, ana):
    told(run, losses=falling(2.4, 2.35), looks={0: 2.4, 30: 2.36, 60: 2.35, 100: 2.35})
    assert "The training loss hardly moved" in page(ana, run)
    assert offers(ana, run) == {"Try learning rate 0.0006": {"set_learning_rate": "0.0006"}}


def test_a_run_that_came_to_rest_too_high_is_told_to_use_a_higher_rank(run, ana):
    told(run, losses=falling(2.4, 1.95), looks={0: 2.4, 30: 1.96, 60: 1.95, 100: 1.95})
    assert offers(ana, run) == {"Try rank 32 and alpha 64": {"set_rank": "32", "set_alpha": "64"}}


def test_a_run_that_its_step_limit_ended_is_told_to_read_all_the_rows(run, ana):
    Run.objects.filter(pk=run.pk).update(config=run.config | {"max_steps": 30})
    told(run, losses=falling(steps=30), looks={0: 2.5, 30: 1.3})
    assert "The step limit of 30 ended it after 90 % of the rows." in page(ana, run)
    assert offers(ana, run)["Try no step limit"] == {"set_max_steps": "0"}


def test_what_a_later_attempt_did_again_counts_once(run, ana):
    told(run, losses=dict.fromkeys(range(1, 81), 9.0), looks={0: 2.5, 80: 9.0})
    told(run, losses=dict.fromkeys(range(2, 101), 1.2), looks={100: 1.25}, attempt=2)
    assert "from 2.50 to 1.25" in page(ana, run)


def test_the_form_opens_with_what_was_advised(run, ana):
    told(run, losses=falling(), looks={0: 2.5, 25: 2.0, 50: 1.7, 75: 1.5, 100: 1.35})
    opened = ana.get("/runs/new/", {"from": run.pk, **offers(ana, run)["Try epochs 6"]})
    assert opened.context["form"].typed["epochs"] == "6"


def test_a_run_that_diverged_offers_the_rate_that_its_worker_proposed(run, ana):
    facts = {"code": "diverged", "step": 12, "proposal": {"learning_rate": 4e-05}}
    ended(run, status=Order.Status.FAILED, error="The loss was no longer a number at step 12.", result=facts)
    said = page(ana, run)
    assert "The loss was no longer a number at step 12. Likely cause: The steps were too large for these rows" in said
    assert offers(ana, run) == {"Try again with learning rate 0.00004": {"set_learning_rate": "0.00004"}}


@pytest.mark.parametrize(
    "facts",
    [
        {"code": "diverged", "proposal": {"learning_rate": 7}},
        {"code": "diverged", "proposal": {"<script>": 1}},
        {"code": "diverged", "proposal": ["learning_rate"]},
        {"code": ["diverged"], "proposal": {"learning_rate": 4e-05}},
        {"code": "<b>", "proposal": None},
    ],
)
def test_a_proposal_that_the_form_would_refuse_is_not_offered(run, ana, facts):
    ended(run, status=Order.Status.FAILED, error="It broke.", result=facts)
    assert "It broke." in page(ana, run)
    assert offers(ana, run) == {}


def test_out_of_memory_offers_settings_that_need_less_by_the_estimate(run, ana):
    Run.objects.filter(pk=run.pk).update(estimate=run.estimate | {"available": run.estimate["memory"]["high"]})
    ended(run, status=Order.Status.FAILED, error="Memory ran out.", result={"code": "out_of_memory", "step": 3})
    offered = offers(ana, run)
    assert len(offered) == 1
    changed = {name.removeprefix("set_"): value for name, value in next(iter(offered.values())).items()}
    assert changed["batch_size"] in "421" and changed["gradient_accumulation"] in "248"


def test_where_others_took_the_memory_no_setting_is_blamed(run, ana):
    Run.objects.filter(pk=run.pk).update(estimate=run.estimate | {"available": 10 * run.estimate["memory"]["high"]})
    ended(run, status=Order.Status.FAILED, error="Memory ran out.", result={"code": "out_of_memory", "step": 3})
    assert "Something else took the worker's memory" in page(ana, run)
    assert offers(ana, run) == {}


def test_a_price_and_a_meter_tell_cost_and_energy(run, ana, settings):
    told(run, losses=falling(), energy=250.0)
    assert "It cost" not in page(ana, run)
    settings.PRICE_PER_HOUR, settings.PRICE_CURRENCY = 2.4, "EUR"
    Order.objects.filter(pk=run.order_id).update(worked=1800)
    said = page(ana, run)
    assert "It cost about 1.20 EUR, at 2.40 EUR an hour." in said
    assert "The device used 0.250 kWh." in said


def test_who_may_not_see_usage_reads_no_cost_on_the_page_of_a_run(acme, run, settings):
    told(run, losses=falling(), energy=250.0)
    settings.PRICE_PER_HOUR, settings.PRICE_CURRENCY = 2.4, "EUR"
    Order.objects.filter(pk=run.order_id).update(worked=1800)
    for role, sees in (("member", True), ("viewer", False)):
        reader = Browser()
        reader.force_login(make_member(acme.workspace, role=role, email=f"{role}@example.com").user)
        said = page(reader, run)
        assert "The device used 0.250 kWh." in said
        assert ("EUR" in said) is ("It cost" in said) is sees, role


def test_a_price_is_an_amount_with_its_currency():
    assert [price(text) for text in ("", "2.40 EUR", "3")] == [(None, ""), (2.4, "EUR"), (3.0, "")]
    for text in ("free", "-1 EUR", "nan", "EUR 2.40"):
        with pytest.raises(ImproperlyConfigured, match=r"such as 2\.40 EUR"):
            price(text)


def test_who_only_looks_reads_the_advice_and_cannot_click_it(acme, run):
    told(run, losses=falling(), looks={0: 2.5, 25: 2.0, 50: 1.7, 75: 1.5, 100: 1.35})
    viewer = Browser()
    viewer.force_login(make_member(acme.workspace, role="viewer", email="vic@example.com").user)
    assert "Train for longer" in page(viewer, run)
    assert offers(viewer, run) == {}


def test_a_long_run_sends_a_page_that_is_thinned_out_and_tells_every_step_when_asked(run, ana, monkeypatch):
    monkeypatch.setattr("studio.runs.pages_of_a_run.POINTS", 10)
    monkeypatch.setattr("studio.runs.pages_of_a_run.LOOKS", 4)
    told(run, losses=falling(), looks=dict.fromkeys(range(0, 101, 5), 2.0))
    sent = ana.get(f"/runs/{run.pk}/")
    assert sent.context["thinned"]
    steps = [event["step"] for event in sent.context["events"] if "loss" in event]
    looks = [event["step"] for event in sent.context["events"] if "validation_loss" in event]
    assert len(steps) < 15 and {steps[0], steps[-1]} == {1, 100}
    assert len(looks) < 8 and {looks[0], looks[-1]} == {0, 100}
    events = ana.get(f"/runs/{run.pk}/steps/?first=41&last=60").json()["events"]
    assert [event["step"] for event in events if "loss" in event] == list(range(41, 61))


@pytest.mark.parametrize("query", ["", "first=-1&last=x", "first=1&last=999999999999", "first=5&last=1"])
def test_steps_that_cannot_be_are_none(run, ana, query):
    told(run, losses=falling(steps=3))
    answer = ana.get(f"/runs/{run.pk}/steps/?{query}")
    assert answer.status_code == 200
    assert all(event["step"] == 0 for event in answer.json()["events"])


def report(run: Run, kind: str, **body: Any) -> None:
    order = Order.objects.get(pk=run.order_id)
    Event.objects.create(order=order, seq=order.last_seq + 1, attempt=order.attempt, at=timezone.now(), type=kind, body=body)
    Order.objects.filter(pk=order.pk).update(last_seq=order.last_seq + 1)


def test_of_the_rows_that_were_shown_only_the_newest_are_sent(run, ana):
    for step in (0, 10, 20):
        for name in ("best", "worst"):
            report(run, "rows", step=step, name=name, rows=[])
    sent = [event for event in ana.get(f"/runs/{run.pk}/").context["events"] if event["type"] == "rows"]
    assert [(event["name"], event["step"]) for event in sent] == [("best", 20), ("worst", 20)]


HOSTILE = '<img src=x onerror="document.title=1"><script>document.title = 2</script>'


@pytest.mark.browser
def test_somebody_reads_the_page_of_an_ended_run(browse: Callable[[str, Do], None], world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("studio.runs.pages_of_a_run.POINTS", 30)
    run = create_run(
        world.owner, project=world.project, name="Replies", plugin_name="rehearsal", config={}, base=world.base, version=world.version
    )
    told(run, losses=falling(steps=40), looks={0: 2.5, 40: 1.6}, utilisation=80.0)
    report(run, "end", status="paused")
    told(run, losses={step: loss for step, loss in falling().items() if step > 40}, looks={60: 1.5, 100: 1.45}, attempt=2)
    report(run, "checkpoint", step=100, folder="checkpoints/step-100")
    for step in (0, 60, 100):
        report(run, "sample", step=step, prompt=HOSTILE, answer=f"At {step}: {HOSTILE}")
    chat = [["<|im_start|>user\n2 + 2?<|im_end|>\n", False], [f"4 {HOSTILE}<|im_end|>", True]]
    report(run, "rows", step=0, name="first_batch", rows=[{"pieces": chat, "loss": None}])
    report(run, "rows", step=100, name="worst", rows=[{"pieces": chat, "loss": 4.25}, {"pieces": [["odd"], 7, None], "loss": "x"}])
    report(run, "end", status="succeeded", error="")
    ended(run, status=Order.Status.SUCCEEDED)
    browse(f"/runs/{run.pk}/", read)


def read(page: Page) -> None:
    visit = Visit(page, name="run-page")
    expect(page.locator("[data-charts] figure:visible")).to_have_count(5)  # four, and how busy the device is
    read_the_marks(page.get_by_role("slider", name="Loss by step"))
    page.get_by_role("button", name="Smoothed").click()
    expect(page.get_by_role("button", name="Smoothed")).to_have_attribute("aria-pressed", "false")
    compare_answers(page)
    read_rows(page)
    go_through_the_steps(page)
    visit.look("run", everywhere=True)
    assert page.title().startswith("Replies")  # nothing of what strangers wrote was run
    assert visit.mistakes == []


def read_the_marks(chart: Locator) -> None:
    """By the keyboard alone: the newest mark first, then the ones before it."""
    chart.focus()
    for said in ("validation loss 1.50", "paused, resumed", "validation loss 2.50"):
        chart.press("PageDown")
        expect(chart).to_have_attribute("aria-valuetext", re.compile(said))
    chart.press("ArrowRight")
    expect(chart).to_have_attribute("aria-valuetext", re.compile("^Step 1, training 2"))


def compare_answers(page: Page) -> None:
    answers = page.get_by_role("region", name="Answers")
    expect(answers.get_by_role("heading", level=3)).to_have_text(["Before training", "Step 100"])
    answers.get_by_role("slider").press("ArrowLeft")
    expect(answers.get_by_role("heading", level=3)).to_have_text(["Before training", "Step 60"])
    expect(answers.locator(".answer").last).to_have_text(f"At 60: {HOSTILE}")


def read_rows(page: Page) -> None:
    rows = page.get_by_role("region", name="What it reads")
    first = rows.get_by_role("tabpanel", name="First batch")
    expect(first.locator(".tok-special").first).to_have_text("<|im_start|>")
    expect(first.locator("mark")).to_contain_text(f"4 {HOSTILE}")
    expect(first.locator(".tok-masked")).to_contain_text("2 + 2?")
    rows.get_by_role("tab", name="Answered worst").click()
    expect(rows.get_by_role("tabpanel", name="Answered worst")).to_contain_text("Loss 4.25")


def go_through_the_steps(page: Page) -> None:
    table = page.get_by_role("region", name="Figures by step")
    steps = table.locator("tbody th")
    expect(steps.first).to_have_text("100")
    assert steps.all_inner_texts() == [str(step) for step in range(100, 75, -1)]  # also those that the page was not sent
    expect(table.locator("tbody tr").first).to_contain_text("checkpoint saved")
    page.get_by_role("button", name="Earlier").click()
    expect(steps.first).to_have_text("75")
    table.get_by_role("button", name="Step").press("Enter")
    expect(steps.first).to_have_text("0")
    expect(table.get_by_role("columnheader", name="Step")).to_have_attribute("aria-sort", "ascending")
    page.get_by_label("Go to step").fill("40")
    page.get_by_label("Go to step").press("Enter")
    expect(table.locator("tbody tr").first).to_contain_text("paused, resumed")
