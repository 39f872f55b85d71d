"""The report of a comparison: as a page, as a saved file, as a PDF and as CSV, for whoever may see it, with whatever names."""

import asyncio
import base64
import csv
import io
from decimal import Decimal

import pypdfium2
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client as Browser

from studio.comparisons import verdict
from studio.comparisons.figures import Verdict
from studio.comparisons.models import Comparison, Rating
from studio.workspaces.logos import set_logo
from studio.workspaces.models import Rate
from tests.clients.test_logos import png
from tests.comparisons.house import make_measured
from tests.comparisons.training import trained
from tests.fixtures import World, make_comparison, make_member

pytestmark = pytest.mark.django_db
HOSTILE = "<script>alert(1)</script> Привет 你好 🎉 \u202eevil\u0007 =1+1"


@pytest.fixture
def found(acme: World) -> Comparison:
    comparison = make_comparison(acme, seeds=(1, 2, 3))
    trained(comparison)
    make_measured(comparison)
    verdict.renew(comparison)
    return comparison


def signed_in(member) -> Browser:
    browser = Browser()
    browser.force_login(member.user)
    return browser


def words_of(pdf: bytes) -> str:
    return "\n".join(page.get_textpage().get_text_bounded() for page in pypdfium2.PdfDocument(pdf)).replace("\r\n", "\n")


def test_the_page_says_question_answer_figures_method_and_recipe(acme, found):
    page = signed_in(acme.owner).get(f"/comparisons/{found.pk}/report/").content.decode()
    for part in (
        "Which way of training suits this task",
        Verdict.of(found).sentence_shown,
        "NVIDIA L4",
        "Held-out rows",
        "python3 manage.py compare",
    ):
        assert part in page.replace("&#x27;", "'")
    assert "<style" not in page


def test_a_saved_page_needs_no_server_for_its_looks(acme, found):
    answer = signed_in(acme.owner).get(f"/comparisons/{found.pk}/report/?save=1")
    page = answer.content.decode()
    assert answer["Content-Disposition"].startswith("attachment")
    assert "@layer tokens" in page
    assert "<link" not in page
    assert "Save this page" not in page


def test_the_pdf_says_the_same(acme, found):
    set_logo(acme.owner, acme.client, SimpleUploadedFile("logo.png", png()))
    answer = signed_in(acme.owner).get(f"/comparisons/{found.pk}/report.pdf")
    assert answer["Content-Type"] == "application/pdf"
    words = " ".join(words_of(answer.content).split())
    assert " ".join(found.verdict["sentence"].split()) in words
    for part in ("How it was found out", "NVIDIA L4", "How to do it again", "What the words mean"):
        assert part in words


def test_any_name_is_shown_and_none_breaks_a_page_or_a_pdf(acme, found):
    found.name = HOSTILE[:120]
    found.save()
    found.arms.filter(number=0).update(name=HOSTILE)
    acme.client.name = HOSTILE[:80]
    acme.client.save()
    verdict.renew(found)
    browser = signed_in(acme.owner)
    page = browser.get(f"/comparisons/{found.pk}/report/").content.decode()
    assert "<script>alert" not in page
    assert "你好 🎉" in page
    words = words_of(browser.get(f"/comparisons/{found.pk}/report.pdf").content)
    assert "<script>alert(1)</script>" in words
    assert "\u202e" not in words
    assert browser.get(f"/comparisons/{found.pk}/").status_code == 200


def test_costs_stand_in_it_only_for_whoever_may_see_them(acme, found):
    Rate.objects.create(workspace=acme.workspace, kind="NVIDIA L4", per_hour=Decimal("3.00"), since="2020-01-01")
    viewer = make_member(acme.workspace, role="viewer", email="vi@example.com")
    mine = signed_in(acme.owner).get(f"/comparisons/{found.pk}/report/").content.decode()
    theirs = signed_in(viewer).get(f"/comparisons/{found.pk}/report/").content.decode()
    assert f"0.50 {acme.workspace.currency}" in mine
    assert f"1.50 {acme.workspace.currency}" in mine
    assert "Which way of training" in theirs
    assert f"0.50 {acme.workspace.currency}" not in theirs
    price = f"0.50 {acme.workspace.currency}"
    assert price in " ".join(words_of(signed_in(acme.owner).get(f"/comparisons/{found.pk}/report.pdf").content).split())
    assert price not in " ".join(words_of(signed_in(viewer).get(f"/comparisons/{found.pk}/report.pdf").content).split())
    assert b"cost" not in b"".join(read(signed_in(viewer).get(f"/comparisons/{found.pk}/figures.csv")))


def read(response) -> list[bytes]:
    async def pieces():
        return [piece async for piece in response.streaming_content]

    return asyncio.run(pieces()) if response.is_async else list(response.streaming_content)


