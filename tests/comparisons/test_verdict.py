"""The verdict of a comparison: its figures, its words, and how sure they are."""

import pytest

from studio.comparisons import verdict
from studio.comparisons.figures import Verdict
from tests.comparisons.house import make_measured
from tests.fixtures import make_comparison


@pytest.mark.django_db
def test_a_verdict_is_found_and_stored(acme):
    comparison = make_comparison(acme, seeds=(1, 2, 3))
    make_measured(comparison)
    found = verdict.renew(comparison)
    comparison.refresh_from_db()
    assert Verdict.of(comparison) == found
    assert found.arm(1).gain.value == pytest.approx(0.78)
    assert found.sentence.startswith("LoRA keeps ")
