"""A person looks at what a base model reads of a row, token by token, and at how long the rows are in its tokens."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.test import Client as Browser
from django.urls import reverse

from studio import rowfile
from studio.basemodels.models import BaseModel
from studio.datasets import tokenviews
from studio.datasets.models import TokenView
from studio.datasets.pages.drawing import draw, seen
from studio.orders.models import Order
from tests.fixtures import World, make_base_model, make_member, make_version, work_off
from tests.small_tokenizer import CHATML, give_tokenizer

pytestmark = pytest.mark.torch

SHOUTING = "{{ messages[-1]['content'] | upper }}<|im_end|>"


@pytest.fixture
def base(acme: World) -> BaseModel:
    give_tokenizer(acme.base)
    return acme.base


@pytest.fixture
def ana(acme: World) -> Browser:
    return signed_in(acme.owner)


def signed_in(member: Any) -> Browser:
    browser = Browser()
    browser.force_login(member.user)
    return browser


def page(browser: Browser, version: Any, **asked: Any) -> Any:
    return browser.get(reverse("datasets:tokens", args=[version.pk]), asked)


def work_off_views() -> None:
    for view in TokenView.objects.filter(order__status=Order.Status.QUEUED):
        work_off(view.order)


def drawn(html: str) -> list[tuple[set[str], str]]:
    """(classes, text) of each token on the page."""
    found = re.findall(r'<span class="(tok-[^"]*)" data-id="\d+"[^>]*>(.*?)</span>', html, re.DOTALL)
    return [(set(names.split()), re.sub(r"<[^>]+>", "", text)) for names, text in found]


def test_a_row_is_shown_as_the_model_reads_it_and_only_its_answer_is_learnt(acme: World, base: BaseModel, ana: Browser) -> None:
    waiting = page(ana, acme.version, row=3).content.decode()
    assert "Waiting for a free worker" in waiting
    assert 'hx-trigger="every 700ms"' in waiting
    work_off_views()
    shown = page(ana, acme.version, row=3).content.decode()
    assert "hx-trigger" not in shown
    tokens = drawn(shown)
    text = "".join(text for _, text in tokens)
    assert text.startswith("&lt;|im_start|&gt;user\nQuestion 2?&lt;|im_end|&gt;")
    assert "".join(text for names, text in tokens if "tok-trained" in names) == "Answer 2.&lt;|im_end|&gt;"
    assert all("tok-special" in names for names, text in tokens if text.startswith("&lt;|"))
    assert not any("tok-cut" in names for names, _ in tokens)


def test_the_next_rows_are_there_at_once_and_the_next_block_is_read_ahead(acme: World, base: BaseModel, ana: Browser) -> None:
    version = make_version(acme.owner, acme.project, name="Many", count=120)
    page(ana, version, row=10)
    work_off_views()
    assert len(drawn(page(ana, version, row=11).content.decode())) > 5
    assert not TokenView.objects.filter(begin=50).exists()
    page(ana, version, row=30)
    assert TokenView.objects.get(begin=50).order.status == "queued"
    work_off_views()
    assert "Question 50?" in "".join(text for _, text in drawn(page(ana, version, row=51).content.decode()))


def test_what_a_max_length_cuts_is_struck_and_counted(acme: World, base: BaseModel, ana: Browser) -> None:
    page(ana, acme.version)
    work_off_views()
    shown = page(ana, acme.version, length=16)
    tokens = drawn(shown.content.decode())
    assert len(tokens) > 16
    assert ["tok-cut" in names for names, _ in tokens] == [False] * 16 + [True] * (len(tokens) - 16)
    reading = shown.context["readings"][0]["drawn"]
    assert (reading.cut, reading.total) == (len(tokens) - 16, len(tokens))


def test_a_max_length_that_leaves_nothing_to_learn_says_so() -> None:
    reading = {"name": "", "ids": list(range(9)), "texts": ["a"] * 9, "special": [], "learnt": [[6, 9, 1.0]], "last": [], "total": 9}
    assert draw(reading, last_answer=False, length=9, begin=0).teaches
    assert not draw(reading, last_answer=False, length=6, begin=0).teaches
    assert not draw(reading, last_answer=True, length=9, begin=0).teaches


def test_white_space_and_what_nobody_sees_is_shown_and_markup_stays_text() -> None:
    assert seen(" a\n\tb") == '<i> </i>a<i class="line">\n</i><i class="tab">\t</i>b'
    assert seen("\u202e\u200b\x1b") == '<i class="hid">\\u202e</i><i class="hid">\\u200b</i><i class="hid">\\u001b</i>'
    assert seen("<b onclick=x>\n") == '&lt;b<i> </i>onclick=x&gt;<i class="line">\n</i>'


def test_a_template_that_hides_the_answer_is_told_with_its_reason(acme: World, ana: Browser) -> None:
    give_tokenizer(acme.base, template=SHOUTING)
    page(ana, acme.version)
    work_off_views()
    shown = page(ana, acme.version).content.decode()
    assert "This row cannot be learnt from with this base model." in shown
    assert "chat template" in shown
    assert drawn(shown) == []


def test_another_base_model_reads_the_row_in_its_own_tokens(acme: World, base: BaseModel, ana: Browser) -> None:
    other = make_base_model(acme.owner, name="Other")
    give_tokenizer(other, template="{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '<|im_end|>' }}{% endfor %}")
    page(ana, acme.version, base=base.pk)
    page(ana, acme.version, base=other.pk)
    work_off_views()
    assert "[user]" not in "".join(text for _, text in drawn(page(ana, acme.version, base=base.pk).content.decode()))
    assert "".join(text for _, text in drawn(page(ana, acme.version, base=other.pk).content.decode())).startswith("[user]")


def test_without_a_base_model_the_page_says_what_to_do(acme: World, ana: Browser) -> None:
    BaseModel.objects.update(facts=None)
    assert "Add a base model" in page(ana, acme.version).content.decode()


def test_a_model_without_a_tokenizer_is_told_and_tried_again_later(acme: World, ana: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    page(ana, acme.version)
    work_off_views()
    assert "tokenizer.json is missing" in page(ana, acme.version).content.decode()
    assert TokenView.objects.get().order.status == "failed"
    monkeypatch.setattr(tokenviews, "AGAIN", tokenviews.AGAIN * 0)
    give_tokenizer(acme.base)
    page(ana, acme.version)
    work_off_views()
    assert drawn(page(ana, acme.version).content.decode())


def test_odd_numbers_in_the_address_show_the_nearest_row(acme: World, base: BaseModel, ana: Browser) -> None:
    for typed, shown in [("0", 1), ("999", 12), ("-1", 1), ("x", 1), ("٣", 1), ("1,0", 10), ("9" * 40, 1), ("", 1)]:
        answer = page(ana, acme.version, row=typed, length="99999999", begin="77", answers="?")
        assert (answer.status_code, answer.context["asked"].row) == (200, shown)
        assert answer.context["asked"].length == 131_072


def test_a_base_model_of_another_workspace_is_one_of_nowhere(acme: World, rival: World, base: BaseModel, ana: Browser) -> None:
    assert page(ana, acme.version, base=rival.base.pk).status_code == 404
    assert page(ana, acme.version, base="no-id").status_code == 404
    assert page(ana, rival.version).status_code == 404
    assert not TokenView.objects.exists()


def test_a_viewer_may_look_too(acme: World, base: BaseModel) -> None:
    vera = signed_in(make_member(acme.workspace, role="viewer", email="vera@example.com"))
    page(vera, acme.version)
    work_off_views()
    assert drawn(page(vera, acme.version).content.decode())


def test_whoever_jumps_about_leaves_no_long_queue_behind(acme: World, base: BaseModel, ana: Browser) -> None:
    version = make_version(acme.owner, acme.project, name="Many", count=600)
    for row in range(1, 600, 50):
        page(ana, version, row=row)
    assert Order.objects.filter(kind="token_view", status="queued").count() <= tokenviews.MOST_WAITING


def test_the_lengths_are_told_under_the_base_model_that_is_chosen(acme: World, base: BaseModel, ana: Browser) -> None:
    other = make_base_model(acme.owner, name="Chatty")
    give_tokenizer(other, template="{{ 'Be a helpful assistant. ' * 20 }}" + CHATML)
    longest = {}
    for each in (base, other):
        address = reverse("datasets:version", args=[acme.version.pk])
        assert "Waiting for a free worker" in ana.get(address, {"base": each.pk}).content.decode()
        measure_rows()
        shown = ana.get(address, {"base": each.pk})
        longest[each.pk] = shown.context["tokens"].longest
        assert f"base={other.pk}#lengths" in shown.content.decode()
    assert longest[other.pk] > longest[base.pk] + 20


def test_rows_longer_than_the_model_reads_are_asked_about_and_leafed_through(acme: World, base: BaseModel, ana: Browser) -> None:
    from studio.ml.tokens import encode_rows, load_tokenizer

    version = make_version(acme.owner, acme.project, name="Many", count=120)
    encoded = encode_rows(load_tokenizer(base.folder), rowfile.read(version.rows_path), max_length=None)
    lengths = np.array([len(row.ids) for row in encoded])
    limit = int(lengths.max()) - 1
    longer = np.flatnonzero(lengths > limit).tolist()
    assert 1 < len(longer) < 120
    base.facts = base.facts | {"context_length": limit}
    base.save()
    address = reverse("datasets:version", args=[version.pk])
    ana.get(address)
    measure_rows()
    shown = ana.get(address)
    assert f"{len(longer)} rows exceed {limit} tokens: drop, truncate or raise the limit?" in shown.content.decode()
    assert [(cut["max_length"], cut["rows"], cut["is_limit"]) for cut in shown.context["cuts"]] == [(limit, len(longer), True)]
    first = page(ana, version, length=limit, only="cut")
    assert (first.context["asked"].index, first.context["previous"], first.context["place"]) == (longer[0], "", 1)
    assert f"row={longer[1] + 1}&" in first.context["following"]
    last = page(ana, version, length=limit, only="cut", row=120)
    assert (last.context["following"], last.context["place"]) == ("", len(longer))
    assert f"row={longer[-2] + 1}&" in last.context["previous"]


def measure_rows() -> None:
    for order in Order.objects.filter(kind="tokens", status=Order.Status.QUEUED):
        assert work_off(order).status == "succeeded", order.error


def test_once_the_lengths_are_measured_the_first_rows_are_there_at_once(acme: World, base: BaseModel, ana: Browser) -> None:
    ana.get(reverse("datasets:version", args=[acme.version.pk]))
    measure_rows()
    assert "Question 6?" in "".join(text for _, text in drawn(page(ana, acme.version, row=7).content.decode()))
    assert not TokenView.objects.exists()


def test_a_script_asks_for_lengths_and_for_a_row_in_tokens(acme: World, base: BaseModel) -> None:
    tokens, view = (f"dataset-versions/{acme.version.pk}/{name}" for name in ("tokens", "token-view"))
    assert acme.api.get(tokens).json() == {"base_model": str(base.pk), "status": "waiting", "error": "", "facts": None}
    assert acme.api.get(f"{view}?row=2&base_model={base.pk}").json()["status"] == "waiting"
    measure_rows()
    work_off_views()
    facts = acme.api.get(tokens).json()["facts"]
    assert facts["cuts"][-1] == {"max_length": 256, "rows": 0, "tokens": 0, "supervised": 0, "empty": 0}
    seen = acme.api.get(f"{view}?row=2&max_length=16").json()
    [answer] = seen["answers"]
    assert (seen["status"], seen["row"], answer["total"], answer["cut"]) == ("ready", 2, len(answer["tokens"]), answer["total"] - 16)
    assert "".join(piece["text"] for piece in answer["tokens"] if piece["weight"]) == "Answer 2.<|im_end|>"
    assert not any(piece["learnt"] for piece in answer["tokens"] if piece["cut"])


def test_a_script_that_asks_for_what_is_not_there_hears_what_to_do(acme: World, rival: World, base: BaseModel) -> None:
    view = f"dataset-versions/{acme.version.pk}/token-view"
    missing = acme.api.get(f"{view}?row=12").json()["error"]
    assert missing["fields"] == {"row": "The rows are 0 to 11."}
    assert acme.api.get(f"{view}?base_model={rival.base.pk}").json()["error"]["code"] == "unknown_id"
    assert acme.api.get(f"{view}?max_length=1").status_code == 422
    BaseModel.objects.update(facts=None)
    assert "Add one first" in acme.api.get(view).json()["error"]["message"]


def test_old_blocks_go_with_their_files(
    acme: World, base: BaseModel, ana: Browser, data_folder: Path, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any
) -> None:
    monkeypatch.setattr(tokenviews, "KEPT", 2)
    version = make_version(acme.owner, acme.project, name="Many", count=300)
    for row in (25, 125, 225):
        with django_capture_on_commit_callbacks(execute=True):
            page(ana, version, row=row)
        work_off_views()
    assert TokenView.objects.count() == 2
    assert len(list((data_folder / "orders").iterdir())) == 2
