"""Which of a run's events its page is sent: all that a person would look at, few enough for a run of any length."""

from collections.abc import Sequence
from typing import Any

from django.db.models import Q, QuerySet

from studio.orders.models import Event, Order

POINTS = 2000
"""Steps that a page is sent at once; longer runs are thinned out evenly."""
LOOKS = 300
"""Looks at the validation rows, and steps with answers to the fixed prompts, that a page is sent at once."""
STEPS_AT_ONCE = 500
"""Steps that the table of a thinned run may ask for at a time."""
ROWS_SHOWN = ("first_batch", "best", "worst")


def shown_events(order: Order, *, upto: int) -> list[dict[str, Any]]:
    """The events that a page starts with: all but progress, thinned out where there are very many."""
    events = Event.objects.filter(order=order, seq__lte=upto).exclude(type="progress")
    metrics = events.filter(type="metric")
    looked = metrics.filter(body__has_key="validation_loss")
    kept = {
        *thinned(metrics.exclude(body__has_key="validation_loss"), most=POINTS),
        *thinned(looked, most=LOOKS),
        *newest_rows(events.filter(type="rows")),
    }
    few = Q(type__in=("metric", "rows", "sample"))
    shown = events.filter(~few | Q(seq__in=kept) | Q(type="sample", seq__in=answers(events.filter(type="sample"))))
    return [event.wire() for event in shown]


def is_thinned(order: Order, *, upto: int) -> bool:
    """Whether a page is sent fewer steps than there are."""
    return Event.objects.filter(order=order, seq__lte=upto, type="metric").exclude(body__has_key="validation_loss").count() > POINTS


def thinned(events: "QuerySet[Event]", *, most: int) -> list[int]:
    """Numbers of at most about `most` events, evenly spread; each attempt's first and the very last are among them."""
    # Their numbers first: a long run has a hundred thousand, and only the bodies that are shown are worth reading.
    numbers: Sequence[tuple[int, int]] = list(events.values_list("seq", "attempt"))
    step = len(numbers) // most + 1
    begins = {attempt: seq for seq, attempt in reversed(numbers)}.values()  # a chart cuts off there what was done in vain
    last = len(numbers) - 1
    return [seq for place, (seq, _) in enumerate(numbers) if place % step == 0 or place == last or seq in begins]


def newest_rows(events: "QuerySet[Event]") -> list[int]:
    """Numbers of the newest event of each name; the older ones are of looks that are over."""
    newest = [events.filter(body__name=name).order_by("-seq").values_list("seq", flat=True).first() for name in ROWS_SHOWN]
    return [seq for seq in newest if seq is not None]


def answers(events: "QuerySet[Event]") -> list[int]:
    """Numbers of the answers at about LOOKS of the steps, evenly spread; the first and the last step are among them."""
    found = list(events.values_list("seq", "body__step"))
    steps = list(dict.fromkeys(step for _, step in found))
    every = len(steps) // LOOKS + 1
    wanted = {step for place, step in enumerate(steps) if place % every == 0 or place == len(steps) - 1}
    return [seq for seq, step in found if step in wanted]


def steps_between(order: Order, *, first: int, last: int) -> list[dict[str, Any]]:
    """Every metric of the steps from `first` to `last`, of all attempts, in the order in which they were reported."""
    last = min(last, first + STEPS_AT_ONCE - 1)
    found = Event.objects.filter(order=order, type="metric", body__step__gte=first, body__step__lte=last)
    return [event.wire() for event in found]
