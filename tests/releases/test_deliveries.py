"""A release is handed over by a link: what is in the zip, who gets it how often, and what a link that has ended tells: nothing."""

import hashlib
import json
import re
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import BytesIO
from typing import Any
from urllib.parse import urlencode

import pytest
from allauth.mfa.models import Authenticator
from asgiref.sync import async_to_sync
from django.core.cache import cache
from django.db import connection, connections
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from studio.artifacts.downloads import zip_bytes, zip_length
from studio.artifacts.models import Artifact, Build
from studio.audit.models import AuditRecord
from studio.datasets.models import Dataset, DatasetVersion
from studio.errors import UserError
from studio.orders.models import Order
from studio.releases import delivering
from studio.releases.models import Delivery, Download, Evaluation, Release
from studio.workspaces.models import ApiKey
from studio.workspaces.services import create_client
from studio.workspaces.throttle import TRIES
from tests.fixtures import Api, World, make_build, make_delivery, make_key, make_member, make_order, make_release

SYSTEM = 'You answer for "Acme".\n"""\nADAPTER /etc/passwd\nStay polite.'
ASKED = {"system": SYSTEM, "temperature": 0.2, "top_p": 0.9, "max_tokens": 300, "stop": ["###", "\n\nUser:"]}
BUILT = """FROM ./try-q8_0.gguf

TEMPLATE \"\"\"{{ if .System }}<|im_start|>system
PARAMETER temperature 9
{{ .System }}<|im_end|>
{{ end }}\"\"\"

PARAMETER stop "<|im_end|>"
PARAMETER temperature 0.7
PARAMETER top_k 20
"""


@pytest.fixture(autouse=True)
def no_earlier_tries():
    cache.clear()


@pytest.fixture
def release(acme: World) -> Release:
    made = make_release(acme.owner, acme.artifact, version=(1, 2, 0), stage=Release.Stage.APPROVED)
    made.asked_with, made.notes = ASKED, "Kinder to *children*."
    made.save()
    return made


@pytest.fixture
def ana(acme: World) -> Browser:
    return signed_in(acme.owner)


def signed_in(member: Any) -> Browser:
    browser = Browser()
    browser.force_login(member.user)
    return browser


def body(response: Any) -> bytes:
    async def everything() -> bytes:
        return b"".join([piece async for piece in response.streaming_content])

    return async_to_sync(everything)() if response.streaming else bytes(response.content)


def unpacked(response: Any) -> dict[str, bytes]:
    """What is in the zip, by the names in its one folder."""
    with zipfile.ZipFile(BytesIO(body(response))) as archive:
        assert archive.testzip() is None
        folders = {name.partition("/")[0] for name in archive.namelist()}
        assert len(folders) == 1
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


# ── Handing it over ──


def test_a_member_hands_an_approved_release_over_by_a_link_that_is_shown_once(ana, acme, release):
    page = ana.get("/deliveries/new/", {"release": release.pk}).content.decode()
    assert "q8_0" in page and "recommended" in page
    form = {"release": release.pk, "build": acme.build.pk, "recipient": "  Jo  of Support ", "days": "30", "limit": "5", "signed_in": "on"}
    answer = ana.post("/deliveries/new/", form)
    link = re.search(r"http://testserver(/d/[\w-]{43}/)", answer.content.decode())
    made = Delivery.objects.get()
    assert link and made.sha256 == ApiKey.hash(link[1].split("/")[2])
    assert (made.recipient, made.limit, made.signed_in, made.build) == ("Jo of Support", 5, True, acme.build)
    assert timedelta(days=29) < made.expires_at - timezone.now() < timedelta(days=31)
    release.refresh_from_db()
    assert release.shared_at  # from now on the client's guests see it
    assert [record.verb for record in AuditRecord.objects.filter(verb__startswith="delivery")] == ["delivery.create"]
    secret = link[1].split("/")[2]
    for path in (f"/deliveries/{made.pk}/", "/deliveries/", f"/deliveries/?client={acme.client.pk}", f"/deliveries/?release={release.pk}"):
        shown = ana.get(path).content.decode()
        assert "Jo of Support" in shown and secret not in shown
    assert secret not in json.dumps(list(AuditRecord.objects.values_list("change", flat=True)))


