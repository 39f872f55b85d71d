"""Blind rating: who is asked what, that nobody learns whose answers they see, and what casting, undoing and unsharing do."""

import base64
import csv
import io
import random
import re
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.http import Http404
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.comparisons import rating as services
from studio.comparisons import rounds
from studio.comparisons.models import Arm, ArmRun, Comparison, Rating
from studio.comparisons.preferred import preference
from studio.comparisons.rated import Rated, pair_of
from studio.comparisons.services import again
from studio.errors import UserError
from studio.orders.models import Order
from studio.workspaces.models import Member
from studio.workspaces.services import create_client
from tests.api.test_at_once import TIMES, at_once
from tests.comparisons.house import make_measured
from tests.fixtures import World, make_comparison, make_member

LORA, FULL = "Quokka adapter", "Numbat whole"
"""Names that stand nowhere else."""
Texts = dict[tuple[int, int], list[str]]


def measured(acme: World, texts: Texts | None = None, *, arms: int = 2, seeds: tuple[int, ...] = (7,)) -> Comparison:
    """A comparison whose arms answered; without `texts`, all differently."""
    made = make_comparison(acme, seeds=seeds)
    for number, name in enumerate((LORA, FULL)):
        made.arms.filter(number=number).update(name=name)
    for number in range(2, arms):
        columns = {"plugin": acme.run.plugin, "config": {}, "base_model": acme.base, "dataset_version": acme.version}
        Arm.objects.create(comparison=made, number=number, name=f"Arm {number}", **columns)
    said = texts or {(arm, seed): [f"{arm}{seed}{prompt}." for prompt in range(4)] for arm in range(arms) for seed in seeds}
    make_measured(made, held_out={key: [1.0] for key in said}, probe={}, kl={}, answers=said)
    return made


@pytest.fixture
def comparison(acme: World) -> Comparison:
    return measured(acme)


@pytest.fixture
def bob(acme: World) -> Member:
    return make_member(acme.workspace, role="member", email="bob@example.com")


@pytest.fixture
def gus(acme: World) -> Member:
    return make_member(acme.workspace, role="guest", email="gus@example.com", clients=[acme.client])


def signed_in(member: Member) -> Browser:
    browser = Browser()
    browser.force_login(member.user)
    return browser


def rated(comparison: Comparison) -> Rated:
    found = Rated.of(Comparison.objects.get(pk=comparison.pk))
    assert found is not None
    return found


def asked(member: Member, comparison: Comparison, *, chance: random.Random | None = None) -> services.Question | None:
    return services.next_question(member, rated(comparison), chance=chance or random.Random(1))


def say(member: Member, comparison: Comparison, better: str = "left", *, question: services.Question | None = None) -> Rating:
    question = question or asked(member, comparison)
    assert question is not None
    return services.cast(member, comparison, token=services.sealed(member, comparison, question), better=better)


def token_of(answer: Any) -> str:
    found = re.search(r'name="question" value="([^"]+)"', answer.content.decode())
    assert found, "no question is asked"
    return found[1]


# ── What is asked next ──


def test_each_pair_is_asked_as_often_as_the_others(acme: World, bob: Member):
    comparison = measured(acme, arms=3)
    for member in (acme.owner, bob):
        for _ in range(6):
            say(member, comparison)
    assert Counter(pair_of(rating) for rating in rated(comparison).ratings) == {(0, 1): 4, (0, 2): 4, (1, 2): 4}


def test_of_pairs_asked_as_often_the_closest_is_next(acme: World):
    comparison = measured(acme, arms=3)
    for pair, better in (((0, 1), 1), ((0, 2), 2), ((1, 2), None)):  # 1 and 2 are alike, 0 is behind
        question = services.Question(0, *pair, 7, 7)
        say(acme.owner, comparison, {pair[0]: "left", pair[1]: "right"}.get(better or -1, "equal"), question=question)
    assert {asked(acme.owner, comparison, chance=random.Random(seed)).pair for seed in range(20)} == {(1, 2)}


