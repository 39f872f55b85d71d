"""What somebody types into a search box, as a condition on rows: every word must stand in one of the names, or begin a hash. No pattern."""

import re
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

from django.db.models import CharField, Model, Q
from django.db.models.lookups import IContains

LONGEST, MOST_WORDS = 100, 6
HASH = re.compile(r"[0-9a-f]{6,64}")
PLAIN = re.compile(r"[!-HJ-RT-hj-rt-~]+")
"""ASCII without i and s, which alone are the same as letters outside of it once both are capital: ı and ſ."""
FEW = 100
"""Ids of what rows belong to that are named in a question."""


def words_of(typed: str) -> list[str]:
    """The first few words, in small letters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in typed[:LONGEST])
    return plain.lower().split()[:MOST_WORDS]


def matching(
    model: type[Model], words: Sequence[str], *, names: Sequence[str], hashes: Sequence[str] = (), seen: "Seen | None" = None
) -> Q:
    """Rows of `model` that have each word in one of the columns `names`, or a hash in `hashes` that begins with it.

    Names of what a row belongs to are looked for in their own small tables first, not once for every row. `seen` is for whoever
    looks for the same words in several models: each of those tables is then asked once.
    """
    seen, found = {} if seen is None else seen, Q()
    for word in words:
        one = Q()
        # A database goes through the conditions in turn: whether an id is among others costs less than a look into a name.
        for relation, columns in _by_relation(hashes if HASH.fullmatch(word) else ()).items():
            one |= _belongs(model, relation or "pk", _begins(columns, word), seen)
        by_relation = _by_relation(names)
        own = by_relation.pop("", [])
        for relation, columns in by_relation.items():
            one |= _belongs(model, relation, _holds(columns, word), seen)
        one |= _holds(own, word)
        found &= one if one else Q(pk__in=())
    return found


Seen = dict[Any, list[Any]]
"""By model and condition, the ids of a few rows that fulfil it."""


@CharField.register_lookup
class HoldsPlain(IContains):
    """`icontains` of a word that fits `PLAIN`: PostgreSQL looks in half the time where it need not know the letters of all languages."""

    lookup_name = "icontains_plain"

    def as_postgresql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        column, before = compiler.compile(self.lhs)
        word, after = self.process_rhs(compiler, connection)
        return f'UPPER({column}::text COLLATE "C") LIKE UPPER({word})', (*before, *after)

    def as_sqlite(self, compiler: Any, connection: Any) -> Any:
        return IContains(self.lhs, self.rhs).as_sql(compiler, connection)


def _holds(columns: Sequence[str], word: str) -> Q:
    lookup = "icontains_plain" if PLAIN.fullmatch(word) else "icontains"
    return reduce(or_, (Q(**{f"{column}__{lookup}": word}) for column in columns), Q())


def _begins(columns: Sequence[str], word: str) -> Q:
    """Between the two an index looks; LIKE would read all."""
    return reduce(or_, (Q(**{f"{column}__gte": word, f"{column}__lt": f"{word}g"}) for column in columns), Q())


def _belongs(model: type[Model], relation: str, inside: Q, seen: Seen) -> Q:
    """What belongs to a row that fulfils `inside`; for `pk` such rows themselves. Few are named; of many the database keeps the ids."""
    other: Any = model if relation == "pk" else model._meta.get_field(relation).related_model
    rows = other._base_manager.order_by().filter(inside).values_list("pk", flat=True)
    if (other, inside) not in seen:
        seen[other, inside] = list(rows[: FEW + 1])
    few = seen[other, inside]
    return Q(**{f"{relation}__in": few if len(few) <= FEW else rows}) if few else Q()


def _by_relation(names: Sequence[str]) -> dict[str, list[str]]:
    """`project__client__name` as the column `client__name` of `project`; the row's own columns stand under the empty name."""
    found: dict[str, list[str]] = {}
    for name in names:
        relation, _, column = name.partition("__")
        found.setdefault(relation if column else "", []).append(column or relation)
    return found