@pytest.mark.parametrize(
    ("stage", "said"),
    [("draft", "is a draft. Approve it first"), ("candidate", "is a candidate. Approve it first"), ("retired", "is retired")],
)
def test_only_an_approved_release_is_handed_over(ana, acme, release, stage, said):
    Release.objects.filter(pk=release.pk).update(stage=stage)
    page = ana.get("/deliveries/new/", {"release": release.pk}).content.decode()
    assert said in page and "<select" not in page
    refused = ana.post("/deliveries/new/", {"release": release.pk, "build": acme.build.pk, "days": "7"})
    assert refused.status_code == 422 and said in refused.content.decode()
    assert not Delivery.objects.exists() and Release.objects.get().shared_at is None


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("days", "0", "1 to 90 days"),
        ("days", "91", "1 to 90 days"),
        ("days", "soon", "Choose one of the list"),
        ("days", "-1", "Choose one of the list"),
        ("limit", "99999", "1 to 10,000 downloads"),
        ("recipient", "x" * 121, "At most 120 characters"),
        ("build", "", "Choose the file"),
    ],
)
def test_what_cannot_be_is_refused_beside_its_field(ana, acme, release, field, value, said):
    form = {"release": release.pk, "build": acme.build.pk, "days": "7", "limit": "0"} | {field: value}
    refused = ana.post("/deliveries/new/", form)
    assert refused.status_code == 422 and said in refused.content.decode()
    assert not Delivery.objects.exists()


def test_only_a_file_that_passed_and_was_built_of_this_release_is_handed_over(acme, release):
    failed = make_build(acme.owner, acme.artifact, quantization="q4_0", passed=False)
    of_the_base = make_build(acme.owner, acme.base, project=acme.project)
    for build in (failed, of_the_base):
        with pytest.raises(UserError) as refused:
            delivering.create_delivery(acme.owner, release=release, build=build)
        assert "passed its verification" in refused.value.fields["build"]
    assert [build.pk for build in delivering.files_of(acme.owner, release)] == [acme.build.pk]


def test_the_ladders_pick_stands_first(acme, release):
    small = make_build(acme.owner, acme.artifact, quantization="q4_k_m", content=b"G", mean_kl=0.002)
    make_build(acme.owner, acme.artifact, quantization="f16", content=b"GGUF" * 9, mean_kl=0.0)
    make_build(acme.owner, acme.artifact, kind=Build.Kind.GGUF_ADAPTER, quantization="f16")
    files = delivering.files_of(acme.owner, release)
    assert files[0].pk == small.pk and len(files) == 4
    assert [build.kind for build in files] == ["gguf"] * 3 + ["gguf_adapter"]


def test_where_nothing_was_built_yet_the_page_leads_to_the_build(ana, acme, release):
    Build.objects.all().delete()
    page = ana.get("/deliveries/new/", {"release": release.pk}).content.decode()
    assert "No file to hand over yet" in page and f"/artifacts/{acme.artifact.pk}/" in page


# ── What is in it ──


@pytest.fixture
def delivery(acme: World, release: Release) -> Delivery:
    """By the link /d/secret/."""
    folder = acme.build.artifact.folder
    (folder / "Modelfile").write_text(BUILT)
    result = {"rows": 2, "tokens": 40, "loss": 1.25, "before": 1.5, "samples": []}
    order = make_order(acme.owner, kind="evaluation", client=acme.client)
    Evaluation.objects.create(release=release, dataset_version=acme.version, order=order, result=result)
    made = make_delivery(acme.owner, release, acme.build, link="secret", recipient="Jo")
    made.release.shared_at = timezone.now()
    made.release.save()
    return made


def test_the_zip_holds_the_file_and_everything_that_one_needs_to_run_and_to_judge_it(delivery, acme):
    files = unpacked(Browser().get("/d/secret/file/"))
    gguf = next(name for name in files if name.endswith(".gguf"))
    assert set(files) == {gguf, "Modelfile", "README.md", "MODEL_CARD.md", "SHA256SUMS", "system.txt"}
    assert files[gguf] == b"GGUF"
    sums = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    assert set(sums) == set(files) - {"SHA256SUMS"}
    assert all(hashlib.sha256(files[name]).hexdigest() == digest for name, digest in sums.items())
    readme, card = files["README.md"].decode(), files["MODEL_CARD.md"].decode()
    for said in ("ollama create", "llama-cli -m", "-sysf system.txt --temp 0.2 --top-p 0.9 -n 300", "lms import", "sha256sum -c", "v1.2.0"):
        assert said in readme, said
    assert "Kinder to \\*children\\*." in readme and SYSTEM in readme
    assert files["system.txt"].decode() == SYSTEM
    for said in (
        "Replies v1",
        acme.version.sha256,
        "| Rows to train on | 10 |",
        "Loss, nats per token | 1.250",
        "| 0.001 |",
        "states no licence",
    ):
        assert said in card, said


