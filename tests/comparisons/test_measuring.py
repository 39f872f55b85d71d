"""What a worker says that it measured is judged before the verdict reads it."""

import json

import pytest

from studio.comparisons import services
from studio.comparisons.measured import Measured, folder_of
from studio.comparisons.measuring_kind import MeasuringKind
from studio.comparisons.models import Comparison
from studio.errors import UserError
from studio.orders.kinds import KINDS
from tests.comparisons.house import make_measured
from tests.fixtures import make_comparison


def test_runs_that_left_nothing_are_not_measured(acme):
    comparison = make_comparison(acme, state=Comparison.State.RUNNING)
    services.measure(acme.owner, comparison)
    with pytest.raises(UserError, match="nothing to measure"):
        KINDS["comparison"].payload(comparison.order)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("facts.json", "{}"),
        ("facts.json", '{"results": [{"arm": 0, "seed": 1, "size": -1}]}'),
        ("answers.jsonl", "[]\n"),
        ("rows.parquet", "PAR1"),
    ],
)
def test_what_cannot_have_been_measured_ends_nothing(acme, file, content):
    comparison = acme.comparison
    make_measured(comparison)
    Comparison.objects.filter(pk=comparison.pk).update(state=Comparison.State.MEASURING, verdict=None)
    folder = folder_of(comparison)
    (folder / file).write_text(content)
    with pytest.raises((ValueError, OSError)):
        MeasuringKind().succeeded(comparison.order, {"folder": str(folder)})
    comparison.refresh_from_db()
    assert (comparison.state, comparison.verdict) == (Comparison.State.MEASURING, None)


def test_a_file_that_is_larger_than_any_is_refused_unread(acme, monkeypatch):
    comparison = acme.comparison
    make_measured(comparison)
    monkeypatch.setattr("studio.comparisons.measured.LARGEST_TEXTS", 10)
    with pytest.raises(UserError) as refused:
        Measured.of(comparison)
    assert "larger than any" in str(refused.value.__cause__)


def test_a_measuring_that_was_stopped_leaves_no_verdict(acme):
    comparison = acme.comparison
    make_measured(comparison)
    Comparison.objects.filter(pk=comparison.pk).update(state=Comparison.State.MEASURING)
    MeasuringKind().succeeded(comparison.order, {})
    comparison.refresh_from_db()
    assert comparison.state == Comparison.State.MEASURING


def test_control_characters_of_an_answer_go_no_further(acme):
    measured = make_measured(acme.comparison, answers={(0, 1): ["a\x00b\x1b[31mc"], (1, 1): ["d"]})
    assert "\x00" not in measured.answers(0, 1)[0].text
    assert json.dumps(measured.answers(1, 1)[0].text) == '"d"'
