"""What is changed in a version's rows, before it is saved: rows edited, dropped or added, and rules about all rows with a finding.

Read by pages, by the API and by the worker that saves; no Django.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from studio.datasets import fixing
from studio.datasets.flags import BY_NAME, Finding
from studio.datasets.messages import Unusable
from studio.datasets.typed import accepted
from studio.errors import UserError

MOST_CHANGES = 10_000
MOST_BYTES = 16 << 20
MOST_VALUES, LONGEST_VALUE = 100, 1000
"""What a rule fills in is written into every row that has the placeholder."""
Row = dict[str, Any]
Fate = Literal["", "changed", "dropped", "unfixed"]
"""What becomes of a row; unfixed: a rule would have changed it into something that is no row, so it stays as it is."""


@dataclass(frozen=True)
class Rule:
    """What is done with every row that has a finding, unless a person decided about that row by itself."""

    finding: Finding
    do: Literal["drop", "fix"]
    values: dict[str, str] = field(default_factory=dict)
    """What is written instead of each placeholder."""

    @classmethod
    def read(cls, written: dict[str, Any]) -> "Rule":
        finding, do = BY_NAME.get(str(written.get("finding"))), written.get("do")
        if finding is None:
            raise UserError("There is no such finding.", fields={"finding": f"Use one of {', '.join(BY_NAME)}."})
        if do not in ("drop", "fix") or do not in finding.remedies:
            ways = " or ".join(finding.remedies)
            raise UserError("That cannot be done about this finding.", fields={"do": f"Use {ways}."})
        values = written.get("values") or {}
        if len(values) > MOST_VALUES or any(len(str(text)) > LONGEST_VALUE for pair in values.items() for text in pair):
            sentence = f"At most {MOST_VALUES} placeholders, each filled with up to {LONGEST_VALUE:,} characters."
            raise UserError("That is too much to fill in.", fields={"values": sentence})
        return cls(finding, do, {str(name): str(value) for name, value in values.items()})

    def as_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = {"finding": self.finding.name, "do": self.do}
        return told | {"values": self.values} if self.values else told


@dataclass
class Changes:
    edited: dict[int, Row] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)
    """Rows that no rule touches: a person looked at them and left them as they are."""
    added: list[Row] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    @classmethod
    def read(cls, written: dict[str, Any]) -> "Changes":
        return cls(
            edited={int(index): row for index, row in written.get("edited", {}).items()},
            dropped=set(written.get("dropped", ())),
            kept=set(written.get("kept", ())),
            added=list(written.get("added", ())),
            rules=[Rule.read(rule) for rule in written.get("rules", ())],
        )

    @classmethod
    def load(cls, path: str) -> "Changes":
        return cls.read(orjson.loads(Path(path).read_bytes())) if path else cls()

    def as_dict(self) -> dict[str, Any]:
        return {
            "edited": {str(index): row for index, row in sorted(self.edited.items())},
            "dropped": sorted(self.dropped),
            "kept": sorted(self.kept),
            "added": self.added,
            "rules": [rule.as_dict() for rule in self.rules],
        }

    def __bool__(self) -> bool:
        return bool(self.edited or self.dropped or self.added or self.rules)

    def check_size(self) -> None:
        """Raises UserError where it is more than one draft holds."""
        if len(self.edited) + len(self.dropped) + len(self.kept) + len(self.added) > MOST_CHANGES:
            raise UserError(
                f"One draft holds {MOST_CHANGES:,} changed rows. Save it as a new version, then go on there; "
                "to drop or fix all rows with a finding, use the finding's own button."
            )
        if len(orjson.dumps(self.as_dict())) > MOST_BYTES:
            raise UserError(f"One draft holds {MOST_BYTES >> 20} MB of text. Save it as a new version, then go on there.")

    def rule_for(self, finding: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.finding.name == finding), None)

    def ruled(self, flags: int) -> list[Rule]:
        return [rule for rule in self.rules if flags & rule.finding.flag]

    def fate(self, index: int, flags: int, row: Row, shape: str) -> tuple[Fate, Row]:
        """What becomes of a row, and the row as it then is. What a person decided about it by itself comes before every rule."""
        if index in self.dropped:
            return "dropped", self.edited.get(index, row)
        if index in self.edited:
            return "changed", self.edited[index]
        if index in self.kept or not (rules := self.ruled(flags)):
            return "", row
        if any(rule.do == "drop" for rule in rules):
            return "dropped", row
        try:
            fixed = accepted(_fixed(row, rules), shape)
        except Unusable:
            return "unfixed", row
        return ("changed", fixed) if fixed != row else ("", row)

    def touched(self, flags: npt.NDArray[np.uint32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Indices of the rows that are changed, and of those that are dropped; a rule's fix counts as a change wherever it applies."""
        drop, fix = np.zeros(len(flags), dtype=bool), np.zeros(len(flags), dtype=bool)
        for rule in self.rules:
            (drop if rule.do == "drop" else fix)[(flags & np.uint32(rule.finding.flag)) != 0] = True
        for decided, (changed, dropped) in (
            (self.kept, (False, False)),
            (self.edited, (True, False)),
            (self.dropped, (False, True)),
        ):
            places = within(decided, len(flags))
            fix[places], drop[places] = changed, dropped
        return np.flatnonzero(fix & ~drop), np.flatnonzero(drop)


def within(indices: Iterable[int], count: int) -> npt.NDArray[np.int64]:
    """Those that name a row, in order."""
    return np.array(sorted(index for index in indices if 0 <= index < count), dtype=np.int64)


def _fixed(row: Row, rules: list[Rule]) -> Row:
    for rule in rules:
        row = fixing.fill(row, rule.values) if rule.values else fixing.fix(row, rule.finding.flag)
    return row