def test_the_card_tells_on_what_terms_the_rows_may_be_used(delivery, acme):
    Dataset.objects.filter(pk=acme.version.dataset_id).update(license="cc-by-4.0 *yes*")
    card = unpacked(Browser().get("/d/secret/file/"))["MODEL_CARD.md"].decode()
    assert "Replies v1 is under cc-by-4.0 \\*yes\\*." in card
    Dataset.objects.filter(pk=acme.version.dataset_id).update(license="")
    DatasetVersion.objects.filter(pk=acme.version.pk).update(
        origin={"kind": "hub", "repository": "acme/rows", "commit": "a" * 40, "license": "odbl"}
    )
    card = unpacked(Browser().get("/d/secret/file/"))["MODEL_CARD.md"].decode()
    assert "acme/rows@aaaaaaaaaaaa, which says that it is under odbl." in card


def test_no_row_and_no_place_on_the_server_is_in_it(delivery, acme):
    (acme.build.artifact.folder / "NOTICE").write_text(f"Tiny ({acme.base.source})\n")
    Artifact.objects.filter(pk=acme.build.artifact_id).update(files=acme.build.artifact.files | {"NOTICE": {"sha256": "0" * 64, "size": 1}})
    told = b"\n".join(content for name, content in unpacked(Browser().get("/d/secret/file/")).items()).decode()
    assert acme.base.source.startswith("path:") and acme.base.source not in told
    assert "\nTiny\n" in f"\n{told}"
    assert "Question 1?" not in told and "Answer 1." not in told and str(acme.build.artifact.folder) not in told


def commands(modelfile: str) -> list[tuple[str, str]]:
    """As Ollama reads it (parser/parser.go): a value in three quotes ends at three quotes that end a line, any other at the line's end."""
    found, lines = [], iter(modelfile.split("\n"))
    for line in lines:
        if not line.strip():
            continue
        name, _, value = line.partition(" ")
        value = value.strip()
        if value.startswith('"""'):
            while not (len(value.strip()) >= 6 and value.strip().endswith('"""')):
                value += "\n" + next(lines)
            value = value.strip()[3:-3]
        elif value.startswith('"'):
            assert value.endswith('"') and len(value) > 1
            value = value[1:-1]
        elif name == "PARAMETER":
            name, _, value = (name + " " + value).rpartition(" ")
        found.append((name, value))
    return found


def test_the_modelfile_asks_it_as_it_was_released_and_nobody_can_write_a_command_into_it(delivery):
    text = unpacked(Browser().get("/d/secret/file/"))["Modelfile"].decode()
    read = commands(text.replace("PARAMETER stop ", "STOP "))
    assert [name for name, _ in read].count("SYSTEM") == 1
    assert not [value for name, value in read if name == "ADAPTER"]
    told = dict(read)
    assert told["SYSTEM"] == SYSTEM.replace('"""', "'''")
    assert (told["PARAMETER temperature"], told["PARAMETER top_p"], told["PARAMETER num_predict"]) == ("0.2", "0.9", "300")
    assert told["PARAMETER top_k"] == "20"  # what the release does not say stays as the base model has it
    assert [value for name, value in read if name == "STOP"] == ["<|im_end|>", "###"]
    assert "PARAMETER temperature 9" in told["TEMPLATE"]  # a template's own lines are no commands
    assert [name for name, _ in read].count("PARAMETER temperature") == 1


def test_a_text_with_every_mark_of_markdown_breaks_out_of_nothing(acme, release, delivery):
    release.asked_with = {"system": "```\n# Big\n````\n<script>"}
    release.notes = "| a |\n# <script>alert(1)</script>"
    release.save()
    readme = unpacked(Browser().get("/d/secret/file/"))["README.md"].decode()
    assert "`````\n```\n# Big\n````\n<script>\n`````" in readme
    assert "> \\| a \\|\n> \\# \\<script\\>" in readme
    assert "<script>alert" not in Browser().get("/d/secret/").content.decode()


