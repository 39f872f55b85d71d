"""What is looked for once an hour: an error of one look ends neither the others nor the rounds."""

from studio.orders.kinds import SWEEPS
from studio.orders.management.commands.reconcile import swept


def test_a_sweep_that_fails_is_logged_with_its_traceback_and_the_others_go_on(db, monkeypatch, caplog):
    def failing():
        raise OSError("The disk is read-only")

    monkeypatch.setattr("studio.orders.management.commands.reconcile.SWEEPS", [failing, *SWEEPS, lambda: ["did something"]])
    assert swept()[-1] == "did something"
    assert "in failing" in caplog.text
    assert "The disk is read-only" in caplog.text