def test_all_figures_are_there_as_csv(acme, found):
    text = b"".join(read(signed_in(acme.owner).get(f"/comparisons/{found.pk}/figures.csv"))).decode()
    lines = list(csv.DictReader(io.StringIO(text)))
    rows = [line for line in lines if line["kind"] == "row" and line["set"] == "held_out"]
    assert len(rows) == 7 * 12
    mine = [float(line["loss"]) for line in rows if (line["arm"], line["seed"]) == ("0", "2")]
    gains = {line["arm"]: float(line["value"]) for line in lines if line["figure"] == "gain"}
    base = [float(line["loss"]) for line in rows if line["arm"] == "-1"]
    assert len(mine) == 12
    full = [float(line["loss"]) for line in rows if line["arm"] == "1"]
    assert gains["1"] == pytest.approx((sum(base) - sum(full) / 3) / 120)


def test_what_training_took_has_its_interval_everywhere(acme):
    Rate.objects.create(workspace=acme.workspace, kind="NVIDIA L4", per_hour=Decimal("3.00"), since="2020-01-01")
    other = make_comparison(acme, seeds=(1, 2, 3))
    trained(other, apart=0.1)  # 10, 11 and 12 minutes; thrice as much of full
    make_measured(other)
    verdict.renew(other)
    half = 4.303 * 60 / 3**0.5
    took = acme.api.get(f"comparisons/{other.pk}").json()["verdict"]["arms"][0]["took"]["seconds"]
    assert took["each"] == [pytest.approx(600 * slower) for slower in (1.0, 1.1, 1.2)]
    assert (took["high"] - took["low"]) / 2 == pytest.approx(half, rel=0.1)
    lines = csv.DictReader(io.StringIO(b"".join(read(signed_in(acme.owner).get(f"/comparisons/{other.pk}/figures.csv"))).decode()))
    told = {line["figure"]: line for line in lines if line["arm"] == "0" and line["kind"] == "summary"}
    assert (told["seconds"]["low"], told["seconds"]["high"]) == (str(took["low"]), str(took["high"]))
    cost = told[f"cost {acme.workspace.currency}"]
    assert float(cost["value"]) == pytest.approx(0.55)
    assert (float(cost["high"]) - float(cost["low"])) / 2 == pytest.approx(0.05 * 4.303 / 3**0.5, rel=0.1)
    page = signed_in(acme.owner).get(f"/comparisons/{other.pk}/report/").content.decode()
    words = " ".join(words_of(signed_in(acme.owner).get(f"/comparisons/{other.pk}/report.pdf").content).split())
    for text in (page, words):
        assert "of what training took, and of how large and fast the result is, over seeds alone" in text
        assert f"± {(took['high'] - took['low']) / 120:.0f} min" in text
    assert f"0.55 {acme.workspace.currency}" in page


@pytest.mark.parametrize("address", ["report/", "report.pdf", "figures.csv"])
def test_a_guest_and_a_stranger_are_told_that_there_is_no_such_page(acme, found, rival, address):
    guest = make_member(acme.workspace, role="guest", email="gu@example.com", clients=[acme.client])
    for member in (guest, rival.owner):
        assert signed_in(member).get(f"/comparisons/{found.pk}/{address}").status_code == 404


def test_what_blind_raters_prefer_is_said_on_the_page_in_the_report_and_in_the_pdf(acme, found):
    lora, full = found.arms.all()
    columns = {"comparison": found, "left": lora, "right": full, "left_seed": 1, "right_seed": 1, "user": acme.owner.user}
    for prompt in range(3):
        Rating.objects.create(**columns, prompt=prompt, better="right")
    browser = signed_in(acme.owner)
    said = f"By 3 blind ratings: {full.name} is preferred to {lora.name} in"
    assert said in browser.get(f"/comparisons/{found.pk}/").content.decode()
    assert said in browser.get(f"/comparisons/{found.pk}/report/").content.decode()
    assert said in " ".join(words_of(browser.get(f"/comparisons/{found.pk}/report.pdf").content).split())


def test_before_there_is_a_verdict_it_is_said(acme):
    answer = signed_in(acme.owner).get(f"/comparisons/{acme.comparison.pk}/report/")
    assert answer.status_code == 400
    assert "no verdict to report yet" in answer.content.decode()


def test_the_logo_stands_in_the_page_itself(acme, found):
    logo = set_logo(acme.owner, acme.client, SimpleUploadedFile("logo.png", png()))
    page = signed_in(acme.owner).get(f"/comparisons/{found.pk}/report/").content.decode()
    assert f'src="data:image/png;base64,{logo.image}"' in page
    assert base64.b64decode(logo.image)