def test_a_release_with_numbers_that_are_none_is_still_handed_over(release, delivery):
    release.asked_with = {"temperature": "hot", "top_p": True, "max_tokens": -1, "stop": "###", "system": 7}
    release.save()
    files = unpacked(Browser().get("/d/secret/file/"))
    assert "system.txt" not in files and "num_predict" not in files["Modelfile"].decode()


@pytest.mark.parametrize("kind", [Build.Kind.GGUF_ADAPTER, Build.Kind.MERGED])
def test_an_adapter_and_merged_weights_are_handed_over_too(acme, release, kind):
    build = make_build(acme.owner, acme.artifact, kind=kind, quantization="f16")
    make_delivery(acme.owner, release, build, link="other")
    release.shared_at = timezone.now()
    release.save()
    readme = unpacked(Browser().get("/d/other/file/"))["README.md"].decode()
    assert ("vllm serve" if kind == Build.Kind.MERGED else "--lora") in readme
    assert readme.count("### ") == 3
    assert Browser().get("/d/other/").status_code == 200


# ── Its length, known before ──


def all_of(files: list[Any]) -> bytes:
    async def everything() -> bytes:
        return b"".join([piece async for piece in zip_bytes(files)])

    return async_to_sync(everything)()


@pytest.mark.parametrize("most", [zipfile.ZIP64_LIMIT, 1000, 30])
def test_the_length_of_a_zip_is_known_before_it_is_made(monkeypatch, tmp_path, most):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", most)
    (tmp_path / "file").write_bytes(b"x" * 3000)
    for files in ([], [("a/é.txt", b"")], [("a/b", b"y" * 40), ("a/c", tmp_path / "file"), ("d", b"z" * 2000)]):
        assert len(all_of(files)) == zip_length(files)


# ── The link ──


def test_the_page_of_a_link_says_what_it_is_and_stands_alone(delivery, acme):
    delivery.limit = 5
    delivery.save()
    answer = Browser().get("/d/secret/")
    page = answer.content.decode()
    for said in (delivery.release.name, "for Jo", "5 downloads are left", "ollama create", "llama-server", "lms import", "SHA-256"):
        assert said in page, said
    assert acme.owner.user.email not in page and "Replies" not in page and "rail" not in page
    assert answer["Referrer-Policy"] == "no-referrer" and "noindex" in answer["X-Robots-Tag"] and "no-store" in answer["Cache-Control"]
    assert Delivery.objects.get().downloads == 0  # looking is not fetching


def test_each_download_is_counted_and_is_on_record(delivery):
    answer = Browser().get("/d/secret/file/", headers={"User-Agent": "curl/8\x07" + "x" * 300})
    assert int(answer["Content-Length"]) == len(body(answer))
    assert answer["Referrer-Policy"] == "no-referrer"
    one = Download.objects.get()
    assert (one.ip, one.user, one.agent[:8], len(one.agent)) == ("127.0.0.1", None, "curl/8xx", 200)
    record = AuditRecord.objects.get(verb="delivery.download")
    assert (record.user, record.ip, record.client) == (None, "127.0.0.1", delivery.audit_client)
    assert Delivery.objects.get().downloads == 1


def test_who_is_signed_in_and_fetches_by_the_link_is_named(delivery, ana, acme):
    body(ana.get("/d/secret/file/"))
    assert Download.objects.get().user == acme.owner.user
    assert AuditRecord.objects.get(verb="delivery.download").user == acme.owner.user
    page = ana.get(f"/deliveries/{delivery.pk}/").content.decode()
    assert "ana@example.com" in page and "127.0.0.1" in page


CLOSED = {
    "wrong": lambda: Delivery.objects.update(sha256="0" * 64),
    "expired": lambda: Delivery.objects.update(expires_at=timezone.now() - timedelta(seconds=1)),
    "revoked": lambda: Delivery.objects.update(revoked_at=timezone.now()),
    "spent": lambda: Delivery.objects.update(limit=2, downloads=2),
    "somebody else's": lambda: Delivery.objects.update(signed_in=True),
}


@pytest.mark.parametrize("how", CLOSED)
def test_a_link_that_does_not_open_tells_nothing_of_why(delivery, rival, how):
    stranger = signed_in(rival.owner)
    never = plain(stranger.get("/d/never/"))
    CLOSED[how]()
    for path in ("/d/secret/", "/d/secret/file/"):
        assert plain(stranger.get(path)) == never
    assert stranger.head("/d/secret/file/").status_code == 404
    assert not Download.objects.exists() and not AuditRecord.objects.filter(verb="delivery.download").exists()


