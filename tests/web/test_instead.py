"""A plugin that the worker is not fit for says so on its page and in the form, and offers the one that it names."""

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client as Browser
from django.urls import reverse
from playwright.sync_api import Page, expect

from studio.orders.models import Slot
from tests.fixtures import HOST_FACTS, World, make_slot, make_world
from tests.visits import Visit
from tests.web.conftest import Do, Server, cookie

PACKAGES = dict.fromkeys(("torch", "transformers", "peft", "safetensors", "unsloth", "bitsandbytes"), "1")
GPU = {"name": "NVIDIA L4", "memory": 24 << 30}


@pytest.fixture
def ana(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


def has(slot: Slot, **facts: Any) -> None:
    slot.facts = HOST_FACTS | facts
    slot.save(update_fields=["facts"])


def test_the_page_of_unsloth_says_that_the_worker_has_no_gpu_and_leads_to_plain_peft(slot: Slot, ana: Browser) -> None:
    has(slot, packages=PACKAGES)
    page = ana.get(reverse("plugins:detail", args=["unsloth_lora"])).content.decode()
    assert "Unsloth needs an NVIDIA GPU, and the worker has none." in page
    assert "New run with it" not in page
    assert f'href="{reverse("runs:new")}?plugin=peft_lora"' in page


def test_with_a_gpu_a_run_can_be_started_with_it(slot: Slot, ana: Browser) -> None:
    has(slot, packages=PACKAGES, gpus=[GPU])
    page = ana.get(reverse("plugins:detail", args=["unsloth_lora"])).content.decode()
    assert "New run with it" in page
    assert "cannot be used here" not in page


def test_with_a_gpu_and_without_the_package_its_page_names_what_is_missing(slot: Slot, ana: Browser) -> None:
    has(slot, packages={name: "1" for name in PACKAGES if name != "unsloth"}, gpus=[GPU])
    assert "The worker does not have unsloth." in ana.get(reverse("plugins:detail", args=["unsloth_lora"])).content.decode()


def test_the_api_names_the_plugin_to_use_instead(slot: Slot, acme: World) -> None:
    has(slot, packages=PACKAGES)
    found = {plugin["name"]: plugin for plugin in acme.api.get("plugins").json()["items"]}
    assert (found["unsloth_lora"]["available"], found["unsloth_lora"]["instead"]) == (False, "peft_lora")
    assert (found["peft_lora"]["available"], found["peft_lora"]["instead"]) == (True, "")


@pytest.mark.browser
def test_the_form_leads_to_plain_peft_and_keeps_what_was_typed(server: Server, in_chromium: Callable[[Do], None]) -> None:
    world = make_world("ana@example.com", "Acme")
    has(make_slot(), packages=PACKAGES)
    name, value = cookie(world.owner).split("=")

    def visit(page: Page) -> None:
        page.context.add_cookies([{"name": name, "value": value, "url": server.address}])
        switch(page, f"{server.address}/runs/new/?project={world.project.pk}&plugin=unsloth_lora")

    in_chromium(visit)


def switch(page: Page, address: str) -> None:
    visit = Visit(page, name="instead")
    page.goto(address)
    expect(page.locator("#start")).to_be_disabled()
    page.get_by_label("Rank", exact=True).fill("7")
    visit.look("no-gpu", everywhere=True)
    page.get_by_role("link", name="Use LoRA (PEFT)").click()
    expect(page.get_by_role("radio", name="LoRA (PEFT)")).to_be_checked()
    expect(page.get_by_label("Rank", exact=True)).to_have_value("7")
    assert visit.mistakes == []
