"""A client's logo: what is kept of a picture, who may set it, and files that are none."""

import base64
import io
import json
import zlib

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image

from studio.audit.models import AuditRecord
from studio.workspaces.logos import HIGHEST, LARGEST_KEPT, set_logo
from studio.workspaces.models import Logo
from studio.workspaces.services import archive_client, create_client
from tests.clients.test_exporting import unzipped
from tests.fixtures import make_member

pytestmark = pytest.mark.django_db


def png(width: int = 40, height: int = 20, kind: str = "PNG", mode: str = "RGB") -> bytes:
    drawn = io.BytesIO()
    Image.effect_noise((width, height), 80).convert(mode).save(drawn, kind)
    return drawn.getvalue()


def sent(content: bytes, name: str = "logo.png") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, content)


def kept(logo: Logo) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(logo.image)))


def address(acme) -> str:
    return f"/clients/{acme.client.pk}/logo/"


def test_a_logo_is_shown_on_the_clients_page(acme, client):
    client.force_login(acme.owner.user)
    assert client.post(address(acme), {"file": sent(png())}).status_code == 302
    page = client.get(f"/clients/{acme.client.pk}/").content.decode()
    assert f'src="{acme.client.logo.address}"' in page
    assert acme.client.logo.address.startswith("data:image/png;base64,")
    assert AuditRecord.objects.get(verb="client.logo").change["logo"][1].startswith("40 × 20 pixels")


def test_a_large_picture_is_kept_small(acme):
    logo = set_logo(acme.owner, acme.client, sent(png(1600, 1200, "JPEG"), "logo.jpg"))
    picture = kept(logo)
    assert picture.format == "PNG"
    assert (logo.width, logo.height) == picture.size
    assert picture.height <= HIGHEST
    assert len(base64.b64decode(logo.image)) <= LARGEST_KEPT


def test_nothing_of_the_file_but_its_picture_is_kept(acme):
    drawn = io.BytesIO()
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text("Author", "somebody")
    Image.new("RGB", (9, 9)).save(drawn, "PNG", pnginfo=note)
    content = base64.b64decode(set_logo(acme.owner, acme.client, sent(drawn.getvalue() + b"<script>")).image)
    assert b"somebody" not in content
    assert b"<script>" not in content


def test_another_logo_takes_the_place_of_the_first_and_can_be_removed(acme, client):
    client.force_login(acme.owner.user)
    set_logo(acme.owner, acme.client, sent(png()))
    client.post(address(acme), {"file": sent(png(30, 10, mode="L"))})
    assert Logo.objects.get().width == 30
    assert client.post(address(acme), {"remove": "1"}).status_code == 302
    assert not Logo.objects.exists()
    before = AuditRecord.objects.count()
    client.post(address(acme), {"remove": "1"})
    assert AuditRecord.objects.count() == before  # there was nothing to change


def bomb() -> bytes:
    """A PNG whose head says that it is 60,000 pixels wide and high."""
    head = (60_000).to_bytes(4) * 2 + b"\x08\x02\x00\x00\x00"
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + len(head).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) + b"\x00\x00\x00\x00IEND\xaeB`\x82"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Choose a PNG or JPEG file."),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no PNG or JPEG"),
        (png(kind="GIF", mode="L"), "no PNG or JPEG"),
        (png()[:120], "no PNG or JPEG"),
        (bomb(), "pixels"),
        (b"\x89PNG" + b"x" * (5 << 20), "5 MB"),
    ],
    ids=["empty", "svg", "gif", "cut", "bomb", "large"],
)
def test_what_is_no_picture_is_refused_beside_its_field(acme, client, content, words):
    client.force_login(acme.owner.user)
    answer = client.post(address(acme), {"file": sent(content)})
    assert answer.status_code == 422
    page = answer.content.decode()
    assert words in page
    assert not Logo.objects.exists()


def test_a_viewer_cannot_set_a_logo(acme, client):
    viewer = make_member(acme.owner.workspace, role="viewer", email="vi@example.com")
    client.force_login(viewer.user)
    assert client.post(address(acme), {"file": sent(png())}).status_code == 404
    assert "Save the logo" not in client.get(f"/clients/{acme.client.pk}/").content.decode()


def test_a_logo_through_the_api(acme):
    path = f"clients/{acme.client.pk}/logo"
    assert acme.api.get(path).status_code == 404
    made = acme.api.upload(path, png(1600, 1200, "JPEG"), name="logo.jpg")
    assert made.status_code == 201, made.content
    assert made.json() == {"client": str(acme.client.pk), "width": acme.client.logo.width, "height": acme.client.logo.height}
    found = acme.api.get(path)
    assert (found["Content-Type"], found.content) == ("image/png", base64.b64decode(acme.client.logo.image))
    for content, words in ((b"", "Choose a PNG or JPEG file."), (b"<svg/>", "no PNG or JPEG"), (bomb(), "pixels")):
        refused = acme.api.upload(path, content, name="logo.png")
        assert refused.status_code == 422
        assert words in refused.json()["error"]["fields"]["file"]
    assert acme.api.post(path).status_code == 422  # nothing was sent
    assert acme.api.delete(path).status_code == 204
    assert acme.api.get(path).status_code == 404
    assert AuditRecord.objects.filter(verb="client.logo").count() == 2


def test_an_archived_client_keeps_its_logo_as_it_is(acme, client):
    other = create_client(acme.owner, name="Globex")
    set_logo(acme.owner, other, sent(png()))
    archive_client(acme.owner, other)
    client.force_login(acme.owner.user)
    for form in ({"file": sent(png(9, 9))}, {"remove": "1"}):
        assert client.post(f"/clients/{other.pk}/logo/", form).status_code == 404
    path = f"clients/{other.pk}/logo"
    assert (acme.api.upload(path, png(9, 9), name="logo.png").status_code, acme.api.delete(path).status_code) == (404, 404)
    assert acme.api.get(path).status_code == 200  # everything can be read
    assert Logo.objects.get().width == 40


def test_a_logo_goes_with_its_client_into_its_export(acme, client):
    client.force_login(acme.owner.user)
    set_logo(acme.owner, acme.client, sent(png()))
    lines = unzipped(client.post(f"/clients/{acme.client.pk}/export/"))["records/logos.jsonl"].decode().splitlines()
    assert base64.b64decode(json.loads(lines[0])["image"]).startswith(b"\x89PNG")