def plain(answer: Any) -> tuple[Any, ...]:
    text = re.sub(r'csrf-token" content="[^"]*"', "", answer.content.decode())
    assert answer.status_code == 404
    return text, sorted(
        (name, value) for name, value in answer.headers.items() if name not in ("Content-Security-Policy", "Content-Length")
    )


def test_a_delivery_for_people_who_are_signed_in_asks_for_that_and_opens_for_the_clients_own(delivery, acme):
    Delivery.objects.update(signed_in=True)
    for path in ("/d/secret/", "/d/secret/file/"):
        assert Browser().get(path)["Location"] == f"/login/?{urlencode({'next': path})}"
    guest = signed_in(make_member(acme.workspace, role="guest", email="gus@example.com", clients=[acme.client]))
    assert guest.get("/d/secret/").status_code == 200 and unpacked(guest.get("/d/secret/file/"))
    other = create_client(acme.owner, name="Globex")
    for person in ("guest", "member"):
        foreign = signed_in(make_member(acme.workspace, role=person, email=f"{person}@example.com", clients=[other]))
        assert foreign.get("/d/secret/").status_code == foreign.get("/d/secret/file/").status_code == 404


def test_whoever_must_add_a_second_factor_first_opens_no_link_that_asks_who_they_are(delivery, acme):
    Delivery.objects.update(signed_in=True)
    type(acme.workspace).objects.filter(pk=acme.workspace.pk).update(second_factor_required=True)
    member = make_member(acme.workspace, role="guest", email="gus@example.com", clients=[acme.client])
    guest = signed_in(member)
    assert guest.get("/d/secret/").status_code == guest.get("/d/secret/file/").status_code == 404
    Authenticator.objects.create(user=member.user, type=Authenticator.Type.TOTP, data={})
    assert guest.get("/d/secret/").status_code == 200 and unpacked(guest.get("/d/secret/file/"))


def test_guessing_is_slowed_down_and_keeps_nobody_from_what_is_theirs(delivery):
    browser = Browser()
    for number in range(TRIES):
        assert browser.get(f"/d/guess{number}/").status_code == 404
    assert browser.get("/d/guess/").status_code == 429
    assert browser.get("/d/secret/").status_code == browser.get("/d/secret/file/").status_code == 200
    Delivery.objects.update(revoked_at=timezone.now())
    assert browser.get("/d/secret/").status_code == 429  # as for one that never was
    cache.clear()
    assert browser.get("/d/guess/").status_code == 404


# ── Limits ──


def test_the_last_download_is_had_once(delivery):
    Delivery.objects.update(limit=1)
    assert Browser().head("/d/secret/file/").status_code == 200
    assert unpacked(Browser().get("/d/secret/file/"))
    assert Browser().get("/d/secret/file/").status_code == Browser().head("/d/secret/file/").status_code == 404
    assert Download.objects.count() == Delivery.objects.get().downloads == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_who_fetch_the_last_one_at_once_one_gets_it(queue):
    from tests.fixtures import make_world

    world = make_world()
    release = make_release(world.owner, world.artifact, stage=Release.Stage.APPROVED, shared=True)
    make_delivery(world.owner, release, world.build, link="secret", limit=1)

    def fetch(_: int) -> int:
        answer = Browser().get("/d/secret/file/")
        body(answer)
        connections.close_all()
        return answer.status_code

    with ThreadPoolExecutor(8) as people:
        answers = sorted(people.map(fetch, range(8)))
    assert answers == [200] + [404] * 7
    assert Download.objects.count() == Delivery.objects.get().downloads == 1