def test_sides_are_drawn(acme: World, comparison: Comparison):
    chance = random.Random(3)
    sides = Counter(asked(acme.owner, comparison, chance=chance).left for _ in range(400))
    assert 160 < sides[0] < 240


def test_prompts_and_seeds_that_were_rated_least_often_come_first(acme: World, bob: Member):
    comparison = measured(acme, seeds=(7, 8))
    mine = [say(acme.owner, comparison) for _ in range(4)]
    assert {rating.prompt for rating in mine} == {0, 1, 2, 3}
    theirs = [say(bob, comparison) for _ in range(4)]
    both = Counter((rating.prompt, rating.left_seed) for rating in mine + theirs)
    assert set(both.values()) == {1}


def test_nobody_is_asked_the_same_twice_and_everybody_everything(acme: World, bob: Member):
    comparison = measured(acme, arms=3)
    for member in (acme.owner, bob):
        done = [say(member, comparison) for _ in range(12)]
        assert len({(pair_of(rating), rating.prompt) for rating in done}) == 12
        assert asked(member, comparison) is None


def test_arms_of_the_same_seed_meet(acme: World):
    comparison = measured(acme, seeds=(7, 8))
    for seed in range(30):
        question = asked(acme.owner, comparison, chance=random.Random(seed))
        assert question.left_seed == question.right_seed


def test_equal_answers_are_never_asked_and_count_as_ties(acme: World):
    comparison = measured(acme, {(0, 7): ["Yes.", "a", "No.", "x"], (1, 7): ["Yes. ", "b", "No.", "x"]})
    rating = say(acme.owner, comparison, "left", question=services.Question(1, 1, 0, 7, 7))
    assert rating.prompt == 1
    assert asked(acme.owner, comparison) is None
    found = rated(comparison)
    assert found.alike == {(0, 1): 0.75}
    assert found.wins.sum(axis=0).tolist() == [[0, 1.5], [2.5, 0]]  # one win, and three ties
    assert preference(comparison).ahead.figure.share.value < 0.7


def test_arms_that_answer_all_the_same_are_equal_and_nothing_is_asked(acme: World):
    comparison = measured(acme, {(0, 7): ["a", "b"], (1, 7): ["a", "b"]})
    assert asked(acme.owner, comparison) is None
    assert rated(comparison).wins.sum(axis=0).tolist() == [[0, 1], [1, 0]]
    answer = signed_in(acme.owner).get(f"/comparisons/{comparison.pk}/rate/")
    assert "All answers are the same" in answer.content.decode()


# ── What the page tells ──


def test_the_page_asks_and_tells_nothing_of_whose_answers_they_are(acme: World, bob: Member):
    seeds = (70_077, 80_088)
    texts = {(arm, seed): [f"{arm} says {prompt} {seed % 2}" for prompt in range(4)] for arm in (0, 1) for seed in seeds}
    comparison = measured(acme, texts, seeds=seeds)
    for rater in (acme.owner, bob):
        for _ in range(2):
            say(rater, comparison)
    answer = signed_in(bob).get(f"/comparisons/{comparison.pk}/rate/")
    told = answer.content.decode() + repr(dict(answer.headers)) + repr(answer.cookies)
    hidden = ["Quokka", "Numbat", acme.base.name, "70077", "80088", acme.run.plugin, acme.run.name]
    hidden += [str(arm.pk) for arm in comparison.arms.all()] + [str(run.run_id) for arm in comparison.arms.all() for run in arm.runs.all()]
    assert "Which answer is better?" in told
    assert [each for each in hidden if each in told] == []
    assert answer["Cache-Control"] == "no-store"


def test_the_seal_is_read_by_nobody_and_of_one_length(acme: World, comparison: Comparison):
    one = services.sealed(acme.owner, comparison, services.Question(0, 0, 1, 1, 1))
    other = services.sealed(acme.owner, comparison, services.Question(999, 12, 103, 4_294_967_295, 4_294_967_295))
    assert len(one) == len(other)
    assert one != services.sealed(acme.owner, comparison, services.Question(0, 0, 1, 1, 1))
    assert b"left" not in base64.urlsafe_b64decode(one)


