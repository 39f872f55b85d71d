"""Intervals over seeds and rows: they hold the truth as often as they say, no share is told that means nothing, and it is quick."""

import math
import time

import numpy as np
import pytest

from studio.comparisons.statistics import Bootstrap, Draws, best_of, kept_share, over_seeds, seeds_needed, student


def measured(chance: np.random.Generator, mean: float, row: np.ndarray, seeds: int, *, of_seeds: float, left: float) -> np.ndarray:
    """(seeds, rows) of an arm: what is hard about each row, each seed's own luck, and what is left."""
    return mean + row + chance.normal(0, of_seeds, (seeds, 1)) + chance.normal(0, left, (seeds, row.size))


@pytest.mark.parametrize(("seeds", "rows", "of_seeds"), [(3, 60, 0.05), (3, 60, 0.005), (2, 60, 0.03), (5, 100, 0.05)])
def test_intervals_hold_the_truth_in_about_95_of_100_cases(seeds, rows, of_seeds):
    cases, differences, shares = 300, 0, 0
    for case in range(cases):
        chance = np.random.default_rng(case)
        row = chance.normal(0, 0.3, rows)
        bootstrap = Bootstrap(rows, resamples=600, seed=case)
        one = bootstrap.mean(0, measured(chance, 2.0, row, seeds, of_seeds=of_seeds, left=0.1))
        other = bootstrap.mean(1, measured(chance, 1.8, row, seeds, of_seeds=of_seeds, left=0.1))
        before = bootstrap.mean("base", 2.8 + row)
        differences += (one - other).interval().holds(0.2)
        share = kept_share(before - one, before - other)
        shares += share is not None and share.holds(0.8)
    assert 0.915 <= differences / cases <= 0.99
    assert 0.915 <= shares / cases <= 0.99


@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.706), (3, 4.303), (10, 2.262)])
def test_a_figure_of_each_seed_has_students_interval(seeds, quantile):
    values = np.random.default_rng(6).normal(100, 3, seeds)
    found = over_seeds("time", values.tolist()).interval()
    assert found.value == pytest.approx(values.mean())
    assert found.half == pytest.approx(quantile * values.std(ddof=1) / math.sqrt(seeds), rel=0.12)
    assert over_seeds("time", [7.0] * seeds).interval().half == 0


def test_rows_weigh_by_their_tokens():
    draws = Bootstrap(3).mean(0, [np.array([10.0, 20.0, 60.0])], np.array([10.0, 10.0, 20.0]))
    assert draws.value == pytest.approx(90 / 40)


def test_one_seed_tells_of_the_rows_alone():
    alike = Bootstrap(4).mean(0, np.full((1, 4), 2.0)).interval()
    assert (alike.low, alike.high) == (2.0, 2.0)
    assert Bootstrap(4).mean(0, np.array([[2.0] * 4, [3.0] * 4])).interval().high > 3.0  # two seeds say little, and it shows


def test_the_same_figures_give_the_same_interval():
    table = np.random.default_rng(1).random((3, 50))
    assert Bootstrap(50).mean(0, table).interval() == Bootstrap(50).mean(0, table).interval()


def test_a_hard_row_does_not_blur_what_differs():
    row = np.random.default_rng(1).normal(0, 5, 50)
    bootstrap = Bootstrap(50)
    one, other = bootstrap.mean(0, (10 + row)[None]), bootstrap.mean(1, (9 + row)[None])
    assert (one - other).interval().half < 1e-9
    assert one.interval().half > 1


def test_no_share_is_told_of_a_gain_that_may_be_nothing():
    bootstrap = Bootstrap(30)
    row = np.random.default_rng(2).normal(0, 1, (1, 30))
    nothing = bootstrap.mean(0, row * 0 + np.random.default_rng(3).normal(0, 1, (1, 30)))
    assert kept_share(bootstrap.mean(1, row * 0 + 1.0), nothing) is None
    assert kept_share(bootstrap.mean(1, row * 0 + 1.0), bootstrap.mean(2, row * 0 + 2.0)).value == pytest.approx(0.5)


def test_how_likely_an_arm_is_the_best_adds_up():
    bootstrap = Bootstrap(40)
    chance = np.random.default_rng(4)
    row = chance.normal(0, 1, 40)
    draws = {
        arm: bootstrap.mean(arm, measured(chance, mean, row, 3, of_seeds=0.01, left=0.05)) for arm, mean in enumerate((2.0, 1.5, 1.51))
    }
    likely = best_of(draws)
    assert sum(likely.values()) == pytest.approx(1)
    assert likely[0] == 0
    assert (draws[1].each < draws[0].each).all()
    assert best_of({}) == {}


def test_a_loss_becomes_a_perplexity():
    draws = Draws(math.log(20), np.array([math.log(18), math.log(20), 5000.0]))
    assert draws.exp().value == pytest.approx(20)
    assert math.isinf(draws.exp().each[2])


def test_more_seeds_are_asked_for_only_where_they_would_help():
    one, other = [2.00, 2.04, 1.96], [1.97, 2.01, 1.93]
    needed = seeds_needed(0.05, one, other, rows_error=0.001)
    assert needed is not None
    assert 3 < needed <= 10
    spread = math.sqrt(0.04**2 * 2 / needed)
    assert student(needed - 1) * spread < 0.05
    assert seeds_needed(0.05, one, other, rows_error=0.1) is None  # rows are what lacks
    assert seeds_needed(0.05, [2.0], [1.9], rows_error=0.0) is None


def test_4000_resamples_of_six_arms_are_quick():
    chance = np.random.default_rng(5)
    tables, tokens = [chance.random((3, 200)) * 50 for _ in range(6)], chance.integers(5, 80, 200).astype(float)
    began = time.process_time()
    bootstrap = Bootstrap(200)
    draws = {arm: bootstrap.mean(arm, table, tokens) for arm, table in enumerate(tables)}
    for draw in draws.values():
        draw.interval()
    best_of(draws)
    assert time.process_time() - began < 1
