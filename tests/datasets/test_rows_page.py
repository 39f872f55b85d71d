"""A person pages, searches, filters and marks a version's rows, and opens one whole."""

import pytest
from django.urls import reverse

from studio.audit.models import AuditRecord
from studio.datasets.models import Dataset, DatasetVersion, RowMark
from tests.datasets.made import browser_of, upload
from tests.fixtures import make_member

SECRET = "sk-" + "a1B2" * 8


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def address(name, version, query=""):
    return reverse(f"datasets:{name}", args=[version.pk]) + (f"?{query}" if query else "")


def numbers(page):
    return [row.number for row in page.context["rows"]]


@pytest.fixture
def ana(acme):
    return browser_of(acme.owner.user)


@pytest.fixture
def version(acme):
    """120 rows; row 3 holds a key, rows 10 and 20 a placeholder, row 120 repeats row 1."""
    lines = [chat(f"Question {number}?", f"Answer {number}.") for number in range(1, 121)]
    lines[2] = chat("What is the key?", f"It is {SECRET}.")
    lines[9] = chat("Hello {{name}}?", "Hello.")
    lines[19] = chat("Bye {{name}}?", "Bye.")
    lines[119] = chat("Question 1?", "Answer 1.")
    return upload(acme, lines, name="Questions")


def test_rows_are_paged_forwards_and_backwards(ana, version):
    first = ana.get(address("rows", version))
    assert numbers(first) == list(range(1, 51))
    assert (first.context["earlier"], first.context["total"]) == (None, 120)
    second = ana.get(address("rows", version, first.context["later"]))
    assert numbers(second) == list(range(51, 101))
    third = ana.get(address("rows", version, second.context["later"]))
    assert (numbers(third), third.context["later"]) == (list(range(101, 121)), None)
    again = ana.get(address("rows", version, third.context["earlier"]))
    assert numbers(again) == list(range(51, 101))
    begin = ana.get(address("rows", version, again.context["earlier"]))
    assert (numbers(begin), begin.context["earlier"]) == (list(range(1, 51)), None)


def test_a_row_is_gone_to_by_its_number_and_filters_stay_in_the_address(ana, version):
    page = ana.get(address("rows", version, "row=77&split=train"))
    assert numbers(page)[0] >= 77
    assert "split=train" in page.context["earlier"]
    assert all(row.split == "train" for row in page.context["rows"])


def test_rows_are_searched_and_filtered_by_finding(ana, version):
    assert numbers(ana.get(address("rows", version, "q=question+117"))) == [117]
    assert numbers(ana.get(address("rows", version, "finding=placeholder"))) == [10, 20]
    assert numbers(ana.get(address("rows", version, "finding=placeholder&q=bye"))) == [20]
    assert numbers(ana.get(address("rows", version, "finding=secret"))) == [3]
    page = ana.get(address("rows", version, "q=nowhere"))
    assert numbers(page) == []
    assert "No row fits" in page.content.decode()


@pytest.mark.parametrize(
    "query", ["after=x", "row=-5", "before=99999999999999999999", "finding=nothing&mark=1&split=all", "row=%00", "q=%00"]
)
def test_an_odd_address_shows_rows_all_the_same(ana, version, query):
    assert ana.get(address("rows", version, query)).status_code == 200


def test_a_row_is_shown_whole_and_escaped(ana, acme):
    long = "word " * 4000
    version = upload(acme, [chat("<script>alert(1)</script>", long)] * 2, name="Odd")
    page = ana.get(address("row", version, "row=1")).content.decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("word word") > 100
    assert "<script>alert" not in ana.get(address("rows", version)).content.decode()
    assert ana.get(address("row", version, "row=9")).status_code == 400


def test_marks_stay_with_the_row_and_are_filtered_by(ana, acme, version):
    before = AuditRecord.objects.count()
    ana.post(address("mark", version), {"do": "star:5"})
    ana.post(address("mark", version), {"do": "look", "chosen": ["7", "8"]})
    assert AuditRecord.objects.count() == before + 2
    assert numbers(ana.get(address("rows", version, "mark=star"))) == [5]
    assert numbers(ana.get(address("rows", version, "mark=look"))) == [7, 8]
    lines = [chat("Before?", "Yes.")] + [chat(f"Question {number}?", f"Answer {number}.") for number in range(1, 30)]
    other = upload(acme, lines, name="Others")
    DatasetVersion.objects.filter(pk=other.pk).update(dataset=version.dataset, number=2)
    other.refresh_from_db()
    assert numbers(ana.get(address("rows", other, "mark=star"))) == [6]
    ana.post(address("mark", version), {"do": "unstar:5"})
    assert numbers(ana.get(address("rows", other, "mark=star"))) == []
    assert RowMark.objects.count() == 2


def test_a_mark_that_is_none_is_refused(ana, version):
    ana.post(address("mark", version), {"do": "heart:5"})
    ana.post(address("mark", version), {"do": "star:500"})
    assert not RowMark.objects.exists()


def test_a_viewer_looks_and_changes_nothing(acme, version):
    viewer = browser_of(make_member(acme.workspace, role="viewer", email="vic@example.com").user)
    page = viewer.get(address("rows", version))
    assert page.status_code == 200
    assert "Drop row" not in page.content.decode()
    for name in ("mark", "draft_rows", "draft_rule", "draft_save", "draft_discard", "restore", "row_edit"):
        assert viewer.post(address(name, version), {"do": "drop:1"}).status_code == 404


def test_the_overview_leads_to_the_rows(ana, version):
    assert address("rows", version) in ana.get(address("version", version)).content.decode()


def test_a_version_without_rows_has_no_table(ana, acme):
    refused = Dataset.objects.get(name="Replies").versions.get()
    refused.facts = None
    refused.save()
    assert ana.get(address("rows", refused)).status_code == 302
    assert ana.get(address("row", refused)).status_code == 400
