"""Somebody brings an adapter that was trained elsewhere; it becomes an artifact like one of our own, or is refused with its reason."""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client as Browser

from studio.artifacts.models import AdapterUpload, Artifact
from studio.audit.models import AuditRecord
from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion, Upload
from studio.orders.models import Order
from studio.orders.quotas import stored_in_all
from studio.workspaces.models import Client
from tests.fixtures import World, make_member, make_upload, work_off

HIDDEN, RANK = 64, 4
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"], "auto_mapping": {"parent_library": "canary"}}
LAYER = "model.layers.0.self_attn.q_proj"


def safetensors(tensors: dict[str, Any]) -> bytes:
    told, data = {}, b""
    for name, tensor in tensors.items():
        raw = np.asarray(tensor, np.float32).tobytes()
        told[name] = {"dtype": "F32", "shape": list(np.shape(tensor)), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(told).encode()
    return struct.pack("<Q", len(head)) + head + data


def adapter(*, hidden: int = HIDDEN) -> bytes:
    a, b = np.ones((RANK, hidden)), np.full((hidden, RANK), 0.5)
    return safetensors({f"base_model.model.{LAYER}.lora_A.weight": a, f"base_model.model.{LAYER}.lora_B.weight": b})


def packed(weights: bytes | None = None, config: Any = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("mine/adapter_model.safetensors", weights or adapter())
        archive.writestr("mine/adapter_config.json", json.dumps(config or CONFIG))
    return out.getvalue()


@pytest.fixture
def base(acme: World) -> Any:
    """The base model's own weights, as far as the adapter changes them."""
    acme.base.folder.mkdir(parents=True)
    table = np.zeros((500, HIDDEN))
    weights = {"model.embed_tokens.weight": table, f"{LAYER}.weight": np.zeros((HIDDEN, HIDDEN))}
    (acme.base.folder / "model.safetensors").write_bytes(safetensors(weights))
    return acme.base


@pytest.fixture
def ana(acme: World) -> Browser:
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def arrived(acme: World, content: bytes, filename: str = "helpful.zip") -> Upload:
    return make_upload(acme.owner, acme.project, content=content, filename=filename, purpose="adapter")


def test_an_adapters_folder_becomes_an_artifact(acme, ana, base, django_capture_on_commit_callbacks):
    upload = arrived(acme, packed())
    assert ana.get(f"/datasets/uploads/{upload.pk}/")["Location"] == f"/adapters/files/{upload.pk}/"
    assert "helpful.zip" in ana.get(f"/adapters/new/?project={acme.project.pk}").content.decode()
    answer = ana.post(f"/adapters/files/{upload.pk}/", {"base_model": base.pk, "name": "Helpful"})
    asked = AdapterUpload.objects.get()
    assert answer["Location"] == f"/adapters/{asked.pk}/"
    assert "Looking through the adapter" in ana.get(answer["Location"]).content.decode()
    with django_capture_on_commit_callbacks(execute=True):
        assert work_off(asked.order).status == Order.Status.SUCCEEDED
    made = Artifact.objects.get(order=asked.order)
    assert ana.get(f"/adapters/{asked.pk}/")["Location"] == f"/artifacts/{made.pk}/"
    assert (made.kind, made.name, made.base_model, made.project) == ("adapter", "Helpful", base, acme.project)
    assert set(made.files) == {"adapter_model.safetensors", "adapter_config.json"}
    assert json.loads((made.folder / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 8.0,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": [LAYER],
        "inference_mode": True,
    }
    page = ana.get(f"/artifacts/{made.pk}/").content.decode()
    assert "Uploaded" in page and "helpful.zip" in page
    assert not Upload.objects.exists() and not upload.path.exists()
    record = AuditRecord.objects.get(verb="artifact.upload")
    assert record.client == acme.client and record.change["base_model"] == [None, base.name]


def test_weights_come_with_their_config_apart(acme, ana, base):
    upload = arrived(acme, adapter(), "adapter_model.safetensors")
    page = ana.get(f"/adapters/files/{upload.pk}/").content.decode()
    assert "It lies beside the weights." in page
    config = SimpleUploadedFile("adapter_config.json", json.dumps(CONFIG).encode())
    ana.post(f"/adapters/files/{upload.pk}/", {"base_model": base.pk, "name": "Apart", "config": config})
    assert work_off(AdapterUpload.objects.get().order).status == Order.Status.SUCCEEDED


def test_what_does_not_fit_is_refused_with_its_reason_and_another_base_can_be_tried(acme, ana, base):
    upload = arrived(acme, packed(adapter(hidden=96)))
    ana.post(f"/adapters/files/{upload.pk}/", {"base_model": base.pk, "name": "Other"})
    asked = AdapterUpload.objects.get()
    assert work_off(asked.order).status == Order.Status.FAILED
    page = ana.get(f"/adapters/{asked.pk}/").content.decode()
    assert "does not fit the base model. Choose the base that it was trained on." in page
    assert f"/adapters/files/{upload.pk}/" in page
    assert not Artifact.objects.filter(order=asked.order).exists()
    assert "It could not be put on Tiny." in ana.get(f"/adapters/files/{upload.pk}/").content.decode()
    ana.post(f"/adapters/files/{upload.pk}/", {"base_model": base.pk, "name": "Again"})
    assert AdapterUpload.objects.filter(upload=upload).count() == 2


def test_a_file_is_looked_through_once_at_a_time(acme, ana, base):
    upload = arrived(acme, packed())
    form = {"base_model": base.pk, "name": "Helpful"}
    assert ana.post(f"/adapters/files/{upload.pk}/", form).status_code == 302
    answer = ana.post(f"/adapters/files/{upload.pk}/", form)
    assert answer.status_code == 422 and "being looked through already" in answer.content.decode()


def test_a_look_can_be_cancelled_and_begun_again(acme, ana, base):
    upload = arrived(acme, packed())
    ana.post(f"/adapters/files/{upload.pk}/", {"base_model": base.pk, "name": "Helpful"})
    asked = AdapterUpload.objects.get()
    ana.post(f"/adapters/{asked.pk}/stop/")
    page = ana.get(f"/adapters/{asked.pk}/").content.decode()
    assert "This was cancelled." in page and "Start again" in page


@pytest.mark.parametrize(
    ("config", "sentence"),
    [(b"\xff\xfe{", "it is not UTF-8 text"), (b"{\x00}", "it holds a NUL character"), (b" " * ((1 << 20) + 1), "at most 1 MB")],
)
def test_a_config_that_cannot_be_one_is_refused_at_once(acme, ana, base, config, sentence):
    upload = arrived(acme, adapter(), "adapter_model.safetensors")
    sent = SimpleUploadedFile("adapter_config.json", config)
    answer = ana.post(f"/adapters/files/{upload.pk}/", {"base_model": base.pk, "name": "Bad", "config": sent})
    assert answer.status_code in (413, 422) and (sentence in answer.content.decode() or answer.status_code == 413)
    assert not AdapterUpload.objects.exists()


def test_an_adapter_is_no_dataset_and_a_dataset_no_adapter(acme, ana):
    brought, rows = arrived(acme, packed()), acme.upload
    assert ana.post(f"/datasets/uploads/{brought.pk}/preview/").status_code == 404
    assert ana.get(f"/adapters/files/{rows.pk}/").status_code == 404
    assert brought.filename not in ana.get(f"/datasets/new/?project={acme.project.pk}").content.decode()
    answer = acme.api.post(f"datasets/{acme.version.dataset_id}/versions", {"upload": str(brought.pk)})
    assert answer.status_code == 400 and "uploaded as an adapter" in answer.json()["error"]["message"]
    assert DatasetVersion.objects.count() == 1


def test_the_api_takes_a_folder_in_one_call(acme, base):
    fields = {"project": acme.project.pk, "base_model": base.pk}
    answer = acme.api.upload("artifacts", packed(), name="by-script.zip", **fields)
    assert answer.status_code == 202, answer.content
    asked = AdapterUpload.objects.get(pk=answer.json()["id"])
    assert (asked.name, answer.json()["status"]) == ("by-script", "queued")
    work_off(asked.order)
    told = acme.api.get(f"adapter-uploads/{asked.pk}").json()
    assert told["status"] == "succeeded"
    assert acme.api.get(f"artifacts/{told['artifact']}").json()["lineage"]["uploaded"]["filename"] == "by-script.zip"


def test_the_api_takes_weights_with_their_config_as_text(acme, base):
    fields = {"project": acme.project.pk, "base_model": base.pk, "config": json.dumps(CONFIG)}
    answer = acme.api.upload("artifacts", adapter(), name="adapter_model.safetensors", **fields)
    assert work_off(AdapterUpload.objects.get(pk=answer.json()["id"]).order).status == Order.Status.SUCCEEDED


def test_the_api_takes_a_file_that_came_in_pieces(acme, base):
    begun = acme.api.post("uploads", {"project": str(acme.project.pk), "filename": "a.zip", "length": len(packed()), "purpose": "adapter"})
    pk = begun.json()["id"]
    headers = acme.api.headers | {"Upload-Offset": "0", "Tus-Resumable": "1.0.0"}
    Browser().generic("PATCH", f"/api/v1/uploads/{pk}", packed(), content_type="application/offset+octet-stream", headers=headers)
    body = {"project": str(acme.project.pk), "base_model": str(base.pk), "upload": pk}
    assert acme.api.post("artifacts", body).status_code == 202
    neither = acme.api.post("artifacts", {"project": str(acme.project.pk), "base_model": str(base.pk)})
    assert neither.status_code == 422 and "one of the two" in neither.json()["error"]["fields"]["file"]


def limited(acme: World, *, left: int) -> None:
    """The client may store so many bytes more than it does."""
    used = stored_in_all([acme.client.pk])[acme.client.pk]
    Client.objects.filter(pk=acme.client.pk).update(storage_limit=max(1, used + left))


def test_what_is_refused_in_one_call_leaves_no_file(acme, base, data_folder: Path):
    before = set(data_folder.glob("uploads/*"))
    fields = {"project": acme.project.pk, "base_model": base.pk}
    odd = acme.api.upload("artifacts", adapter(), name="adapter_model.safetensors", config="\x00{}", **fields)
    assert (odd.status_code, set(odd.json()["error"]["fields"])) == (422, {"config"})
    content = packed()
    limited(acme, left=len(content))
    full = acme.api.upload("artifacts", content, name="full.zip", **fields)
    assert (full.status_code, full.json()["error"]["code"]) == (409, "quota")
    BaseModel.objects.filter(pk=base.pk).update(facts=None)
    assert acme.api.upload("artifacts", content, name="not-ready.zip", **fields).status_code in (409, 422)
    assert set(data_folder.glob("uploads/*")) == before and not Upload.objects.exists()
    assert not AdapterUpload.objects.exists()


def test_a_client_that_is_full_brings_no_adapter_and_keeps_the_file_that_came(acme, ana, base):
    upload = arrived(acme, packed())
    limited(acme, left=0)
    answer = ana.post(f"/adapters/files/{upload.pk}/", {"base_model": base.pk, "name": "Helpful"})
    assert "Delete what is not needed, or ask an owner or admin of Acme to raise the limit." in answer.content.decode()
    assert upload.path.is_file() and not AdapterUpload.objects.exists()


@pytest.mark.parametrize(("left", "status"), [(20_000, Order.Status.FAILED), (200_000, Order.Status.SUCCEEDED)])
def test_what_a_zip_unpacks_to_has_to_fit_beside_what_the_client_stores(acme, ana, base, left, status):
    a, b = np.ones((RANK, HIDDEN)), np.full((HIDDEN, RANK), 0.5)
    names = [f"base_model.model.{LAYER}.lora_{part}.weight" for part in "AB"]
    padded = safetensors({names[0]: a, names[1]: b, "base_model.model.model.embed_tokens.weight": np.zeros((500, HIDDEN))})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adapter_model.safetensors", padded)
        archive.writestr("adapter_config.json", json.dumps(CONFIG))
    upload = arrived(acme, out.getvalue())
    limited(acme, left=left)
    ana.post(f"/adapters/files/{upload.pk}/", {"base_model": base.pk, "name": "Packed"})
    asked = AdapterUpload.objects.get()
    assert work_off(asked.order).status == status, asked.order.error
    if status == Order.Status.FAILED:
        room = (left + upload.length) / 1e6
        assert (
            f"and its client may store {room:,.1f} MB more. Delete what is not needed" in ana.get(f"/adapters/{asked.pk}/").content.decode()
        )
        assert upload.path.is_file()


def test_a_viewer_brings_nothing(acme, base):
    viewer = Browser()
    viewer.force_login(make_member(acme.workspace, role="viewer", email="vi@example.com").user)
    upload = arrived(acme, packed())
    assert viewer.get("/adapters/new/").status_code == 404
    assert viewer.post(f"/adapters/files/{upload.pk}/", {"base_model": base.pk}).status_code == 404
    assert "Upload an adapter" not in viewer.get("/artifacts/").content.decode()


def test_nothing_outside_the_folder_is_touched(acme, base, data_folder: Path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../../evil.txt", "x")
        archive.writestr("a/adapter_model.safetensors", adapter())
        archive.writestr("a/adapter_config.json", json.dumps(CONFIG))
    fields = {"project": acme.project.pk, "base_model": base.pk}
    asked = acme.api.upload("artifacts", out.getvalue(), name="adapter.zip", **fields)
    work_off(AdapterUpload.objects.get(pk=asked.json()["id"]).order)
    assert not list(data_folder.parent.rglob("evil.txt"))
