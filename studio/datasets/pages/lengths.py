"""How long a version's rows are in the tokens of a base model: the card of its overview, and what a max length would cost."""

from typing import Any

import numpy as np
import numpy.typing as npt
from django.http import HttpRequest

from studio.basemodels.models import BaseModel
from studio.datasets import services
from studio.datasets.models import DatasetVersion, Measurement
from studio.orders.models import Order
from studio.training import TokenFacts, TrainConfig
from studio.training.checks import spaced
from studio.workspaces.models import ScopedQuerySet

RUN_LENGTH: int = TrainConfig.model_fields["max_length"].default
"""The max length of a run whose form nobody changed."""
BAR = 100
"""Width of a bar, and height of the picture, in the picture's own units."""


def ready_bases(request: HttpRequest) -> ScopedQuerySet:
    """The base models that rows can be read with, the newest first."""
    found: ScopedQuerySet = BaseModel.objects.for_action(request, "base_model.view").filter(facts__isnull=False)
    return found.order_by("-created_at")


def chosen_base(request: HttpRequest) -> BaseModel | None:
    """The base model that the address names, or the newest one; None where there is none yet."""
    typed = request.GET.get("base", "")
    if not typed:
        return ready_bases(request).first()
    found: BaseModel = ready_bases(request).named(typed)
    return found


def lengths(request: HttpRequest, found: DatasetVersion) -> dict[str, Any]:
    """Token lengths under the chosen base model; asked for where they are not known yet."""
    base = chosen_base(request)
    facts = found.token_facts(base)
    measurement = None
    if base is not None and facts is None and request.member.may("dataset.create"):  # type: ignore[attr-defined]
        measurement = services.measure(found, base, member=request.member)  # type: ignore[attr-defined]
    context = {"base": base, "bases": ready_bases(request), "tokens": facts, "measurement": measurement}
    return context | (shown(facts, base, rows=(found.facts or {})["rows"]) if facts and base else {})


def shown(facts: TokenFacts, base: BaseModel, *, rows: int) -> dict[str, Any]:
    limit = base.model_facts.context_length
    return {
        "bars": bars(facts.histogram),
        "marker": marker(facts.histogram, RUN_LENGTH),
        "run_length": RUN_LENGTH,
        "limit": limit,
        "learnt_share": f"{round(100 * facts.supervised / max(1, facts.total))} %",
        "cuts": cuts(facts, limit=limit, rows=rows),
        "over": over(facts, limit=limit),
    }


def bars(histogram: list[tuple[int, int]]) -> list[dict[str, float]]:
    """The histogram as rectangles in a picture that is 100 high and 100 wide per bar."""
    highest = max((count for _, count in histogram), default=1) or 1
    heights = [max(BAR * count / highest, 2 if count else 0) for _, count in histogram]
    return [
        {"x": number * BAR + 4, "y": round(BAR - height, 1), "height": round(height, 1), "edge": edge, "rows": count}
        for number, ((edge, count), height) in enumerate(zip(histogram, heights, strict=True))
    ]


def marker(histogram: list[tuple[int, int]], length: int) -> float | None:
    """Where a length stands in that picture; None beyond its end. Within a bar it is as far as the length is between the bar's edges."""
    low = 0
    for number, (edge, _) in enumerate(histogram):
        if length <= edge:
            return round(BAR * (number + (length - low) / max(1, edge - low)), 1)
        low = edge
    return None


def cuts(facts: TokenFacts, *, limit: int, rows: int) -> list[dict[str, Any]]:
    """What each max length up to the model's own would cut, with its shares of all rows and all tokens."""
    return [
        cut.model_dump()
        | {
            "share": cut.rows / max(1, rows),
            "tokens_share": cut.tokens / max(1, facts.total),
            "is_limit": cut.max_length == limit,
            "is_default": cut.max_length == RUN_LENGTH,
        }
        for cut in facts.cuts
        if cut.max_length <= limit
    ]


def over(facts: TokenFacts, *, limit: int) -> dict[str, Any] | None:
    """The rows that are longer than the model can read, as a question to whoever trains on them; None where there are none."""
    cut = next((cut for cut in facts.cuts if cut.max_length == limit), None)
    if cut is None or not cut.rows:
        return None
    about = "About " if facts.sample else ""
    return cut.model_dump() | {
        "sentence": f"{about}{spaced(cut.rows)} {'rows exceed' if cut.rows > 1 else 'row exceeds'} {spaced(limit)} tokens: "
        "drop, truncate or raise the limit?"
    }


def longer_rows(version: DatasetVersion, base: BaseModel, length: int) -> npt.NDArray[np.int64] | None:
    """The indices of the rows that are longer, of those that were measured; None where they were not."""
    measured = Measurement.objects.filter(version=version, base=base, order__status=Order.Status.SUCCEEDED).select_related("order").last()
    file = measured.order.folder / "result" / "lengths.npy" if measured else None
    if file is None or not file.is_file():
        return None
    found: npt.NDArray[np.int64] = np.flatnonzero(np.load(file) > length)
    return found
