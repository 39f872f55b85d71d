"""Two trials of one prompt set beside each other: what was asked otherwise, and prompt by prompt what both answered. Decides nothing."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from django.db.models import Q

from studio.serving.models import Trial
from studio.serving.trial_answers import Table
from studio.serving.trial_table import Cell, against, cells, table_of
from studio.serving.trials import target_of

Answer = tuple[str, str]
"""What was said, and why it ended where it failed."""
SETTINGS = {"system": "System prompt", "temperature": "Temperature", "top_p": "Top p", "max_tokens": "Longest answer", "seed": "Seed"}


def comparable(trial: Trial, visible: Any) -> Any:
    """Those of the `visible` trials that asked the same set. Nobody sees one client's answers beside another's."""
    others = visible.filter(workspace=trial.workspace_id, prompt_set=trial.prompt_set, prompt_set__isnull=False).exclude(pk=trial.pk)
    return others.filter(Q(client=trial.client_id) | Q(client__isnull=True)) if trial.client_id else others


@dataclass(frozen=True)
class Pair:
    """A column of the earlier trial, and the one of the later that is held against it. None where there is none."""

    columns: tuple[dict[str, str] | None, dict[str, str] | None]
    places: tuple[int | None, int | None]

    @property
    def is_same(self) -> bool:
        one, other = self.columns
        return one is not None and other is not None and target_of(one) == target_of(other)


@dataclass(frozen=True)
class Said:
    """What the two models of a pair answered to one question."""

    pair: Pair
    cells: tuple[Cell | None, Cell | None]

    @property
    def is_same(self) -> bool:
        one, other = self.cells
        return one is not None and other is not None and one.there and other.there and (one.text, one.error) == (other.text, other.error)


@dataclass(frozen=True)
class Row:
    numbers: tuple[int, int]
    """Of the prompt, in either trial."""
    category: str
    turns: list[tuple[str, list[Said]]]


@dataclass(frozen=True)
class Counted:
    """Answers of one pair, to questions that both answered."""

    pair: Pair
    compared: int
    differing: int


@dataclass(frozen=True)
class Beside:
    earlier: Trial
    later: Trial

    @classmethod
    def of(cls, one: Trial, other: Trial) -> "Beside":
        return cls(*sorted((one, other), key=lambda trial: (trial.created_at, trial.pk)))

    @cached_property
    def tables(self) -> tuple[Table, Table]:
        return table_of(self.earlier), table_of(self.later)

    @cached_property
    def pairs(self) -> list[Pair]:
        return pairs_of(self.earlier.columns, self.later.columns)

    @cached_property
    def prompts(self) -> list[tuple[int, int]]:
        """Where each prompt that both asked stands. A set may have been changed between them."""
        waiting: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for place, prompt in enumerate(self.later.prompts):
            waiting[tuple(prompt["turns"])].append(place)
        asked = [(place, waiting[tuple(prompt["turns"])]) for place, prompt in enumerate(self.earlier.prompts)]
        return [(place, there.pop(0)) for place, there in asked if there]

    @property
    def alone(self) -> tuple[int, int]:
        """How many prompts only one of them asked."""
        return len(self.earlier.prompts) - len(self.prompts), len(self.later.prompts) - len(self.prompts)

    @property
    def settings(self) -> list[tuple[str, Any, Any]]:
        """`(name, earlier, later)` of those that differ."""
        one, other = self.earlier.asked_with, self.later.asked_with
        return [(name, one.get(name), other.get(name)) for name in SETTINGS if one.get(name) != other.get(name)]

    @property
    def has_same_models(self) -> bool:
        return all(pair.is_same for pair in self.pairs)

    @cached_property
    def counted(self) -> list[Counted]:
        found = []
        for pair in self.pairs:
            said = [both for places in self.prompts for both in self.answers(pair, places)]
            found.append(Counted(pair, len(said), sum(1 for one, other in said if one != other)))
        return found

    def differing(self) -> list[tuple[int, int]]:
        """The prompts to which a pair answered differently."""
        return [places for places in self.prompts if any(one != other for pair in self.pairs for one, other in self.answers(pair, places))]

    def answers(self, pair: Pair, places: tuple[int, int]) -> Iterable[tuple[Answer, Answer]]:
        """What both said to each question of a prompt that both were asked, or why they did not."""
        turns = [self.turns(which, pair, places) for which in (0, 1)]
        return [((one["text"], one["error"]), (other["text"], other["error"])) for one, other in zip(*turns, strict=False)]

    def turns(self, which: int, pair: Pair, places: tuple[int, int]) -> list[dict[str, Any]]:
        column = pair.places[which]
        found: list[dict[str, Any]] = [] if column is None else self.tables[which][places[which]][column]["turns"]
        return found

    def row(self, places: tuple[int, int]) -> Row:
        prompt = self.earlier.prompts[places[0]]
        turns = [(question, self.said(places, turn)) for turn, question in enumerate(prompt["turns"])]
        return Row((places[0] + 1, places[1] + 1), prompt["category"], turns)

    def said(self, places: tuple[int, int], turn: int) -> list[Said]:
        earlier, later = (cells(table[place], turn) for table, place in zip(self.tables, places, strict=True))
        found = []
        for pair in self.pairs:
            one = None if pair.places[0] is None else replace(earlier[pair.places[0]], compared="")
            other = None if pair.places[1] is None else later[pair.places[1]]
            if other is not None:
                length = one.words if one and one.there and not one.error and not other.error else None
                other = replace(other, compared=against(other.words, length) if other.there else "")
            found.append(Said(pair, (one, other)))
        return found


def pairs_of(earlier: list[dict[str, str]], later: list[dict[str, str]]) -> list[Pair]:
    """The same model with itself, a deployment with itself whatever answered there, then what is left in the order in which it stands."""
    left, found = dict(enumerate(later)), dict[int, int]()
    for alike in (target_of, lambda column: column["target"], lambda column: ""):
        for place in [at for at in range(len(earlier)) if at not in found]:
            partner = next((at for at, other in left.items() if alike(other) == alike(earlier[place])), None)
            if partner is not None:
                found[place] = partner
                del left[partner]
    pairs = [Pair((column, later[found[at]] if at in found else None), (at, found.get(at))) for at, column in enumerate(earlier)]
    return [*pairs, *(Pair((None, column), (None, at)) for at, column in left.items())]
