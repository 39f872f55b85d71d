"""Scores of who was preferred to whom: against strengths that are known, and against another way to compute them."""

import numpy as np
import pytest

from studio.comparisons.bradley_terry import Share, more_for, scores

RNG = np.random.default_rng(11)


def ratings(strengths, *, count, prompts=20, moods=0.0, ties=0.2):
    """`count` ratings of arms that are so strong; `moods` is how far a prompt can favour an arm."""
    k = len(strengths)
    found = np.zeros((prompts, k, k))
    favour = RNG.normal(0, moods, (prompts, k))
    for _ in range(count):
        prompt, (one, other) = RNG.integers(prompts), RNG.choice(k, 2, replace=False)
        odds = strengths[one] - strengths[other] + favour[prompt, one] - favour[prompt, other]
        chance = 1 / (1 + np.exp(-odds))
        tied = 4 * ties * chance * (1 - chance)
        if RNG.random() < tied:
            found[prompt, [one, other], [other, one]] += 0.5
        else:
            first, second = (one, other) if RNG.random() < (chance - tied / 2) / (1 - tied) else (other, one)
            found[prompt, first, second] += 1
    return found


def by_hunter(wins, *, steps=5000):
    """Hunter's MM algorithm for the same likelihood, with no line in common. An arm that nobody sees is the prior: half won, half lost."""
    total, k = wins.sum(axis=0), wins.shape[1]
    seen = np.zeros((k + 1, k + 1))
    seen[:k, :k] = total
    seen[:k, k] = seen[k, :k] = 0.5
    power = np.ones(k + 1)
    for _ in range(steps):
        met = seen + seen.T
        power = seen.sum(axis=1) / (met / (power[:, None] + power[None, :])).sum(axis=1)
        power /= power[k]
    return np.log(power[:k]) - np.log(power[:k]).mean()


@pytest.mark.parametrize("strengths", [[0.0, 0.7], [0.0, 0.3, 1.0, 2.5], [0.0, 6.0, 6.2]])
def test_newton_and_mm_find_the_same_scores(strengths):
    wins = ratings(strengths, count=120)
    assert scores(wins).strengths == pytest.approx(by_hunter(wins), abs=1e-6)


def test_many_ratings_find_the_strengths_that_they_were_made_of():
    true = np.array([0.0, 0.5, 1.5])
    found = scores(ratings(true, count=12_000, ties=0.0)).strengths
    assert found - found[0] == pytest.approx(true, abs=0.12)


@pytest.mark.parametrize(
    ("count", "moods"),
    [(40, 0.0), (200, 1.0)],
)
def test_the_interval_holds_the_true_share_about_as_often_as_it_says(count, moods):
    odds = 0.5 + RNG.normal(0, moods * 2**0.5, 40_000)
    true = (1 / (1 + np.exp(-odds))).mean()
    shares = [scores(ratings([0.0, 0.5], count=count, moods=moods)).share(1, 0) for _ in range(200)]
    held = np.mean([share.low <= true <= share.high for share in shares])
    assert held > 0.87


def test_prompts_that_favour_one_arm_widen_the_interval():
    """A hundred people on two prompts say less than a hundred prompts."""
    apart, together = np.zeros((100, 2, 2)), np.zeros((2, 2, 2))
    apart[:50, 0, 1] = apart[50:, 1, 0] = 1
    together[0, 0, 1] = together[1, 1, 0] = 50
    assert scores(together).share(0, 1).half > 2 * scores(apart).share(0, 1).half


def test_an_arm_that_always_won_stays_finite_and_unsure_of_itself():
    wins = np.zeros((3, 2, 2))
    wins[:, 1, 0] = 1
    share = scores(wins).share(1, 0)
    assert 0.8 < share.value < 0.99
    assert share.low < 0.5
    assert not share.is_settled


def test_without_ratings_nothing_is_told():
    share = scores(np.zeros((4, 3, 3))).share(0, 2)
    assert share.value == pytest.approx(0.5)
    assert share.half > 0.4


def test_ties_alone_are_even_and_become_sure():
    few, many = (np.full((count, 2, 2), 0.5) for count in (5, 400))
    for wins in (few, many):
        wins[:, [0, 1], [0, 1]] = 0
    assert scores(many).share(0, 1).value == pytest.approx(0.5)
    assert scores(many).share(0, 1).half < 0.06 < scores(few).share(0, 1).half


def test_shares_of_two_are_one_together():
    found = scores(ratings([0.0, 0.4, 0.9], count=60))
    assert found.share(0, 1).value + found.share(1, 0).value == pytest.approx(1)
    assert found.share(0, 1).low == pytest.approx(1 - found.share(1, 0).high)
    assert np.mean([found.share_of(arm).value for arm in range(3)]) == pytest.approx(0.5)


def test_arms_that_never_met_are_compared_by_those_that_both_met():
    wins = np.zeros((30, 3, 3))
    wins[:, 0, 1] = wins[:, 1, 2] = 2
    wins[:, 1, 0] = wins[:, 2, 1] = 1
    share = scores(wins).share(0, 2)
    assert share.value > scores(wins).share(0, 1).value > 0.6


def test_how_many_more_ratings_is_told_until_it_is_steady():
    assert more_for(Share(0.6, 0.4, 0.8), 25) == 75  # half as wide takes four times as many
    assert more_for(Share(0.8, 0.6, 0.9), 25) == 0
    assert more_for(Share(0.5, 0.42, 0.58), 150) == 0
    assert more_for(Share(0.5, 0.3, 0.7), 25) == 75
    assert more_for(Share(0.501, 0.3, 0.7), 25, precise=0) == 2000