def test_a_download_that_broke_off_goes_on_without_being_counted_again(delivery, ana):
    Delivery.objects.update(limit=1)
    first = Browser().get("/d/secret/file/")
    whole = body(first)
    headers = {"Range": "bytes=100-", "If-Range": first["ETag"]}
    rest = Browser().get("/d/secret/file/", headers=headers)
    assert (rest.status_code, rest["Content-Range"]) == (206, f"bytes 100-{len(whole) - 1}/{len(whole)}")
    assert body(rest) == whole[100:] and int(rest["Content-Length"]) == len(whole) - 100
    middle = Browser().get("/d/secret/file/", headers=headers | {"Range": "bytes=7-19"})
    assert body(middle) == whole[7:20]
    assert Browser().get("/d/secret/file/", headers=headers | {"Range": f"bytes={len(whole)}-"}).status_code == 416
    assert Delivery.objects.get().downloads == 1
    counted = Download.objects.get(goes_on=None)
    assert [(each.ip, each.at > counted.at) for each in counted.resumes.all()] == [("127.0.0.1", True)] * 2
    assert ana.get(f"/deliveries/{delivery.pk}/").content.decode().count("went on") == 2
    Delivery.objects.update(revoked_at=timezone.now())
    assert Browser().get("/d/secret/file/", headers=headers).status_code == 404


@pytest.mark.parametrize("wanted", ["bytes=0-", "bytes=0-10", "bytes=-999999", "bytes=0-1,3-4", "bytes=x"])
def test_what_begins_at_the_beginning_is_another_download(delivery, wanted):
    Delivery.objects.update(limit=2)
    mark = Browser().get("/d/secret/file/")["ETag"]
    headers = {"Range": wanted, "If-Range": mark}
    assert unpacked(Browser().get("/d/secret/file/", headers=headers))
    assert Delivery.objects.get().downloads == Download.objects.filter(goes_on=None).count() == 2
    assert Browser().get("/d/secret/file/", headers=headers).status_code == 404


def test_a_download_goes_on_so_often_and_not_for_ever(delivery, monkeypatch):
    monkeypatch.setattr(delivering, "MOST_RESUMES", 2)
    headers = {"Range": "bytes=1-", "If-Range": Browser().get("/d/secret/file/")["ETag"]}
    assert [Browser().get("/d/secret/file/", headers=headers).status_code for _ in range(3)] == [206, 206, 200]
    assert Delivery.objects.get().downloads == 2


def test_where_the_zip_became_another_meanwhile_it_is_sent_whole_and_not_counted(delivery):
    Delivery.objects.update(limit=1)
    first = Browser().get("/d/secret/file/")
    Release.objects.update(notes="Kinder to everybody.")
    headers = {"Range": "bytes=100-", "If-Range": first["ETag"]}
    again = Browser().get("/d/secret/file/", headers=headers)
    assert again.status_code == 200 and b"Kinder to everybody" in unpacked(again)["README.md"]
    assert Delivery.objects.get().downloads == 1 and Download.objects.filter(goes_on__isnull=False).count() == 1
    rest = Browser().get("/d/secret/file/", headers=headers | {"If-Range": again["ETag"]})
    assert rest.status_code == 206  # and goes on from there


def test_an_evaluation_that_ended_after_the_delivery_is_not_in_it(delivery, acme):
    order = make_order(acme.owner, kind="evaluation", client=acme.client)
    late = {"rows": 3, "tokens": 40, "loss": 2.75, "before": None, "samples": []}
    made = Evaluation.objects.create(release=delivery.release, dataset_version=acme.version, order=order, result=late)
    Evaluation.objects.filter(pk=made.pk).update(created_at=delivery.created_at - timedelta(seconds=1))
    Order.objects.filter(pk=order.pk).update(ended_at=delivery.created_at + timedelta(seconds=1))
    assert "| 1.250 |" in unpacked(Browser().get("/d/secret/file/"))["MODEL_CARD.md"].decode()
    Order.objects.filter(pk=order.pk).update(ended_at=delivery.created_at - timedelta(seconds=1))
    Evaluation.objects.filter(pk=made.pk).update(created_at=delivery.created_at)
    assert "| 2.750 |" in unpacked(Browser().get("/d/secret/file/"))["MODEL_CARD.md"].decode()


def test_a_range_with_another_mark_gets_everything_and_is_counted(delivery):
    first = Browser().get("/d/secret/file/")
    whole, mark = body(first), first["ETag"]
    forged = re.sub(r"\.\d+\.", f".{Download.objects.get().pk + 1}.", mark)
    for headers in ({"Range": "bytes=1-"}, {"Range": "bytes=1-", "If-Range": forged}, {"Range": "bytes=1-", "If-Range": '"x"'}):
        answer = Browser().get("/d/secret/file/", headers=headers)
        assert answer.status_code == 200 and body(answer) == whole
    assert Delivery.objects.get().downloads == 4
    Download.objects.update(at=timezone.now() - timedelta(days=2))
    assert Browser().get("/d/secret/file/", headers={"Range": "bytes=1-", "If-Range": mark}).status_code == 200


