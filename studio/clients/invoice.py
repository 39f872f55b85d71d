"""The CSV of a month, for the invoice: a line for each client, or for one client a line for each run and build."""

import csv
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

from studio.cells import cell
from studio.clients.usage import STORAGE, Bill, Line
from studio.workspaces.rates import TOKENS

EACH_CLIENT = (
    "month", "client", "hours", "gpu_hours", "storage_gb_months", "work", "storage", "total", "currency",
    "requests", "tokens_read", "tokens_written", "endpoint",
)  # fmt: skip
EACH_LINE = ("date", "client", "what", "worker_kind", "hours", "storage_gb_months", "rate", "amount", "currency", "tokens")
NOBODY = "No client"


def each_client(bill: Bill, names: dict[UUID, str]) -> Iterator[tuple[Any, ...]]:
    """By name, and what was for no client last. The last column but one adds up to the total of the month."""
    found = sorted(bill.by_client.items(), key=lambda entry: (entry[0] is None, names.get(entry[0], "") if entry[0] else "", str(entry[0])))
    for client, sums in found:
        if sums.amounts or sums.hours or sums.gb_months or sums.requests:
            storage = sums.amounts.get(STORAGE, Decimal("0.00"))
            name = names.get(client, NOBODY) if client else NOBODY
            endpoint = sums.amounts.get(TOKENS, Decimal("0.00"))
            work = sums.total - storage - endpoint
            yield (
                bill.month,
                name,
                figure(sums.all_hours),
                figure(sums.gpu_hours),
                figure(sums.gb_months),
                work,
                storage,
                sums.total,
                bill.currency,
                sums.requests,
                sums.tokens_read,
                sums.tokens_written,
                endpoint,
            )


def each_line(bill: Bill, name: str) -> Iterator[tuple[Any, ...]]:
    for line in bill.lines:
        yield (*facts_of(line, name), bill.currency, line.tokens if line.worker_kind == TOKENS else "")


def facts_of(line: Line, name: str) -> tuple[Any, ...]:
    stored, asked = line.worker_kind == STORAGE, line.worker_kind == TOKENS
    rate = "" if line.per_unit is None else f"{line.per_unit.normalize():f}"
    hours, gb_months = ("", figure(line.gb_months)) if stored else ("" if asked else figure(line.hours), "")
    return (line.day, name, line.what, line.worker_kind, hours, gb_months, rate, "" if line.per_unit is None else line.amount)


def figure(value: Decimal) -> str:
    return f"{value:.4f}"


def written(head: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> Iterator[str]:
    """The file, a line at a time."""
    write: Callable[[list[str]], str] = csv.writer(Echo(), lineterminator="\r\n").writerow
    yield write(list(head))
    for row in rows:
        yield write([cell(str(each)) for each in row])


class Echo:
    """A file that hands on what is written to it."""

    def write(self, text: str) -> str:
        return text
