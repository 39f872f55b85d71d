"""From an adapter to an approved release in the browser. What a worker measures is given here, and measured in tests/ml."""

from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from studio.artifacts.models import Artifact
from studio.releases.models import Approval, Evaluation, Gate, Release
from studio.releases.releasing import create_release
from tests.fixtures import World, make_artifact, make_deployment, make_member, make_order, make_release
from tests.visits import Visit
from tests.web.conftest import SLOW, Do

pytestmark = pytest.mark.browser
SYSTEM = "You are the support desk of Acme. Answer in two sentences, and never promise a date."
SAMPLES = [
    {
        "prompt": "Where is my parcel?",
        "answer": "It left our warehouse this morning. You get a link to follow it as soon as the carrier has it.",
        "before": "Your parcel is on its way.",
        "expected": "It left our warehouse today. The carrier sends you a link.",
    },
    {
        "prompt": "Can I return the blue one?",
        "answer": "Yes, within 30 days. Use the label that lies in the box.",
        "before": "",
        "expected": "Yes, within 30 days, with the label from the box.",
    },
]
RESULT: dict[str, Any] = {
    "rows": 118, "of": 124, "tokens": 8214, "unit": "token", "loss": 1.412, "before": 1.447, "change": -2.42, "low": -3.9, "high": -0.8,
    "learnt": 6, "unknown": [], "cut": 0, "samples": SAMPLES,
}  # fmt: skip


def second_adapter(world: World, name: str = "Longer, rank 32") -> Artifact:
    order = make_order(world.owner, kind="train", client=world.client)
    files = {"adapter_model.safetensors": name.encode() * 9, "adapter_config.json": b'{"r": 32}'}
    lineage = {"config": {"rank": 32, "epochs": 2}, "plugin": "peft_lora"}
    return make_artifact(order, world.project, files, name=name, base_model=world.base, dataset_version=world.version, lineage=lineage)


def in_production(world: World) -> Release:
    """The first release, approved and deployed."""
    first = create_release(world.owner, project=world.project, artifact=world.artifact, task="support")
    Release.objects.filter(pk=first.pk).update(stage="approved", approved_at=timezone.now())
    make_deployment(world.project, first)
    return first


def evaluated(world: World, release: Release, against: Release | None, **figures: Any) -> Evaluation:
    order = make_order(world.owner, kind="evaluation", client=world.client)
    return Evaluation.objects.create(release=release, against=against, dataset_version=world.version, order=order, result=RESULT | figures)


def test_an_adapter_becomes_an_approved_release(browse: Callable[[str, Do], None], world: World) -> None:
    first = in_production(world)
    adapter = second_adapter(world)
    Gate.objects.create(project=world.project, evaluated=True, approvals=1, roles=["owner", "admin"])

    def go(page: Page) -> None:
        seen = Visit(page, name="release")
        page.get_by_role("link", name="Release", exact=True).click()
        expect(page.get_by_role("heading", name="New release")).to_be_visible()
        page.get_by_label("Task").fill("support")
        expect(page.locator(".release-name")).to_have_text("in-house-support-tiny-v1.1.0")
        expect(
            page.get_by_text("Minor, since it was trained anew: adapter Longer, rank 32 instead of Try, on the same base.")
        ).to_be_visible()
        page.get_by_label("System prompt").fill(SYSTEM)
        page.get_by_label("Temperature").fill("0.3")
        page.get_by_role("radio", name="Major").check()
        expect(page.locator(".release-name")).to_have_text("in-house-support-tiny-v2.0.0")
        page.get_by_role("radio", name="Minor").check()
        expect(page.locator(".release-name")).to_have_text("in-house-support-tiny-v1.1.0")
        seen.look("new", everywhere=True)
        page.get_by_role("button", name="Create the release").click()
        expect(page.get_by_role("heading", name="in-house-support-tiny-v1.1.0")).to_be_visible(timeout=SLOW)
        seen.look("draft", everywhere=True)
        page.get_by_role("button", name="Make it a candidate").click()
        expect(page.get_by_role("button", name="Move to approved")).to_be_visible(timeout=SLOW)
        page.get_by_role("button", name="Evaluate").click()
        expect(page.get_by_text("Waiting for a free worker")).to_be_visible(timeout=SLOW)
        seen.look("evaluating", everywhere=True)
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("The evaluation was cancelled.")).to_be_visible(timeout=SLOW)
        page.get_by_role("button", name="Move to approved").click()
        expect(page.get_by_role("alert")).to_contain_text("Something above is still missing.", timeout=SLOW)
        expect(page.locator("#checks")).to_contain_text("It has not been evaluated yet.")
        seen.look("not-met", everywhere=True)
        assert [mistake for mistake in seen.mistakes if "422" not in mistake] == []

    browse(f"/artifacts/{adapter.pk}/", go)
    release = Release.objects.get(name="in-house-support-tiny-v1.1.0")
    assert release.asked_with == {"system": SYSTEM, "temperature": 0.3}
    evaluated(world, release, first)
    admin = make_member(world.workspace, role="admin", email="max@example.com")
    Approval.objects.create(release=release, user=admin.user, email="max@example.com", role="admin", approves=True, samples=SAMPLES)

    def approve(page: Page) -> None:
        seen = Visit(page, name="release-approved")
        expect(page.get_by_text("−2.4 %", exact=True)).to_be_visible()
        expect(page.get_by_role("img", name="Its loss is −2.4 %")).to_be_visible()
        seen.look("met", everywhere=True)
        page.get_by_label("Why").fill("Everybody agrees.")
        page.get_by_role("button", name="Move to approved").click()
        expect(page.locator(".page-head .status")).to_have_text("Approved", timeout=SLOW)
        seen.look("approved", everywhere=True)
        page.get_by_role("link", name="Releases", exact=True).click()
        expect(page.get_by_role("row")).to_have_count(3)
        seen.look("list", everywhere=True)
        assert seen.mistakes == []

    browse(f"/releases/{release.pk}/", approve)
    assert Release.objects.get(pk=release.pk).stage == "approved"


