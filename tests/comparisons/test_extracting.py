"""Adapters are asked for, taken in, recommended and stopped; what a worker says is judged first."""

import json

import pytest
from django.db.models import ProtectedError
from django.http import Http404
from django.test import Client as Browser
from django.utils import timezone

from studio.artifacts.models import Artifact
from studio.audit.models import AuditRecord
from studio.clients.lineage import lineage
from studio.comparisons import extracting, extraction_pages
from studio.comparisons.extraction_kind import ExtractionKind
from studio.comparisons.models import Extraction
from studio.errors import UserError
from studio.orders.models import Order
from studio.storage import commit_folder
from tests.fixtures import make_full_model

RANKS = [8, 16, 0]


@pytest.fixture
def source(acme):
    return make_full_model(acme)


@pytest.fixture
def browser(acme):
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def found(*, kept=((0.9, 0.88, 0.92), (0.985, 0.981, 0.99), (1.0, 1.0, 1.0)), ranks=RANKS, **changes):
    """What a worker tells of an extraction."""
    sizes = (1_000_000, 2_000_000, 9_000_000)
    told = [
        {
            "rank": rank,
            "folder": f"rank-{rank or 'full'}",
            "size": size,
            "parameters": size // 4,
            "energy": 0.5,
            "loss": 1.5,
            "kept": share[0],
            "low": share[1],
            "high": share[2],
            "why": "",
        }
        for rank, size, share in zip(ranks, sizes, kept, strict=True)
    ]
    layers = [{"name": f"model.layers.{n}.q_proj", "outputs": 64, "inputs": 64, "share": 0.5, "held": [0.4, 0.5, 1.0]} for n in range(2)]
    facts = {"layers": layers, "linear": 0.9, "rest": [{"part": "norms", "share": 0.1, "kept": False}], "ranks": told}
    return facts | {"source_size": 8_000_000, "rows": 40, "tokens": 900, "base_loss": 2.0, "full_loss": 1.5} | changes


