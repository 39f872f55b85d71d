"""Which of several answers somebody found best: casting a vote, and what the votes of a client add up to."""

import csv
import io
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from studio.audit.services import record
from studio.cells import cell
from studio.errors import UserError
from studio.serving.columns import Column, client_of
from studio.serving.models import Vote
from studio.workspaces.models import Client, Member

LONGEST = 100_000
"""Characters of a question, and of an answer."""
PIECE = 200
"""Votes of a file that are read at once."""
COUNTED = 20_000
"""The newest votes of a client that its standings go by."""
VOTED = "You have voted in this round. Begin another one to vote again."
HEADINGS = ["at", "by", "blind", "question", "best", *(f"{what}_{place}" for place in (1, 2, 3, 4) for what in ("model", "answer"))]


def cast(
    member: Member,
    *,
    client: Client | None,
    columns: Sequence[Column],
    prompt: str,
    answers: Sequence[str],
    best: int | None,
    round_pk: uuid.UUID | None = None,
) -> Vote:
    """One vote with its audit record. `best` is the column that is best, None for none of them; blind where it was in a round.

    Of base models alone it is that of the page's `client`, as a shared conversation is.
    """
    if len(columns) < 2:
        fields = {"columns": "Name two at least."}
        raise UserError("There is one answer alone. Ask at least two, then say which is best.", fields=fields)
    if len(answers) != len(columns) or any(not isinstance(answer, str) or len(answer) > LONGEST for answer in (prompt, *answers)):
        fields = {"answers": f"Each column has one, of at most {LONGEST:,} characters."}
        raise UserError("The answers do not fit the columns. Ask again, then vote.", fields=fields)
    if best is not None and not 0 <= best < len(columns):
        raise UserError("There is no such column. Choose one of those that answered, or none.", fields={"best": "There is no such column."})
    told = {
        "workspace": member.workspace,
        "client": client_of(columns) or client,
        "columns": [column.kept for column in columns],
        "prompt": prompt,
        "answers": list(answers),
        "best": best,
        "blind": round_pk is not None,
        "user": member.user,
    }
    try:
        with transaction.atomic():
            made: Vote = Vote.objects.create(pk=round_pk or uuid.uuid4(), **told)
            chosen = columns[best].title if best is not None else "none"
            record(member, "vote.cast", made, change={"best": [None, chosen], "blind": [None, made.blind]})
    except IntegrityError as problem:
        raise UserError(VOTED) from problem
    return made


@dataclass
class Pair:
    """Two models that were asked the same, and how often each was found better."""

    first: dict[str, str]
    second: dict[str, str]
    wins: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Of the first, of the second, and votes in which neither was better."""

    @property
    def votes(self) -> int:
        return sum(self.wins)

    @property
    def shares(self) -> list[int]:
        """The three in per cent, together 100."""
        first, second = (round(100 * count / self.votes) for count in self.wins[:2])
        return [first, second, 100 - first - second]

    @property
    def sentence(self) -> str:
        """What the votes say, as far as they say anything: a margin that a coin would give one time in twenty says nothing."""
        first, second, _ = self.wins
        if abs(first - second) < 1.96 * (first + second) ** 0.5 or first + second < 6:
            return "Too close, or too few, to say."
        return f"{(self.first if first > second else self.second)['title']} is found better."


def wanted(who: HttpRequest | Member, *, client: uuid.UUID | None, only_blind: bool) -> "QuerySet[Vote]":
    """The newest first: those of one client and of base models alone, or all of clients that are not archived; only blind ones, or all."""
    found = Vote.objects.for_action(who, "prompts.view").order_by("-created_at", "pk")
    found = found.filter(Q(client=client) | Q(client=None)) if client else found.current()
    return found.filter(blind=True) if only_blind else found


@dataclass(frozen=True)
class Standings:
    pairs: list[Pair]
    count: int
    """Votes that they come from."""
    is_cut: bool
    """There are older votes, which were not counted."""


def standings(rows: "QuerySet[Vote]") -> Standings:
    """What the newest of `rows` come to."""
    found = list(rows.values_list("columns", "best")[: COUNTED + 1])
    return Standings(tally(found[:COUNTED]), min(len(found), COUNTED), len(found) > COUNTED)


def tally(votes: Iterable[tuple[list[dict[str, str]], int | None]]) -> list[Pair]:
    """Of `(columns, best)` with the newest votes first, whose names are taken: each pair that met, those that met most often first."""
    pairs: dict[tuple[str, str], Pair] = {}
    for columns, best in votes:
        for left, one in enumerate(columns):
            for right in range(left + 1, len(columns)):
                other = columns[right]
                places = (left, right) if one["target"] <= other["target"] else (right, left)
                first, second = (columns[place] for place in places)
                pair = pairs.setdefault((first["target"], second["target"]), Pair(first, second))
                if best is None:
                    pair.wins[2] += 1
                elif best in places:  # where a third was best, nobody said which of these two is better
                    pair.wins[places.index(best)] += 1
    return sorted((pair for pair in pairs.values() if pair.votes), key=lambda pair: -pair.votes)


def as_csv(rows: "QuerySet[Vote]") -> Iterator[bytes]:
    """The file, in the order of `rows`: in pieces that are queries of their own, which hold nothing open while somebody's line is slow."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(HEADINGS)
    pks = list(rows.values_list("pk", flat=True))
    for start in range(0, len(pks), PIECE):
        found = Vote.objects.select_related("user").in_bulk(pks[start : start + PIECE])
        writer.writerows(line(found[pk]) for pk in pks[start : start + PIECE] if pk in found)
        yield file.getvalue().encode()
        file.seek(0)
        file.truncate()
    yield file.getvalue().encode()


def line(vote: Vote) -> list[str]:
    best = vote.columns[vote.best]["title"] if vote.best is not None else "none"
    told = [text for column, answer in zip(vote.columns, vote.answers, strict=True) for text in (column["title"], answer)]
    by = vote.user.email if vote.user else ""
    return [cell(value) for value in (vote.created_at.isoformat(), by, "yes" if vote.blind else "no", vote.prompt, best, *told)]
