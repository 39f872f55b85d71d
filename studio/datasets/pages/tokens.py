"""The token view: one row as a base model reads it, each token learnt, only read or cut."""

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from studio.basemodels.models import BaseModel
from studio.datasets import rows, tokenviews
from studio.datasets.models import DatasetVersion
from studio.datasets.pages.drawing import Drawn, draw
from studio.datasets.pages.frame import about, version_for
from studio.datasets.pages.lengths import RUN_LENGTH, chosen_base, longer_rows, ready_bases
from studio.orders.pages import render_live
from studio.training import TrainConfig

MAX_LENGTH = TrainConfig.model_fields["max_length"]
SHORTEST, LONGEST = (next(getattr(bound, name) for bound in MAX_LENGTH.metadata if hasattr(bound, name)) for name in ("ge", "le"))
LEARN_FROM = {"answers": "All answers", "last_answer": "The last answer only"}


@dataclass(frozen=True)
class Asked:
    """What the address asks to see."""

    base: BaseModel | None
    row: int
    """Its number as people count: the first is 1."""
    length: int
    answers: str
    only: str = ""
    """`cut`: leaf through those rows that the max length cuts."""
    begin: int = 0
    """The first token to draw, in a row of very many."""

    @property
    def index(self) -> int:
        return self.row - 1

    @property
    def link(self) -> str:
        fields = {"base": self.base.pk if self.base else "", "row": self.row, "length": self.length, "answers": self.answers}
        extra = {"only": self.only, "begin": self.begin}
        return "?" + urlencode(fields | {name: value for name, value in extra.items() if value})


def asked(request: HttpRequest, found: DatasetVersion) -> Asked:
    """Numbers out of bounds become the nearest that can be shown; the page says which it shows."""
    answers = request.GET.get("answers", "")
    return Asked(
        base=chosen_base(request),
        only="cut" if request.GET.get("only") == "cut" else "",
        row=whole(request.GET.get("row"), default=1, low=1, high=(found.facts or {})["rows"]),
        length=whole(request.GET.get("length"), default=RUN_LENGTH, low=SHORTEST, high=LONGEST),
        answers=answers if answers in LEARN_FROM else TrainConfig.model_fields["learn_from"].default,
        begin=whole(request.GET.get("begin"), default=0, low=0, high=1 << 30),
    )


def whole(typed: str | None, *, default: int, low: int, high: int) -> int:
    typed = (typed or "").replace(",", "").replace(" ", "")
    if not (typed.isascii() and typed.isdecimal() and len(typed) < 12):
        return default
    return max(low, min(high, int(typed)))


def tokens(request: HttpRequest, pk: str) -> HttpResponse:
    found = version_for(request, "dataset.view", pk)
    if not found.is_ready:
        return redirect("datasets:version", pk=found.pk)
    seen = asked(request, found)
    context = about(found) | {"tab": "tokens", "asked": seen, "bases": ready_bases(request)} | choices(found)
    live = False
    base = seen.base
    if base is not None:
        longer = longer_rows(found, base, seen.length)
        if longer is not None and seen.only and len(longer) and not request.GET.get("row"):
            seen = replace(seen, row=int(longer[0]) + 1)
        look = tokenviews.look(request.member, found, base, index=seen.index)  # type: ignore[attr-defined]
        context |= {"look": look, "asked": seen} | neighbours(found, seen, longer)
        context |= row_shown(found, look.row, seen) if look.row else {}
        live = look.is_live
    return render_live(request, "datasets/tokens.html", context, live=live)


def choices(found: DatasetVersion) -> dict[str, Any]:
    """What can be set, and within which bounds."""
    learn_from = LEARN_FROM.items() if (found.facts or {})["shape"] == "chat" else ()
    return {"learn_from": learn_from, "shortest": SHORTEST, "longest": LONGEST, "run_length": RUN_LENGTH}


def row_shown(found: DatasetVersion, row: dict[str, Any], seen: Asked) -> dict[str, Any]:
    last = seen.answers == "last_answer"
    drawn = [draw(reading, last_answer=last, length=seen.length, begin=seen.begin) for reading in row["readings"]]
    entry = rows.page(found.rows_path, after=seen.index - 1, limit=1)
    return {
        "row": entry[0] if entry else None,
        "readings": [{"drawn": each, **parts(each, seen)} for each in drawn],
        "problem": row["error"],
        "reach": max([SHORTEST + 1, *(each.total for each in drawn)]),
    }


def parts(drawn: Drawn, seen: Asked) -> dict[str, str]:
    """Ways to the other tokens of a row that has very many."""
    begins = {"earlier": drawn.earlier, "later": drawn.later}
    return {name: replace(seen, begin=begin).link for name, begin in begins.items() if begin is not None}


def neighbours(found: DatasetVersion, seen: Asked, longer: npt.NDArray[np.int64] | None) -> dict[str, Any]:
    """The rows before and after; of those that are cut alone, where they are known and asked for."""
    last = (found.facts or {})["rows"]
    before, after = seen.index - 1, seen.index + 1
    place = None
    if longer is not None and seen.only:
        at, behind = int(np.searchsorted(longer, seen.index)), int(np.searchsorted(longer, seen.index, side="right"))
        before = int(longer[at - 1]) if at else -1
        after = int(longer[behind]) if behind < len(longer) else last
        place = behind if behind > at else None
    return {
        "previous": replace(seen, row=before + 1, begin=0).link if before >= 0 else "",
        "following": replace(seen, row=after + 1, begin=0).link if after < last else "",
        "last": last,
        "longer": None if longer is None else len(longer),
        "place": place,
    }