def test_a_file_that_is_gone_costs_no_download(delivery, acme):
    next(acme.build.artifact.folder.glob("*.gguf")).unlink()
    Delivery.objects.update(limit=1)
    assert Browser(raise_request_exception=False).get("/d/secret/file/").status_code == 500
    assert Delivery.objects.get().downloads == 0


def test_a_program_of_its_own_unpacks_it(delivery, tmp_path):
    (tmp_path / "a.zip").write_bytes(body(Browser().get("/d/secret/file/")))
    done = subprocess.run(["python3", "-m", "zipfile", "-t", str(tmp_path / "a.zip")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ── Taking it back ──


def test_a_member_revokes_a_delivery_and_the_link_answers_nobody(delivery, ana):
    assert ana.post(f"/deliveries/{delivery.pk}/revoke/").status_code == 302
    assert ana.post(f"/deliveries/{delivery.pk}/revoke/").status_code == 302  # once is enough
    assert Browser().get("/d/secret/").status_code == 404
    assert AuditRecord.objects.filter(verb="delivery.revoke").count() == 1
    assert "Revoked" in ana.get(f"/deliveries/{delivery.pk}/").content.decode()
    refused = ana.get(f"/deliveries/{delivery.pk}/file/")
    assert refused.status_code == 400 and "has ended" in refused.content.decode()


def test_a_viewer_sees_deliveries_and_changes_none(delivery, acme, release):
    viewer = signed_in(make_member(acme.workspace, role="viewer", email="vi@example.com"))
    page = viewer.get(f"/deliveries/{delivery.pk}/").content.decode()
    assert "For Jo" in page and "Revoke" not in page
    assert viewer.post(f"/deliveries/{delivery.pk}/revoke/").status_code == 404
    assert viewer.get("/deliveries/new/", {"release": release.pk}).status_code == 404


def test_the_list_asks_the_database_as_often_for_many_as_for_few(acme, ana, release, django_assert_num_queries):
    for _ in range(3):
        make_delivery(acme.owner, release, acme.build)
    ana.get("/deliveries/")
    with CaptureQueriesContext(connection) as few:
        ana.get("/deliveries/")
    for _ in range(60):
        make_delivery(acme.owner, release, acme.build)
    with django_assert_num_queries(len(few)):
        page = ana.get("/deliveries/").content.decode()
    assert "1–50 of 63" in page


# ── The API ──


def test_a_script_hands_a_release_over_looks_who_fetched_it_and_takes_it_back(acme, release):
    made = acme.api.post("deliveries", {"release": str(release.pk), "recipient": "Jo", "days": 1, "limit": 3}).json()
    assert made["state"] == "open" and made["build"] == str(acme.build.pk)
    path = made["link"].removeprefix("http://testserver")
    assert unpacked(Browser().get(f"{path}file/"))
    told = acme.api.get(f"deliveries/{made['id']}").json()
    assert (told["downloads"], told["log"][0]["ip"], told["log"][0]["resumed"]) == (1, "127.0.0.1", False) and "link" not in told
    listed = acme.api.get(f"deliveries?client={acme.client.pk}").json()["items"]
    assert [one["id"] for one in listed] == [made["id"]] and "link" not in listed[0]
    assert acme.api.delete(f"deliveries/{made['id']}").status_code == 204
    assert acme.api.get(f"deliveries/{made['id']}").json()["state"] == "revoked"
    assert Browser().get(path).status_code == 404


def test_a_key_without_deploy_hands_nothing_over(acme, release):
    reader = Api(make_key(acme.owner, scopes=["read"]))
    assert reader.post("deliveries", {"release": str(release.pk)}).status_code == 404
    assert reader.get("deliveries").status_code == 200


def test_the_api_says_what_is_wrong_beside_its_field(acme, release):
    assert "days" in str(acme.api.post("deliveries", {"release": str(release.pk), "days": 400}).json())
    Release.objects.update(stage="draft")
    refused = acme.api.post("deliveries", {"release": str(release.pk)})
    assert refused.status_code == 422 and "draft" in refused.json()["error"]["fields"]["release"]
    Build.objects.all().delete()
    refused = acme.api.post("deliveries", {"release": str(release.pk)})
    assert refused.status_code == 422 and "build" in refused.json()["error"]["fields"]
