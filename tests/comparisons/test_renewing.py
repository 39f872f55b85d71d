"""Verdicts that an earlier studio stored: found anew from what was measured then, a few in each round, and told where that cannot be."""

import shutil

import pytest
from django.test import Client as Browser

from studio.comparisons import renewing, verdict
from studio.comparisons.figures import VERSION, Verdict
from studio.comparisons.measured import folder_of
from studio.comparisons.models import Comparison, Rating
from studio.comparisons.preferred import preference
from studio.comparisons.renewing import Renewing
from studio.orders.models import Order
from studio.workspaces.models import Member
from studio.workspaces.services import archive_client, create_client
from tests.comparisons.house import make_measured
from tests.fixtures import World, make_comparison, make_member, make_order

pytestmark = pytest.mark.django_db

EARLIER = {"version": 1, "differs": "method", "sentence": "LoRA keeps all.", "arms": [{"number": 0, "gguf": 4}]}


def found_earlier(world: World, stored: dict | None = None) -> Comparison:
    """One that was measured, and whose verdict an earlier studio wrote."""
    comparison = make_comparison(world)
    make_measured(comparison)
    comparison.verdict = EARLIER if stored is None else stored
    comparison.save(update_fields=["verdict"])
    return comparison


def page_for(member: Member, comparison: Comparison) -> str:
    browser = Browser()
    browser.force_login(member.user)
    return browser.get(f"/comparisons/{comparison.pk}/").content.decode()


@pytest.mark.parametrize("stored", [EARLIER, EARLIER | {"not_renewed": 1}, {"sentence": "LoRA keeps all."}])
def test_a_verdict_of_an_earlier_studio_is_found_anew_from_what_was_measured_and_ratings_count_on(acme, stored):
    comparison = found_earlier(acme, stored)
    one, other = comparison.arms.all()
    Rating.objects.create(
        comparison=comparison, prompt=0, left=one, right=other, left_seed=1, right_seed=1, better="left", user=acme.owner.user
    )
    assert Renewing().advance() == ["LoRA or full: its verdict is found anew"]
    now = Comparison.objects.get(pk=comparison.pk)
    assert Verdict.of(now) == verdict.reckoned(comparison)
    assert (now.order, now.before, now.state) == (comparison.order, None, "done")
    assert preference(now).ratings == 1
    assert Renewing().advance() == []


def test_a_few_are_found_anew_in_each_round_and_looks_are_seldom_once_none_is_left(acme, monkeypatch):
    monkeypatch.setattr(renewing, "AT_ONCE", 1)
    first, second = found_earlier(acme), found_earlier(acme)
    rounds = Renewing()
    assert len(rounds.advance()) == 1
    second.refresh_from_db()
    first.refresh_from_db()
    assert (Verdict.of(second) is None, Verdict.of(first)) == (False, None)  # the newest first
    assert (len(rounds.advance()), rounds.advance()) == (1, [])
    third = found_earlier(acme)
    assert rounds.advance() == []
    rounds.next_look = 0.0
    assert rounds.advance() == [f"{third}: its verdict is found anew"]


def test_what_goes_on_or_was_never_measured_is_left_alone(acme):
    going, never = found_earlier(acme), make_comparison(acme)
    Comparison.objects.filter(pk=going.pk).update(state="running")
    Comparison.objects.filter(pk=never.pk).update(verdict=EARLIER)
    assert Renewing().advance() == []
    assert "earlier version" not in page_for(acme.owner, going)  # it is measured in the end
    stopping = make_order(acme.owner, kind="comparison", client=acme.client, status=Order.Status.RUNNING)
    Comparison.objects.filter(pk=going.pk).update(state="stopped", before=going.order, order=stopping)
    assert Renewing().advance() == []
    assert "earlier version" not in page_for(acme.owner, going)  # it is about to stand as it was measured before


def test_what_was_measured_anew_in_the_meantime_stands(acme):
    comparison = found_earlier(acme)
    stale = Comparison.objects.select_related("order").get(pk=comparison.pk)
    again = make_order(acme.owner, kind="comparison", client=acme.client, status=Order.Status.SUCCEEDED)
    Comparison.objects.filter(pk=comparison.pk).update(order=again, verdict={"version": VERSION, "sentence": "Newer."})
    assert renewing.renewed(stale) == ""
    comparison.refresh_from_db()
    assert comparison.verdict["sentence"] == "Newer."


def test_looking_at_the_page_says_what_is_to_come_and_writes_nothing(acme):
    comparison = found_earlier(acme)
    page = page_for(acme.owner, comparison)
    assert "It is being found anew from what was measured then" in page
    assert "Choose Measure again" not in page
    comparison.refresh_from_db()
    assert comparison.verdict == EARLIER
    Renewing().advance()
    page = page_for(acme.owner, comparison)
    assert "earlier version" not in page
    assert 'class="verdict-sentence"' in page


def test_where_what_was_measured_is_gone_that_is_said_with_the_menu_to_those_who_have_it(acme):
    comparison = found_earlier(acme)
    shutil.rmtree(folder_of(comparison))
    assert Renewing().advance() == ["LoRA or full: its verdict cannot be found anew"]
    assert "Choose Measure again in the menu" in page_for(acme.owner, comparison)
    viewer = page_for(make_member(acme.workspace, role="viewer", email="vi@example.com"), comparison)
    assert ("earlier version of the studio" in viewer, "Measure again" in viewer) == (True, False)
    create_client(acme.owner, name="Globex")
    archive_client(acme.owner, acme.client)
    archived = page_for(acme.owner, comparison)
    assert ("earlier version of the studio" in archived, "Measure again" in archived) == (True, False)


def test_what_cannot_be_read_is_tried_once_and_holds_up_no_other(acme, monkeypatch):
    monkeypatch.setattr(renewing, "AT_ONCE", 1)
    older, newer = found_earlier(acme), found_earlier(acme)
    (folder_of(newer) / "rows.parquet").write_bytes(b"PAR1")
    rounds = Renewing()
    assert rounds.advance() == [f"{newer}: its verdict cannot be found anew"]
    assert rounds.advance() == [f"{older}: its verdict is found anew"]
    assert rounds.advance() == []
    newer.refresh_from_db()
    assert newer.verdict == EARLIER | {"not_renewed": VERSION}


@pytest.mark.parametrize("name", ["rows.parquet", "facts.json", "prompts.jsonl", "answers.jsonl"])
def test_a_page_whose_measured_files_are_damaged_says_so_and_keeps_its_verdict(acme, name):
    comparison = make_comparison(acme)
    make_measured(comparison)
    comparison.verdict = verdict.reckoned(comparison).model_dump(mode="json")
    comparison.save(update_fields=["verdict"])
    assert 'id="answers"' in page_for(acme.owner, comparison)
    (folder_of(comparison) / name).write_bytes(b"PAR1 lost by the disk")
    page = page_for(acme.owner, comparison)
    assert "What was measured of this comparison is damaged on the disk. Measure it again." in page
    assert 'id="answers"' not in page and "of the gain of" in page
