"""What a run says of its own loss curve: that it explodes, stands still, or learns by heart."""

import pytest

from studio.ml.watching import Watch


def watched(*losses: float) -> Watch:
    watch = Watch(total=1000)
    for loss in losses:
        watch.feed(loss)
    return watch


@pytest.mark.parametrize(
    ("losses", "explodes"),
    [
        ([2.0] * 20 + [40.0] * 3, True),
        ([2.4] + [60.0] * 11, True),  # at once, as with far too high a learning rate
        ([2.4] + [60.0] * 9, False),  # too early to be judged
        ([0.3] + [1.5] * 30, False),  # an easy row at first
        ([2.0, 2.0] + [1.0, 3.0] * 20, False),
        ([60.0] * 30, False),  # as it was
    ],
)
def test_what_does_not_come_back_explodes(losses, explodes):
    assert watched(*losses).exploded is explodes


def test_a_loss_that_stands_still_is_said_so_once():
    watch = watched(*[2.0] * 310)
    assert "has not fallen since step 1" in watch.plateau()
    assert watch.plateau() == ""
    assert watched(*[2.0] * 100).plateau() == ""


def test_rows_are_learnt_by_heart_only_once_something_was_learnt():
    rising = {0: 2.5, 10: 2.0, 20: 2.1, 30: 2.2, 40: 2.3}
    assert "risen since step 10: the run has begun to learn its rows by heart" in watched().overfitting(rising)
    assert "A lower learning rate would help" in watched().overfitting({0: 2.3, 1: 40.0, 2: 50.0, 3: 80.0})
    assert watched().overfitting({0: 2.5, 10: 2.0, 20: 2.1, 30: 2.01, 40: 2.3}) == ""