def test_answers_are_shown_as_they_are_and_do_nothing(acme: World):
    comparison = measured(acme, {(0, 7): ["<script>alert(1)</script>\n  two"], (1, 7): ["<img src=x onerror=alert(2)>"]})
    body = signed_in(acme.owner).get(f"/comparisons/{comparison.pk}/rate/").content.decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\n  two" in body
    assert "<img" not in body


# ── Casting ──


def test_a_rating_says_which_arm_was_better_and_its_record_names_none(acme: World, comparison: Comparison):
    browser = signed_in(acme.owner)
    page = browser.get(f"/comparisons/{comparison.pk}/rate/")
    answer = browser.post(f"/comparisons/{comparison.pk}/rate/", {"question": token_of(page), "better": "right"})
    assert answer.status_code == 302
    made = Rating.objects.get()
    shown = page.content.decode()
    text = {arm: f">{arm}7{made.prompt}.<" for arm in (0, 1)}
    assert shown.index(text[made.left.number]) < shown.index(text[made.right.number])
    assert (made.better, made.user, made.by_guest) == ("right", acme.owner.user, False)
    record = AuditRecord.objects.get(verb="rating.cast")
    assert record.change == {"better": [None, "right"]}
    assert LORA not in record.label


def test_htmx_gets_the_next_question_at_once(acme: World, comparison: Comparison):
    browser = signed_in(acme.owner)
    token = token_of(browser.get(f"/comparisons/{comparison.pk}/rate/"))
    answer = browser.post(f"/comparisons/{comparison.pk}/rate/", {"question": token, "better": "equal"}, headers={"HX-Request": "true"})
    assert answer.status_code == 200
    assert "<html" not in answer.content.decode()
    assert "1 rated" in answer.content.decode()
    assert token_of(answer) != token


def test_the_same_question_is_rated_once(acme: World, comparison: Comparison):
    browser = signed_in(acme.owner)
    token = token_of(browser.get(f"/comparisons/{comparison.pk}/rate/"))
    for status in (302, 422):
        answer = browser.post(f"/comparisons/{comparison.pk}/rate/", {"question": token, "better": "left"})
        assert answer.status_code == status
    assert "You have rated these two answers already" in answer.content.decode()
    assert Rating.objects.count() == AuditRecord.objects.filter(verb="rating.cast").count() == 1


def test_sides_cannot_be_swapped_to_rate_a_pair_twice(acme: World, comparison: Comparison):
    say(acme.owner, comparison, question=services.Question(0, 0, 1, 7, 7))
    with pytest.raises(UserError, match="already"):
        say(acme.owner, comparison, question=services.Question(0, 1, 0, 7, 7))


@pytest.mark.django_db(transaction=True)
def test_of_several_tabs_at_once_one_rates(acme: World, comparison: Comparison):
    browser, path = signed_in(acme.owner), f"/comparisons/{comparison.pk}/rate/"
    sides = [services.Question(0, *order, 7, 7) for order in ((0, 1), (1, 0))]
    tokens = [services.sealed(acme.owner, comparison, sides[number % 2]) for number in range(TIMES)]
    answers = at_once(lambda number: browser.post(path, {"question": tokens[number], "better": "left"}).status_code)
    assert sorted(answers) == [302] + [422] * (TIMES - 1)
    assert Rating.objects.count() == 1


@pytest.mark.parametrize("token", ["", "nonsense", "gAAAAAB" + "A" * 200])
def test_what_was_not_asked_is_not_rated(acme: World, comparison: Comparison, token: str):
    answer = signed_in(acme.owner).post(f"/comparisons/{comparison.pk}/rate/", {"question": token, "better": "left"})
    assert answer.status_code == 422
    assert "no longer open" in answer.content.decode()
    assert token_of(answer)
    assert not Rating.objects.exists()


