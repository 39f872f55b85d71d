"""Records the endpoint's calls, and adds them up: how many, of how many tokens, how quickly, and what went wrong."""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.serving.models import LEFT, PLAIN, AddedUp, Call
from studio.serving.steps import COUNT, STEPS, percentile

__all__ = ["STEPS", "Sums", "record_call"]
COUNTS = PLAIN


def record_call(call: Call) -> None:
    """Saves what one request took. Its hour has it once the hour is over; until then whoever reads adds it."""
    call.find_steps()
    call.save(force_insert=True)


def empty() -> list[int]:
    return [0] * (COUNT + 1)


@dataclass
class Counts:
    """What a database can add up of some calls."""

    calls: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds_sum: float = 0.0
    first_sum: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def error_share(self) -> float | None:
        return self.errors / self.calls if self.calls else None

    def add_counts(self, columns: Mapping[str, Any]) -> None:
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + columns.get(name, 0))


@dataclass
class Sums(Counts):
    """Some calls, added up."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """As `outcome_of` names them."""
    seconds: list[int] = field(default_factory=empty)
    """How many answered calls fell into each step."""
    first: list[int] = field(default_factory=empty)

    @property
    def p50(self) -> float | None:
        """Seconds to the end of the answer."""
        return percentile(self.seconds, 0.5)

    @property
    def p95(self) -> float | None:
        return percentile(self.seconds, 0.95)

    @property
    def first_p50(self) -> float | None:
        """Seconds to the first token."""
        return percentile(self.first, 0.5)

    @property
    def first_p95(self) -> float | None:
        return percentile(self.first, 0.95)

    @property
    def left(self) -> int:
        """Callers who left before the end."""
        return sum(count for outcome, count in self.outcomes.items() if outcome.split()[0] == str(LEFT))

    @property
    def failed(self) -> list[tuple[str, int]]:
        """What went wrong, the most frequent first."""
        return [(outcome, count) for outcome, count in self.outcomes.most_common() if is_error(outcome)]

    def add_hour(self, hour: AddedUp | Mapping[str, Any]) -> None:
        """What an hour holds; of a mapping, the columns that it has."""
        columns = hour if isinstance(hour, Mapping) else vars(hour)
        self.add_counts(columns)
        self.outcomes.update(columns.get("outcomes") or {})
        add_to(self.seconds, columns.get("seconds") or ())
        add_to(self.first, columns.get("first") or ())

    def add_calls(self, status: int, error: str, step: int | None, first_step: int | None, count: int, *sums: Any) -> None:
        """So many alike calls, with the sums of their tokens (read, cached, written) and seconds (in all, to the first token)."""
        prompt, cached, completion, seconds, first = sums
        outcome = outcome_of(status, error)
        self.calls += count
        self.errors += count if is_error(outcome) else 0
        self.outcomes[outcome] += count
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.completion_tokens += completion
        if step is not None:
            self.seconds[step] += count
            self.seconds_sum += seconds
        if first_step is not None:
            self.first[first_step] += count
            self.first_sum += first

    def add(self, other: "Sums") -> None:
        self.add_hour(vars(other))


def add_to(sums: list[int], counts: Sequence[int]) -> None:
    sums[: len(counts)] = map(operator.add, sums, counts)


def outcome_of(status: int, error: str) -> str:
    """200, or "429 rate_limit_exceeded"."""
    return f"{status} {error}".strip()


def is_error(outcome: str) -> bool:
    """Whoever left before the end was not failed."""
    status = int(outcome.split()[0])
    return status >= 400 and status != LEFT