def ended(acme, source, folder, facts):
    """The order as a worker ended it, with a folder for each rank."""
    extraction = extracting.request(acme.owner, source, ranks=RANKS)
    order = extraction.order
    temp, target = folder / "temp", ExtractionKind().target(order)
    for rank in RANKS:
        part = temp / f"rank-{rank or 'full'}"
        part.mkdir(parents=True)
        (part / "adapter_model.safetensors").write_bytes(bytes(100 + rank))
        (part / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (temp / "layers.json").write_text("[]")
    manifest = commit_folder(temp, target)
    Order.objects.filter(pk=order.pk).update(status=Order.Status.SUCCEEDED, ended_at=timezone.now())
    ExtractionKind().succeeded(order, facts | {"folder": str(target)} | {name: manifest[name] for name in ("files", "size", "sha256")})
    return Extraction.objects.select_related("order", "source__base_model").get(pk=extraction.pk)


def test_each_rank_becomes_an_adapter_of_its_own_with_the_model_as_its_parent(acme, source, tmp_path):
    extraction = ended(acme, source, tmp_path, found())
    adapters = list(extraction.order.artifacts.order_by("size"))
    assert [each.name for each in adapters] == ["Whole, full rank", "Whole, rank 8", "Whole, rank 16"]
    for each in adapters:
        assert (each.kind, each.base_model, each.dataset_version) == (Artifact.Kind.ADAPTER, acme.base, acme.version)
        assert each.is_chattable
        assert set(each.files) == {"adapter_model.safetensors", "adapter_config.json"}
        assert (each.folder / "adapter_config.json").is_file()
        assert list(each.parents.all()) == [source]
        assert each.lineage["model_sha256"] == source.sha256
    assert (str(source.pk), str(adapters[0].pk)) in lineage(acme.client)["edges"]


def test_the_smallest_that_surely_keeps_enough_is_recommended(acme, source, tmp_path):
    extraction = ended(acme, source, tmp_path, found())
    rows = extraction_pages.table(extraction)
    assert [row.recommended for row in rows] == [False, True, False]
    advice = extraction_pages.advice(extraction, rows)
    assert advice.sentence == "Take rank 16"
    assert "It keeps 98.5 % of the gain on 40 held-out rows (98.1 to 99.0 %)" in advice.reason
    assert advice.taken.artifact.name == "Whole, rank 16"


@pytest.mark.parametrize(
    ("facts", "sentence", "reason"),
    [
        (
            found(kept=((0.9, 0.8, 0.95), (0.985, 0.93, 1.02), (0.9, 0.8, 1.0))),
            "Take rank 16",
            "40 held-out rows are too few to be sure of that: it may be 93.0 to 102.0 %.",
        ),
        (
            found(kept=((0.5, 0.4, 0.6), (0.7, 0.6, 0.8), (0.9, 0.8, 0.95))),
            "None of them keeps 98 % of what the model learnt",
            "Full rank keeps the most, 90.0 %. What is missing lies outside of the linear layers, where no adapter reaches.",
        ),
        (
            found(kept=((0.5, 0.4, 0.6), (0.7, 0.6, 0.8), (0.9, 0.8, 0.95)), rest=[{"part": "words", "share": 0.1, "kept": False}]),
            "None of them keeps 98 % of what the model learnt",
            "take them out again with the tables of words",
        ),
        (found(full_loss=2.1), "There is nothing to keep", "the model is no better than its base"),
        (found(rows=0, base_loss=None, full_loss=None), "What they keep was not measured", "There are no held-out rows"),
    ],
)
def test_what_cannot_be_recommended_is_said_as_it_is(acme, source, tmp_path, facts, sentence, reason):
    if facts["full_loss"] is None or facts["full_loss"] > facts["base_loss"]:
        for each in facts["ranks"]:
            each |= {"kept": None, "low": None, "high": None}
    extraction = ended(acme, source, tmp_path, facts)
    advice = extraction_pages.advice(extraction, extraction_pages.table(extraction))
    assert advice.sentence == sentence
    assert reason in advice.reason


def test_the_chart_has_every_measured_rank_within_its_frame(acme, source, tmp_path):
    extraction = ended(acme, source, tmp_path, found(kept=((-0.2, -0.4, 0.1), (0.985, 0.93, 1.02), (1.0, 1.0, 1.0))))
    chart = extraction_pages.kept_chart(extraction_pages.table(extraction))
    assert len(chart["points"]) == len(chart["whiskers"]) == 3
    assert all(0 <= spot["x"] <= 1 and 0 <= spot["y"] <= 1 for spot in chart["points"])
    assert 2 <= len(chart["shares"]) <= 6
    assert any(tick["text"] == "100 %" for tick in chart["shares"])
    assert chart["points"][0]["words"] == "Rank 8: 1.0 MB, keeps -20.0 % (-40.0 to 10.0 %)"


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": [8, 16, 32]},
        {"rest": [{"part": "<b>", "share": 0.1, "kept": False}]},
        {"linear": float("inf")},
        {"rows": -1},
        {"layers": None},
    ],
)
def test_what_a_worker_may_not_say_is_not_taken_in(acme, source, tmp_path, change):
    facts = found(ranks=change["ranks"]) if "ranks" in change else found(**change)
    with pytest.raises(ValueError):
        ended(acme, source, tmp_path, facts)
    assert not Artifact.objects.filter(order__kind="extraction").exists()


def test_only_a_fully_trained_model_gives_adapters(acme, source):
    with pytest.raises(UserError, match="whose every weight was trained"):
        extracting.request(acme.owner, acme.artifact, ranks=[8])
    type(acme.base).objects.filter(pk=acme.base.pk).update(facts=None)
    source.base_model.refresh_from_db()
    with pytest.raises(UserError, match="is not here"):
        extracting.request(acme.owner, source, ranks=[8])


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        ([], "Choose at least one rank."),
        (list(range(1, 10)), "At most 8 ranks"),
        ([-3], "A rank is a whole number above 0."),
        ([64], "have rank 64, so 64 leaves nothing out"),
    ],
)
def test_ranks_that_cannot_be_taken_are_refused_beside_their_field(acme, source, ranks, says):
    with pytest.raises(UserError) as refused:
        extracting.request(acme.owner, source, ranks=ranks)
    assert says in refused.value.fields["ranks"]
    assert not Extraction.objects.exists()


def test_a_model_is_taken_apart_once_at_a_time_and_a_stop_is_recorded(acme, source):
    extraction = extracting.request(acme.owner, source)
    assert extraction.ranks == [8, 16, 32, 0]  # of the usual ones those that its layers have
    with pytest.raises(UserError, match="already"):
        extracting.request(acme.owner, source)
    with pytest.raises(UserError, match="Stop that first"):
        extracting.delete(acme.owner, extraction)
    extracting.stop(acme.owner, extraction)
    extracting.delete(acme.owner, Extraction.objects.get(pk=extraction.pk))
    assert not Extraction.objects.exists()
    with pytest.raises(Http404):  # a second click
        extracting.delete(acme.owner, extraction)
    verbs = list(AuditRecord.objects.filter(verb__startswith="extraction.").order_by("pk").values_list("verb", flat=True))
    assert sorted(verbs) == ["extraction.create", "extraction.delete", "extraction.stop"]