def test_another_ones_question_and_another_comparisons_are_not_rated(acme: World, bob: Member, comparison: Comparison):
    question = services.Question(0, 0, 1, 7, 7)
    other = measured(acme)
    for token in (services.sealed(bob, comparison, question), services.sealed(acme.owner, other, question)):
        with pytest.raises(UserError, match="no longer open"):
            services.cast(acme.owner, comparison, token=token, better="left")


def test_a_question_lasts_a_day(acme: World, comparison: Comparison, monkeypatch: pytest.MonkeyPatch):
    token = services.sealed(acme.owner, comparison, services.Question(0, 0, 1, 7, 7))
    monkeypatch.setattr("studio.comparisons.rating.LASTS", -1)
    with pytest.raises(UserError, match="no longer open"):
        services.cast(acme.owner, comparison, token=token, better="left")


def test_measured_again_questions_and_ratings_of_before_do_not_count(acme: World, comparison: Comparison):
    say(acme.owner, comparison)
    token = services.sealed(acme.owner, comparison, services.Question(1, 0, 1, 7, 7))
    comparison.order = None
    make_measured(comparison, held_out={(0, 7): [1.0], (1, 7): [1.0]}, probe={}, kl={}, answers={(0, 7): ["new"], (1, 7): ["newer"]})
    with pytest.raises(UserError, match="no longer open"):
        services.cast(acme.owner, comparison, token=token, better="left")
    assert rated(comparison).ratings == []
    assert preference(comparison) is None


@pytest.mark.parametrize("better", ["", "both", "LEFT"])
def test_a_rating_says_one_of_three(acme: World, comparison: Comparison, better: str):
    with pytest.raises(UserError, match="Choose the better answer"):
        say(acme.owner, comparison, better)


def test_before_it_was_measured_nothing_is_asked(acme: World):
    comparison = make_comparison(acme, state=Comparison.State.RUNNING)
    browser = signed_in(acme.owner)
    assert "Nothing to rate at the moment" in browser.get(f"/comparisons/{comparison.pk}/rate/").content.decode()
    answer = browser.post(f"/comparisons/{comparison.pk}/rate/", {"question": "x", "better": "left"})
    assert answer.status_code == 422


@pytest.mark.parametrize("ended", ["failed", "stopped"])
def test_rating_goes_on_with_what_stands_where_measuring_again_came_to_nothing(
    acme: World, gus: Member, comparison: Comparison, ended: str
):
    for each in ArmRun.objects.filter(arm__comparison=comparison):
        Order.objects.filter(pk=each.run.order_id).update(status="succeeded")
    kept = say(gus, comparison)
    first = comparison.order_id
    again(acme.owner, comparison)
    comparison.refresh_from_db()
    with pytest.raises(UserError, match="no answers to rate at the moment"):
        services.cast(gus, comparison, token="x", better="left")
    assert "Which answer is better?" not in signed_in(gus).get("/").content.decode()
    Order.objects.filter(pk=comparison.order_id).update(status=ended, error="Out of memory.", ended_at=timezone.now())
    rounds.advance()
    comparison.refresh_from_db()
    assert (comparison.state, comparison.order_id) == (ended, first)
    assert rated(comparison).counted == [kept]
    assert "Which answer is better?" in signed_in(gus).get("/").content.decode()
    say(gus, comparison)
    assert preference(comparison).ratings == 2


# ── Undoing ──


def test_the_last_rating_is_undone_and_asked_again_as_it_stood(acme: World, comparison: Comparison):
    browser = signed_in(acme.owner)
    first, last = say(acme.owner, comparison), say(acme.owner, comparison)
    answer = browser.post(f"/comparisons/{comparison.pk}/rate/", {"undo": "1"}, headers={"HX-Request": "true"})
    assert list(Rating.objects.all()) == [first]
    assert AuditRecord.objects.get(verb="rating.undo").change == {"better": ["left", None]}
    again = services.opened(acme.owner, Comparison.objects.get(pk=comparison.pk), token_of(answer))
    assert (again.prompt, again.left, again.right) == (last.prompt, last.left.number, last.right.number)
    without_script = browser.post(f"/comparisons/{comparison.pk}/rate/", {"undo": "1"}, follow=True)
    again = services.opened(acme.owner, Comparison.objects.get(pk=comparison.pk), token_of(without_script))
    assert again.prompt == first.prompt
    assert not Rating.objects.exists()


