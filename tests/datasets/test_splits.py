"""Rows held back for validation: the share asked for, evenly spread, nothing parted, the same whatever the order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.datasets import splitting
from studio.datasets.splitting import NEW, TRAIN, VALIDATION

ROWS = st.lists(
    st.tuples(
        st.integers(0, 30),  # hash: small, so that rows repeat
        st.integers(0, 4),  # stratum
        st.integers(0, 12),  # together, 0: nothing
        st.integers(-1, 8),  # near-duplicate group, -1: alone
        st.sampled_from([NEW, NEW, NEW, TRAIN, VALIDATION]),
    ),
    min_size=1,
    max_size=200,
)
PERCENT = st.sampled_from([0, 1, 5, 10, 25, 50])
SEED = st.integers(0, 2**32 - 1)


def columns(rows):
    hashes, strata, together, groups, kept = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "hashes": hashes.astype(np.uint64),
        "strata": strata.astype(np.uint64),
        "together": together.astype(np.uint64),
        "groups": groups.astype(np.int64),
        "kept": kept.astype(np.int8),
    }


def drawn(found, names=("strata", "together", "groups", "kept"), **settings):
    return splitting.validation(found["hashes"], **{name: found[name] for name in names}, **settings)


def units_of(found):
    """The units by the slow way: rows join until nothing changes."""
    labels = list(range(len(found["hashes"])))
    changed = True
    while changed:
        changed = False
        for name, nothing in (("hashes", None), ("together", 0), ("groups", -1)):
            least: dict[int, int] = {}
            values = found[name].tolist()
            for label, value in zip(labels, values, strict=True):
                if value != nothing:
                    least[value] = min(label, least.get(value, label))
            for row, value in enumerate(values):
                if value != nothing and labels[row] != least[value]:
                    labels[row], changed = least[value], True
    return np.array(labels)


@given(ROWS, PERCENT, SEED)
def test_nothing_that_belongs_together_is_ever_parted(rows, percent, seed):
    found = columns(rows)
    held_back = drawn(found, percent=percent, seed=seed)
    labels = units_of(found)
    for label in set(labels.tolist()):
        assert len(set(held_back[labels == label].tolist())) == 1


@given(ROWS, PERCENT, SEED, st.randoms(use_true_random=False))
def test_the_same_rows_are_drawn_whatever_their_order(rows, percent, seed, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    one = drawn(columns(rows), percent=percent, seed=seed)
    other = drawn(columns([rows[number] for number in order]), percent=percent, seed=seed)
    assert (one[order] == other).all()


@given(ROWS, PERCENT, SEED)
def test_no_more_rows_are_drawn_than_the_share_but_where_every_unit_is_larger(rows, percent, seed):
    found = columns(rows)
    held_back = drawn(found, ("strata", "together", "groups"), percent=percent, seed=seed)
    wanted = max(round(len(rows) * percent / 100), 1 if percent and len(rows) >= splitting.ALWAYS_HELD_BACK else 0)
    smallest = int(np.unique(units_of(found), return_counts=True)[1].min())
    assert held_back.sum() <= max(min(wanted, len(rows) - 1), smallest if wanted else 0)
    assert held_back.sum() <= len(rows) / 2 + 1
    assert not held_back.all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=300), PERCENT, SEED)
def test_each_stratum_gives_its_share_to_within_one_row(strata, percent, seed):
    hashes = np.arange(len(strata), dtype=np.uint64)
    held_back = splitting.validation(hashes, percent=percent, seed=seed, strata=np.array(strata, dtype=np.uint64))
    plain = splitting.validation(hashes, percent=percent, seed=seed)
    assert held_back.sum() == plain.sum()
    for stratum in set(strata):
        here = np.array(strata) == stratum
        assert abs(held_back[here].sum() - here.sum() * percent / 100) <= 1


@given(ROWS, PERCENT, SEED)
def test_a_row_keeps_its_split_unless_it_belongs_to_one_that_was_held_back(rows, percent, seed):
    found = columns(rows)
    held_back = drawn(found, percent=percent, seed=seed)
    assert held_back[found["kept"] == VALIDATION].all()
    labels = units_of(found)
    before = set(labels[found["kept"] == VALIDATION].tolist())
    for row in np.flatnonzero(found["kept"] == TRAIN).tolist():
        assert held_back[row] == (labels[row] in before)


@given(st.integers(50, 400), st.integers(0, 20), st.sampled_from([5, 10, 25]), SEED)
@settings(max_examples=30)
def test_a_dataset_that_grows_keeps_nearly_all_of_its_validation_rows(number, more, percent, seed):
    hashes = np.arange(number + more, dtype=np.uint64)
    before = splitting.validation(hashes[:number], percent=percent, seed=seed)
    after = splitting.validation(hashes, percent=percent, seed=seed)[:number]
    assert (before & ~after).sum() <= more


def test_a_chain_of_likenesses_is_one_unit():
    # 0~1 by conversation, 1~2 by near-duplicate group, 2~3 by conversation: and so on, as far as it goes.
    number = 10_000
    together = (np.arange(number) // 2 + 1).astype(np.uint64)
    groups = (np.arange(number) + 1) // 2
    hashes = np.arange(number, dtype=np.uint64)
    assert not splitting.validation(hashes, percent=10, seed=1, together=together, groups=groups).any()
    assert (splitting.connected(number, np.arange(number - 1), np.arange(1, number)) == 0).all()


def test_where_every_conversation_is_larger_than_the_share_the_smallest_is_held_back():
    together = np.repeat(np.array([1, 2, 3, 4], dtype=np.uint64), [30, 30, 10, 30])
    held_back = splitting.validation(np.arange(100, dtype=np.uint64), percent=5, seed=3, together=together)
    assert held_back[60:70].all()
    assert held_back.sum() == 10


def test_what_a_stratum_of_large_conversations_cannot_give_others_do():
    number = 1000
    strata = (np.arange(number) // 100 + 1).astype(np.uint64)
    together = (np.arange(number) // 10 + 1).astype(np.uint64)
    held_back = splitting.validation(np.arange(number, dtype=np.uint64), percent=5, seed=3, strata=strata, together=together)
    assert held_back.sum() == 50


@pytest.mark.parametrize("seed", [1, 42])
def test_a_sample_is_the_same_rows_in_any_order_and_grows_into_a_larger_one(seed):
    hashes = np.arange(100, dtype=np.uint64) * np.uint64(977)
    few, more = (set(hashes[splitting.sample(hashes, number, seed=seed)].tolist()) for number in (20, 50))
    assert few < more
    assert few == set(hashes[::-1][splitting.sample(hashes[::-1], 20, seed=seed)].tolist())