def test_the_model_stays_while_there_is_an_order_about_it(acme, source):
    made = extracting.request(acme.owner, source, ranks=[8])
    with pytest.raises(ProtectedError):
        source.delete()
    assert str(made.order.extraction) == f"Adapters from {source}"


def test_one_that_left_adapters_stays(acme, source, tmp_path):
    with pytest.raises(UserError, match="stay in the registry"):
        extracting.delete(acme.owner, ended(acme, source, tmp_path, found()))


def test_the_form_takes_ticked_and_typed_ranks(browser, source):
    page = browser.get(f"/artifacts/{source.pk}/extract/").content.decode()
    assert "about 8.2 kB" in page  # rank 8 of two layers of 64 by 64, float32
    answer = browser.post(f"/artifacts/{source.pk}/extract/", {"rank": ["8", "0"], "other": "12, 3", "tables": "on"})
    made = Extraction.objects.get()
    assert (answer.status_code, answer["Location"]) == (302, f"/extractions/{made.pk}/")
    assert (made.ranks, made.keeps_tables) == ([3, 8, 12, 0], True)
    assert "Waiting for a free worker" in browser.get(answer["Location"]).content.decode()


def test_the_form_says_what_is_wrong_beside_the_field_and_keeps_what_was_typed(browser, source):
    for typed in ("many", "0", "٣", "1e3"):
        answer = browser.post(f"/artifacts/{source.pk}/extract/", {"rank": ["8"], "other": typed})
        assert answer.status_code == 422
        page = answer.content.decode()
        assert "Type whole numbers above 0" in page
        assert f'value="{typed}"' in page
    assert browser.post(f"/artifacts/{source.pk}/extract/", {}).status_code == 422


def test_a_page_of_an_adapter_says_why_nothing_is_taken_out_of_it(acme, browser, source):
    assert "whose every weight was trained" in browser.get(f"/artifacts/{acme.artifact.pk}/extract/").content.decode()
    assert f"/artifacts/{source.pk}/extract/" in browser.get(f"/artifacts/{source.pk}/").content.decode()
    assert "/extract/" not in browser.get(f"/artifacts/{acme.artifact.pk}/").content.decode()


def test_a_model_shows_its_adapters_and_not_as_builds(acme, browser, source, tmp_path):
    extraction = ended(acme, source, tmp_path, found())
    page = browser.get(f"/artifacts/{source.pk}/").content.decode()
    for artifact in extraction.order.artifacts.all():
        assert f"/artifacts/{artifact.pk}/" in page
        assert browser.get(f"/artifacts/{artifact.pk}/").status_code == 200
    assert "3 files" not in page


def test_the_api_asks_watches_and_stops(acme, source, tmp_path):
    refused = acme.api.post(f"artifacts/{acme.artifact.pk}/extractions", {})
    assert refused.status_code == 400
    made = acme.api.post(f"artifacts/{source.pk}/extractions", {"ranks": [8, 0]})
    assert (made.status_code, made.json()["ranks"], made.json()["status"]) == (202, [8, 0], "queued")
    pk = made.json()["id"]
    assert acme.api.post(f"extractions/{pk}/stop").json()["status"] == "stopped"
    assert acme.api.delete(f"extractions/{pk}").status_code == 204
    extraction = ended(acme, source, tmp_path, found())
    listed = acme.api.get(f"artifacts/{source.pk}/extractions").json()["items"]
    assert [each["id"] for each in listed] == [str(extraction.pk)]
    told = acme.api.get(f"extractions/{extraction.pk}").json()
    assert [(each["rank"], each["kept"], each["recommended"]) for each in told["adapters"]] == [
        (8, 0.9, False),
        (16, 0.985, True),
        (0, 1.0, False),
    ]
    assert acme.api.get(f"artifacts/{told['adapters'][1]['artifact']}").json()["parents"] == [str(source.pk)]
    assert told["advice"].startswith("Take rank 16. It keeps 98.5 %")
    assert acme.api.post(f"artifacts/{source.pk}/extractions", {"ranks": ["many"]}).status_code == 422