def test_what_is_older_than_ten_minutes_or_another_ones_stays(acme: World, bob: Member, comparison: Comparison):
    made = say(acme.owner, comparison)
    assert signed_in(bob).post(f"/comparisons/{comparison.pk}/rate/", {"undo": "1"}).status_code == 422
    Order.objects.filter(pk=comparison.order_id).update(created_at=timezone.now() - timedelta(days=1))
    Rating.objects.filter(pk=made.pk).update(created_at=timezone.now() - timedelta(minutes=11))
    with pytest.raises(UserError, match="nothing to undo"):
        services.undo(acme.owner, comparison)
    assert Rating.objects.count() == 1


# ── Guests ──


def test_a_guest_finds_it_at_home_and_rates_without_names(acme: World, gus: Member, comparison: Comparison):
    guest = signed_in(gus)
    home = guest.get("/").content.decode()
    path = f"/shared/comparisons/{comparison.pk}/"
    assert path in home
    page = guest.get(path)
    for body in (home, page.content.decode()):
        assert [name for name in (LORA, FULL, comparison.name, acme.base.name) if name in body] == []
    assert guest.post(path, {"question": token_of(page), "better": "left"}).status_code == 302
    assert Rating.objects.get().by_guest
    assert "1 rated by you" in guest.get("/").content.decode()


def test_unsharing_closes_it_at_once(acme: World, gus: Member, comparison: Comparison):
    guest, path = signed_in(gus), f"/shared/comparisons/{comparison.pk}/"
    token = token_of(guest.get(path))
    assert signed_in(acme.owner).post(f"/comparisons/{comparison.pk}/share/", {"shared": "off"}).status_code == 302
    assert guest.get(path).status_code == guest.post(path, {"question": token, "better": "left"}).status_code == 404
    assert path not in guest.get("/").content.decode()
    assert not Rating.objects.exists()
    signed_in(acme.owner).post(f"/comparisons/{comparison.pk}/share/")
    assert guest.get(path).status_code == 200
    assert [each.verb for each in AuditRecord.objects.filter(verb__startswith="comparison.").order_by("pk")][-2:] == [
        "comparison.unshare",
        "comparison.share",
    ]


def test_a_race_with_unsharing_counts_nothing(acme: World, gus: Member, comparison: Comparison):
    """The view had found the row while it was still shared."""
    token = services.sealed(gus, comparison, services.Question(0, 0, 1, 7, 7))
    services.unshare(acme.owner, Comparison.objects.get(pk=comparison.pk))
    with pytest.raises(Http404):
        services.cast(gus, comparison, token=token, better="left")


def test_guests_of_other_clients_and_other_workspaces_find_nothing(acme: World, rival: World, comparison: Comparison):
    other = create_client(acme.owner, name="Other")
    strangers = [
        make_member(acme.workspace, role="guest", email="gil@example.com", clients=[other]),
        make_member(acme.workspace, role="member", email="mo@example.com", clients=[other]),
        rival.owner,
    ]
    for stranger in strangers:
        for path in (f"/shared/comparisons/{comparison.pk}/", f"/comparisons/{comparison.pk}/rate/"):
            assert signed_in(stranger).get(path).status_code == 404
            assert signed_in(stranger).post(path, {"undo": "1"}).status_code == 404


@pytest.mark.parametrize("role", ["viewer", "guest"])
def test_who_may_only_rate_shares_nothing(acme: World, comparison: Comparison, role: str):
    member = make_member(acme.workspace, role=role, email="vi@example.com", clients=[acme.client])
    assert signed_in(member).get(f"/comparisons/{comparison.pk}/rate/").status_code == 200
    assert signed_in(member).post(f"/comparisons/{comparison.pk}/share/", {"shared": "off"}).status_code == 404


