"""Handing a release over in the browser, the page that its link opens, and what the client's own people see."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from studio.releases.models import Approval, Delivery, Evaluation, Release
from tests.fixtures import World, make_build, make_delivery, make_member, make_order, make_release
from tests.visits import Visit
from tests.web.conftest import Do, cookie

pytestmark = pytest.mark.browser
SYSTEM = "You are the support desk of Acme. Answer in two sentences, and never promise a date."
SAMPLES = [
    {
        "prompt": "Where is my parcel?",
        "answer": "It left our warehouse this morning. You get a link to follow it as soon as the carrier has it.",
        "before": "Your parcel is on its way.",
        "expected": "It left our warehouse today.",
    },
    {"prompt": "Can I return the blue one?", "answer": "Yes, within 30 days.", "before": "Yes.", "expected": "Yes, within 30 days."},
]


def released(world: World, *, stage: str, version: tuple[int, int, int] = (1, 2, 0), shared: bool = False) -> Release:
    made = make_release(world.owner, world.artifact, version=version, stage=stage, shared=shared)
    made.asked_with = {"system": SYSTEM, "temperature": 0.3}
    made.notes = "Shorter answers, and no more promises of a date.\nKnows the new returns policy."
    made.save()
    return made


def test_a_release_is_handed_over_and_fetched_by_its_link(browse: Callable[[str, Do], None], world: World, tmp_path: Path) -> None:
    release = released(world, stage="approved")
    make_build(world.owner, world.artifact, quantization="f16", content=b"GGUF" * 200_000, mean_kl=0.0)
    make_build(world.owner, world.artifact, quantization="q4_k_m", content=b"GGUF" * 60_000, mean_kl=0.012, perplexity=8.12)

    def go(page: Page) -> None:
        seen = Visit(page, name="delivery")
        seen.look("release", everywhere=True)
        page.get_by_role("link", name="Deliver", exact=True).click()
        expect(page.get_by_role("heading", name="Deliver v1.2.0")).to_be_visible()
        seen.look("new", everywhere=True)
        page.get_by_label("For whom").fill("The support team")
        page.get_by_label("It can be fetched").select_option("2")
        page.get_by_role("button", name="Deliver").click()
        expect(page.get_by_role("heading", name="Delivered")).to_be_visible()
        seen.look("made", everywhere=True)
        link = page.locator(".code code").inner_text()
        page.goto(link)
        expect(page.get_by_role("heading", name=release.name)).to_be_visible()
        seen.look("link", everywhere=True)
        for runner in ("llama.cpp", "LM Studio"):
            page.get_by_role("tab", name=runner).click()
            expect(page.get_by_role("tabpanel", name=runner)).to_be_visible()
        seen.look("link-lm-studio")
        with page.expect_download() as fetched:
            page.get_by_role("link", name="Download").click()
        fetched.value.save_as(tmp_path / "bundle.zip")
        page.goto(link.replace("/d/", "/d/x"))
        expect(page.get_by_role("heading", name="There is nothing here")).to_be_visible()
        seen.mistakes = [mistake for mistake in seen.mistakes if "404" not in mistake]  # this very page
        seen.look("gone", everywhere=True)
        page.goto(page.url.split("/d/")[0] + f"/deliveries/?release={release.pk}")
        seen.look("list", everywhere=True)
        page.get_by_role("link", name="The support team").click()
        expect(page.get_by_role("cell", name="ana@example.com")).to_be_visible()  # who was signed in
        seen.look("detail", everywhere=True)
        page.get_by_role("button", name="Revoke").first.click()
        seen.look("revoke", whole=False)
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("Revoked. The link answers nobody from now on.")).to_be_visible()
        page.goto(link)
        expect(page.get_by_role("heading", name="There is nothing here")).to_be_visible()
        seen.mistakes = [mistake for mistake in seen.mistakes if "404" not in mistake]
        assert not seen.mistakes, "\n".join(seen.mistakes)

    browse(f"/releases/{release.pk}/", go)
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        stem = release.name
        sums = dict(reversed(line.split("  ")) for line in archive.read(f"{stem}/SHA256SUMS").decode().splitlines())
        assert all(hashlib.sha256(archive.read(f"{stem}/{name}")).hexdigest() == digest for name, digest in sums.items())
    made = Delivery.objects.get()
    assert (made.downloads, made.log.count(), made.recipient) == (1, 1, "The support team")


def test_a_guest_tries_a_release_says_what_they_think_and_takes_one_home(browse: Callable[[str, Do], None], world: World) -> None:
    old = released(world, stage="approved", version=(1, 1, 0), shared=True)
    make_delivery(world.owner, old, world.build, recipient="The support team", limit=5)
    waiting = released(world, stage="candidate", shared=True)
    order = make_order(world.owner, kind="evaluation", client=world.client)
    result = {"rows": 118, "tokens": 8214, "loss": 1.412, "before": 1.447, "samples": SAMPLES}
    Evaluation.objects.create(release=waiting, against=old, dataset_version=world.version, order=order, result=result)
    gus = make_member(world.workspace, role="guest", email="gus@example.com", clients=[world.client])
    name, value = cookie(gus).split("=")

    def go(page: Page) -> None:
        seen = Visit(page, name="guest")
        address = page.url.rstrip("/")
        page.context.clear_cookies()
        page.context.add_cookies([{"name": name, "value": value, "url": address}])
        page.goto(address)
        expect(page.get_by_role("heading", name="Waits for your sign-off")).to_be_visible()
        seen.look("home", everywhere=True)
        page.get_by_role("link", name="Look at it").click()
        expect(page.get_by_role("heading", name="What it answers")).to_be_visible()
        seen.look("release", everywhere=True)
        page.get_by_role("button", name="Ask for changes").click()
        expect(page.get_by_text("Say in a sentence what is to change.")).to_be_visible()
        seen.mistakes = [mistake for mistake in seen.mistakes if "422" not in mistake]  # this very answer
        seen.look("refused")
        page.get_by_label("What do you think of it?").fill("Reads well to us.")
        page.get_by_role("button", name="Approve").click()
        expect(page.get_by_text("You approved it.")).to_be_visible()
        seen.look("approved", everywhere=True)
        page.get_by_role("link", name="Home").first.click()
        with page.expect_download() as fetched:
            page.get_by_role("link", name="Download").click()
        assert fetched.value.suggested_filename == f"{old.name}.zip"
        assert not seen.mistakes, "\n".join(seen.mistakes)

    browse("/", go)
    assert Approval.objects.get().comment == "Reads well to us."
    assert Delivery.objects.get().log.get().user == gus.user
