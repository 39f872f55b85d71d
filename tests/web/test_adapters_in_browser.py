"""An adapter's folder is dropped in a browser, put on its base, refused with the reason or taken; on a desk and on a phone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from studio.artifacts.models import AdapterUpload, Artifact
from tests.artifacts.test_bringing_adapters import HIDDEN, LAYER, adapter, packed, safetensors
from tests.fixtures import World, work_off
from tests.visits import Visit
from tests.web.conftest import SLOW, Do

pytestmark = pytest.mark.browser


@pytest.fixture
def weights(world: World) -> None:
    """The base model's own, as far as the adapter changes them."""
    world.base.folder.mkdir(parents=True)
    tensors = {"model.embed_tokens.weight": [[0.0] * HIDDEN] * 500, f"{LAYER}.weight": [[0.0] * HIDDEN] * HIDDEN}
    (world.base.folder / "model.safetensors").write_bytes(safetensors(tensors))


def test_an_adapter_is_dropped_refused_with_its_reason_and_taken(
    browse: Callable[[str, Do], None], world: World, weights: None, tmp_path: Path
) -> None:
    wrong, right = tmp_path / "other-base.zip", tmp_path / "helpful.zip"
    wrong.write_bytes(packed(adapter(hidden=96)))
    right.write_bytes(packed())

    def drop(page: Page, path: Path, seen: Visit) -> None:
        page.get_by_label("Drop the adapter here").set_input_files(path)
        expect(page.get_by_role("heading", name=path.name)).to_be_visible(timeout=SLOW)
        seen.look(f"{path.stem}-arrived", everywhere=True)
        page.get_by_role("button", name="Check and take in").click()
        expect(page.get_by_text("Looking through the adapter").first).to_be_visible(timeout=SLOW)

    def bring(page: Page) -> None:
        seen = Visit(page, name="adapters")
        page.get_by_role("link", name="Upload an adapter").click()
        expect(page.get_by_role("heading", name="Upload an adapter")).to_be_visible()
        seen.look("new", everywhere=True)
        drop(page, wrong, seen)
        seen.look("working", everywhere=True)
        assert not seen.mistakes, "\n".join(seen.mistakes)

    def read_why(page: Page) -> None:
        seen = Visit(page, name="adapters-refused")
        expect(page.get_by_text("does not fit the base model")).to_be_visible()
        seen.look("refused", everywhere=True)
        page.get_by_role("link", name="Upload another file").click()
        drop(page, right, seen)
        assert not seen.mistakes, "\n".join(seen.mistakes)

    def find(page: Page) -> None:
        seen = Visit(page, name="adapters-taken")
        expect(page.get_by_text("Uploaded", exact=True)).to_be_visible()
        seen.look("taken", everywhere=True)
        assert not seen.mistakes, "\n".join(seen.mistakes)

    browse("/artifacts/", bring)
    refused = AdapterUpload.objects.get()
    work_off(refused.order)
    browse(f"/adapters/{refused.pk}/", read_why)
    taken = AdapterUpload.objects.exclude(pk=refused.pk).get()
    work_off(taken.order)
    browse(f"/adapters/{taken.pk}/", find)
    assert Artifact.objects.get(order=taken.order).name == "helpful"
