"""Which release answers: by a key always the same one, and over many keys the share that was asked for."""

import pytest
from django.utils import timezone

from studio.errors import UserError
from studio.serving.choosing import choose
from tests.fixtures import make_deployment, make_release

REQUESTS = 20_000


@pytest.fixture
def slot_with_canary(acme):
    main = make_release(acme.owner, acme.artifact, stage="approved")
    deployment = make_deployment(acme.project, main)
    deployment.canary, deployment.canary_percent = make_release(acme.owner, acme.artifact, version=(1, 1, 0), stage="approved"), 10
    return deployment


def answered_by_canary(deployment, keys):
    return {key for key in keys if choose(deployment, key) == deployment.canary}


@pytest.mark.parametrize("percent", [1, 10, 50, 99])
def test_the_canary_answers_its_share_of_the_keys(slot_with_canary, percent):
    slot_with_canary.canary_percent = percent
    share = len(answered_by_canary(slot_with_canary, [f"conversation {number}" for number in range(REQUESTS)])) / REQUESTS
    assert share == pytest.approx(percent / 100, abs=0.025)  # seven standard deviations at a half, for each run draws other ids


def test_without_a_key_each_request_is_drawn(slot_with_canary):
    slot_with_canary.canary_percent = 50
    answers = [choose(slot_with_canary) == slot_with_canary.canary for _ in range(REQUESTS)]
    assert sum(answers) / REQUESTS == pytest.approx(0.5, abs=0.025)  # seven standard deviations


def test_the_same_key_is_answered_by_the_same_release(slot_with_canary):
    for key in ("ana", "", "😀", "a" * 5000, "\ud800"):
        assert len({choose(slot_with_canary, key).pk for _ in range(20)}) == 1


def test_a_share_that_grows_keeps_those_it_has(slot_with_canary):
    keys = [str(number) for number in range(2000)]
    few = answered_by_canary(slot_with_canary, keys)
    slot_with_canary.canary_percent = 30
    assert few < answered_by_canary(slot_with_canary, keys)


def test_another_canary_meets_other_people(acme, slot_with_canary):
    keys = [str(number) for number in range(2000)]
    first = answered_by_canary(slot_with_canary, keys)
    slot_with_canary.canary = make_release(acme.owner, acme.artifact, version=(1, 2, 0), stage="approved")
    second = answered_by_canary(slot_with_canary, keys)
    assert len(first & second) < len(first) / 3


def test_without_a_canary_the_release_answers(acme):
    release = make_release(acme.owner, acme.artifact, stage="approved")
    deployment = make_deployment(acme.project, release)
    assert {choose(deployment, str(number)) for number in range(200)} == {release}


def test_where_nothing_answers_a_sentence_says_so(acme, slot_with_canary):
    with pytest.raises(UserError, match="Nothing answers at in-house/empty yet"):
        choose(make_deployment(acme.project, slug="empty"))
    slot_with_canary.archived_at = timezone.now()
    with pytest.raises(UserError, match="archived, so it answers nothing"):
        choose(slot_with_canary)
