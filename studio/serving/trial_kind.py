"""The order that asks a whole prompt set of several models."""

from pathlib import Path
from typing import Any

from studio.orders.kinds import OrderKind
from studio.orders.models import Order
from studio.serving import trials
from studio.serving.models import Trial


class TrialKind(OrderKind):
    kind = "trial"
    called = "Trials of prompt sets"
    time_limit = 12 * 3600

    def payload(self, order: Order) -> dict[str, Any]:
        return trials.payload(trial_of(order), order).model_dump(mode="json")

    def target(self, order: Order) -> Path:
        return order.folder / "result"

    def title(self, order: Order) -> str:
        return f"Trial of {trial_of(order).name}"

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        if result.get("folder"):  # else it was stopped before the first answer
            trials.take_in(trial_of(order), Path(result["folder"]))


def trial_of(order: Order) -> Trial:
    found: Trial = order.trials.get()
    return found