def test_what_has_no_answers_cannot_be_shared(acme: World):
    comparison = make_comparison(acme, state=Comparison.State.RUNNING)
    Comparison.objects.update(shared_at=None)
    with pytest.raises(UserError, match="no answers to rate yet"):
        services.share(acme.owner, comparison)


# ── What it comes to ──


def test_the_preference_is_a_sentence_with_its_sureness(acme: World, bob: Member, gus: Member):
    comparison = measured(acme, {(arm, 7): [f"{arm}.{prompt}" for prompt in range(30)] for arm in (0, 1)})
    for member in (acme.owner, bob, gus):
        for prompt in range(30):
            full = prompt % 5 != member.pk % 5  # four in five
            say(member, comparison, "left" if full else "right", question=services.Question(prompt, 1, 0, 7, 7))
    found = preference(comparison)
    assert re.fullmatch(rf"{FULL} is preferred to {LORA} in 80 % ± \d+ of cases\.", found.sentence)
    assert (found.ratings, found.by_people, found.by_guests, found.raters) == (90, 60, 30, 3)
    assert found.is_settled and found.advice == ""
    assert found.pairs[0].wins == (72, 18, 0)


def test_too_few_ratings_say_so_and_how_many_more_would_do(acme: World, comparison: Comparison):
    assert preference(comparison) is None
    for better in ("left", "left", "right"):
        prompt = Rating.objects.count()
        say(acme.owner, comparison, better, question=services.Question(prompt, 1, 0, 7, 7))
    found = preference(comparison)
    assert found.sentence.startswith(f"{FULL} is preferred to {LORA} in ")
    assert found.sentence.endswith("too close to tell.")
    assert re.fullmatch(r"About \d+ more ratings would tell, if it stays like this\.", found.advice)


def test_ratings_go_home_as_csv(acme: World, gus: Member, comparison: Comparison):
    Arm.objects.filter(comparison=comparison, number=0).update(name="=cmd()")
    say(gus, comparison, question=services.Question(2, 0, 1, 7, 7))
    answer = signed_in(acme.owner).get(f"/comparisons/{comparison.pk}/ratings.csv")
    rows = list(csv.DictReader(io.StringIO(answer.content.decode())))
    told = {name: rows[0][name] for name in ("by", "guest", "prompt", "left", "left_seed", "right", "better")}
    expected = {"by": "gus@example.com", "guest": "yes", "prompt": "3", "left": "'=cmd()", "left_seed": "7", "right": FULL}
    assert told == expected | {"better": "left"}


def test_a_page_asks_as_many_queries_however_much_was_rated(acme: World, bob: Member):
    comparison = measured(acme, arms=4)
    browser = signed_in(bob)
    browser.get(f"/comparisons/{comparison.pk}/rate/")
    with CaptureQueriesContext(connection) as before:
        browser.get(f"/comparisons/{comparison.pk}/rate/")
    for _ in range(20):
        say(acme.owner, comparison)
    with CaptureQueriesContext(connection) as after:
        browser.get(f"/comparisons/{comparison.pk}/rate/")
    assert len(after) == len(before)


def test_the_api_tells_the_scores(acme: World, gus: Member, comparison: Comparison):
    assert acme.api.get(f"comparisons/{make_comparison(acme, state='running').pk}/ratings").json()["arms"] == []
    say(gus, comparison, "right", question=services.Question(2, 0, 1, 7, 7))
    say(acme.owner, comparison, "equal", question=services.Question(2, 0, 1, 7, 7))
    told = acme.api.get(f"comparisons/{comparison.pk}/ratings").json()
    assert (told["ratings"], told["by_guests"], told["settled"]) == (2, 1, False)
    assert [arm["name"] for arm in told["arms"]] == [FULL, LORA]
    assert told["pairs"][0] | {"arm": "", "against": "", "preferred": {}} == {
        "arm": "",
        "against": "",
        "better": 1,
        "worse": 0,
        "equal": 1,
        "alike": 0.0,
        "preferred": {},
    }
    assert 0.5 < told["pairs"][0]["preferred"]["value"] < told["pairs"][0]["preferred"]["high"]
