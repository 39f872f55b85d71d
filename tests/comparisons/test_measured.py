"""What was measured is read, aligned by row, and refused where it cannot be."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from studio.comparisons.measured import SCHEMA, Asked, Measured, folder_of, read
from studio.comparisons.models import Comparison
from studio.comparisons.rated import Rated
from studio.errors import UserError
from tests.comparisons.house import BASE, make_measured

pytestmark = pytest.mark.django_db


def judged(comparison):
    return read(folder_of(comparison), Asked.of(comparison))


def test_losses_are_aligned_by_the_rows_that_every_result_could_read(acme):
    nan = float("nan")
    held_out = {BASE: [3.0, 4.0, 5.0, 6.0], (0, 1): [2.0, nan, 4.0, 5.0], (1, 1): [1.0, 2.0, 3.0, nan]}
    measured = make_measured(acme.comparison, held_out=held_out, tokens=[10, 11, 12, 13] * 3)
    assert measured.rows("held_out").tolist() == [0, 2]
    assert {key: values.tolist() for key, values in measured.losses("held_out").items()} == {
        BASE: [3.0, 5.0],
        (0, 1): [2.0, 4.0],
        (1, 1): [1.0, 3.0],
    }
    assert measured.tokens("held_out")[0, 1].tolist() == [10, 12]
    assert measured.same_tokens("held_out")
    assert measured.keys == [BASE, (0, 1), (1, 1)]
    assert measured.base_of(1) == -1


def test_divergence_scores_and_memorisation_are_told_by_result(acme):
    answers = {(0, 1): [{"text": "One.", "scores": {"f1": 0.5}, "overlap": 0.25}, {"text": "Two."}], (1, 1): ["Eins.", "Zwei."]}
    Comparison.objects.filter(pk=acme.comparison.pk).update(metrics=[{"kind": "f1"}])
    measured = make_measured(acme.comparison, answers=answers, kl={(0, 1): [0.02] * 12, (1, 1): [0.3] * 12})
    assert measured.kl()[1, 1].tolist() == [0.3] * 12
    assert BASE not in measured.kl()
    assert np.array_equal(measured.scores("f1")[0, 1], [0.5, np.nan], equal_nan=True)
    assert measured.overlap()[0, 1].tolist() == [0.25, 0.0]
    assert [answer.text for answer in measured.answers(1, 1)] == ["Eins.", "Zwei."]
    assert measured.answers(1, 99) == []
    assert len(measured.prompts) == 2
    assert measured.memorised()[0, 1].tolist() == [0.1] * 4


def test_a_comparison_that_was_not_measured_says_so(acme):
    with pytest.raises(UserError, match="not been measured"):
        Measured.of(acme.comparison)


@pytest.mark.parametrize(
    "change",
    [
        {"loss": float("nan")},
        {"loss": -1.0},
        {"loss": None},
        {"kl": float("inf")},
        {"kl": -0.5},
        {"row": -1},
        {"row": 1_000_000},
        {"tokens": 0},
        {"set": "other"},
        {"arm": 7},
        {"seed": 99},
    ],
)
def test_a_row_that_cannot_have_been_measured_is_refused(acme, change):
    make_measured(acme.comparison)
    path = folder_of(acme.comparison) / "rows.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows[:-1], rows[-1] | change], schema=SCHEMA), path)
    with pytest.raises(ValueError):
        judged(acme.comparison)


def test_a_row_that_was_measured_twice_is_refused(acme):
    make_measured(acme.comparison)
    path = folder_of(acme.comparison) / "rows.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows, rows[0]], schema=SCHEMA), path)
    with pytest.raises(ValueError, match="twice"):
        judged(acme.comparison)


@pytest.mark.parametrize(
    "change",
    [{"scores": {"f1": 1.5}}, {"overlap": -1}, {"prompt": 3}, {"prompt": 1}, {"arm": 5}, {"seconds": -1}, {"text": "a" * 30_000}],
)
def test_an_answer_that_cannot_be_is_refused(acme, change):
    make_measured(acme.comparison)
    path = folder_of(acme.comparison) / "answers.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *others]) + "\n")
    with pytest.raises(ValueError):
        judged(acme.comparison)


def test_a_score_by_a_metric_that_nobody_asked_for_is_refused(acme):
    with pytest.raises(UserError) as refused:
        make_measured(acme.comparison, answers={(0, 1): [{"text": "One.", "scores": {"f1": 0.5}}]})
    assert "not asked for" in str(refused.value.__cause__)


@pytest.mark.parametrize("change", [{"arm": 9}, {"seed": 2}, {"arm": -4}, {"arm": -1, "seed": 1}])
def test_results_of_other_arms_and_seeds_are_refused(acme, change):
    make_measured(acme.comparison)
    path = folder_of(acme.comparison) / "facts.json"
    facts = json.loads(path.read_text())
    facts["results"][-1] |= change
    path.write_text(json.dumps(facts))
    Comparison.objects.filter(pk=acme.comparison.pk).update(state=Comparison.State.DONE)
    with pytest.raises(ValueError, match="none of"):
        judged(acme.comparison)
    assert Rated.of(acme.comparison) is None


def test_a_table_with_other_columns_is_refused(acme):
    make_measured(acme.comparison)
    path = folder_of(acme.comparison) / "rows.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["kl"]), path)
    with pytest.raises(ValueError, match="other columns"):
        judged(acme.comparison)


def test_a_small_file_of_very_long_names_is_refused_before_it_is_unpacked(acme):
    make_measured(acme.comparison)
    path = folder_of(acme.comparison) / "rows.parquet"
    long = "a" * 1_000_000
    pq.write_table(pa.Table.from_pylist([row | {"set": long} for row in pq.read_table(path).to_pylist()], schema=SCHEMA), path)
    assert path.stat().st_size < 200_000
    usual, watched = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(watched)
    try:
        with pytest.raises(ValueError, match="a set of rows that there is none of"):
            judged(acme.comparison)
    finally:
        pa.set_memory_pool(usual)
    assert watched.max_memory() < 20 * len(long)  # of 72 rows


@pytest.mark.parametrize(("told", "said"), [({"compression": "zstd"}, "packed"), ({"times": 1000}, "more rows|larger")])
def test_a_table_of_too_many_rows_or_another_packing_is_refused_unread(acme, told, said):
    make_measured(acme.comparison)
    path = folder_of(acme.comparison) / "rows.parquet"
    table = pa.concat_tables([pq.read_table(path)] * told.get("times", 1))
    pq.write_table(table, path, compression=told.get("compression", "snappy"))
    with pytest.raises(ValueError, match=said):
        judged(acme.comparison)