def test_a_gate_is_set(browse: Callable[[str, Do], None], world: World) -> None:
    def set_it(page: Page) -> None:
        seen = Visit(page, name="gate")
        page.get_by_label("It must not be worse").check()
        page.get_by_label("How many must approve").fill("two")
        page.get_by_label("Owner").check()
        page.get_by_role("button", name="Save").click()
        expect(page.locator(".field-error")).to_have_text("Must be a whole number.", timeout=SLOW)
        expect(page.get_by_label("Owner")).to_be_checked()
        seen.look("refused", everywhere=True)
        page.get_by_label("How many must approve").fill("2")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Saved what a release must meet.")).to_be_visible(timeout=SLOW)
        assert [mistake for mistake in seen.mistakes if "422" not in mistake] == []

    browse(f"/projects/{world.project.pk}/gate/", set_it)
    gate = Gate.objects.get(project=world.project)
    assert (gate.evaluated, gate.approvals, gate.roles) == (True, 2, ["owner"])


def test_a_release_that_nobody_can_tell_and_somebody_refuses(browse: Callable[[str, Do], None], world: World) -> None:
    first = in_production(world)
    release = make_release(world.owner, second_adapter(world), version=(1, 1, 0), stage="candidate", shared=True)
    Release.objects.filter(pk=release.pk).update(task="support", previous=first)
    Gate.objects.create(project=world.project, evaluated=True, approvals=2, guest_sign_off=True)
    evaluated(world, release, first, change=1.3, low=-0.6, high=3.4, unknown=["in-house-support-tiny-v1.0.0"], unit="character")
    gone = make_member(world.workspace, role="admin", email="max@example.com")
    Approval.objects.create(release=release, user=gone.user, email="max@example.com", role="admin", approves=True)
    gone.delete()
    guest = make_member(world.workspace, role="guest", email="gus@client.example", clients=[world.client])
    said = "It promises a date again.\nSee the second answer."
    Approval.objects.create(release=release, user=guest.user, email="gus@client.example", role="guest", approves=False, comment=said)

    def read(page: Page) -> None:
        seen = Visit(page, name="release-unsure")
        expect(page.get_by_text("nobody can tell").first).to_be_visible()
        expect(page.get_by_text("No longer in the workspace. Their approval stands.")).to_be_visible()
        seen.look("unsure", everywhere=True)
        page.get_by_role("button", name="Approve", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("You made this release", timeout=SLOW)
        assert [mistake for mistake in seen.mistakes if "422" not in mistake] == []

    browse(f"/releases/{release.pk}/", read)
