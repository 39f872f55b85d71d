"""What somebody types into a search box, as a condition on rows: every word must stand in one of the names, or begin a hash. No pattern."""

import re
from collections.abc import Sequence
from functools import reduce
from math import prod
from operator import or_
from typing import Any

from django.db.models import CharField, Count, Model, Q
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


def matching_in_turn(
    model: type[Model], words: Sequence[str], *, names: Sequence[str], hashes: Sequence[str] = (), seen: "Seen", many: bool = False
) -> tuple[Q | None, float]:
    """The same rows for a database that reads each in turn, as SQLite does: the condition, or None where there can be no such row.

    What is joined anyway to tell whose a row is has its name at hand, and looking into it takes less than for an id among many. Of
    `many` rows it is asked first which words stand in any such name, and those that have the rarest word are found on their own. The
    second answer is 0 where that could be done or where nothing fits. Else all rows are to be read, and it is about the share of them
    that is likely to have the words; a word of which that is not known counts as one that all have.
    """
    by_relation, begun = _by_relation(names), _by_relation(hashes)
    own, near = by_relation.pop("", []), {}
    for relation in [each for each in by_relation if model.WORKSPACE.startswith(f"{each}__")]:  # type: ignore[attr-defined]
        near[relation] = by_relation.pop(relation)
    often = {word: sum(_how_often(model, relation, near[relation], words, seen)[word] for relation in near) for word in words if many}
    far = {word: _all_belong(model, by_relation, _holds, word, seen) for word in words}
    order = sorted(words, key=lambda word: (often.get(word, 0), -len(word)))
    alone = [word for word in order if many and not far[word]]
    rarest = next((word for word in alone if len(_few(model, _holds(own, word), seen)) <= FEW), None)
    found = Q()
    for word in [rarest, *(word for word in order if word != rarest)] if rarest else order:
        one = _all_belong(model, begun, _begins, word, seen) if HASH.fullmatch(word) else Q()
        if word == rarest:
            one |= _belongs(model, "pk", _holds(own, word), seen)
            one |= _all_belong(model, near if often[word] else {}, _holds, word, seen)
        else:
            at_hand = [f"{relation}__{column}" for relation in near for column in near[relation] if not many or often[word]]
            one |= far[word] | _holds([*own, *at_hand], word)
        if not one:
            return None, 0
        found &= one
    return found, 0 if rarest else prod(often[word] or 1 for word in words if many and not far[word])


Seen = dict[Any, list[Any]]
"""By model and condition, the ids of a few rows that fulfil it; by model, columns and words, how often each word stands in them."""


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
    other = _other(model, relation)
    few = _few(other, inside, seen)
    return Q(**{f"{relation}__in": few if len(few) <= FEW else _rows(other, inside)}) if few else Q()


def _all_belong(model: type[Model], by_relation: dict[str, list[str]], how: Any, word: str, seen: Seen) -> Q:
    return reduce(or_, (_belongs(model, relation or "pk", how(columns, word), seen) for relation, columns in by_relation.items()), Q())


def _other(model: type[Model], relation: str) -> Any:
    return model if relation == "pk" else model._meta.get_field(relation).related_model


def _rows(model: Any, inside: Q) -> Any:
    return model._base_manager.order_by().filter(inside).values_list("pk", flat=True)


def _few(model: Any, inside: Q, seen: Seen) -> list[Any]:
    """Of those that fulfil it, one more than are named where there are so many."""
    if (model, inside) not in seen:
        seen[model, inside] = list(_rows(model, inside)[: FEW + 1])
    return seen[model, inside]


def _how_often(model: type[Model], relation: str, columns: Sequence[str], words: Sequence[str], seen: Seen) -> dict[str, float]:
    """In what share of the rows of the other table each word stands: all are counted at once."""
    other, key = _other(model, relation), (*columns, *words)
    if (other, key) not in seen:
        each = {f"word_{number}": Count("pk", filter=_holds(columns, word)) for number, word in enumerate(words)}
        every, *some = other._base_manager.order_by().aggregate(every=Count("pk"), **each).values()
        seen[other, key] = [count / every if every else 0 for count in some]
    return dict(zip(words, seen[other, key], strict=True))


def _by_relation(names: Sequence[str]) -> dict[str, list[str]]:
    """`project__client__name` as the column `client__name` of `project`; the row's own columns stand under the empty name."""
    found: dict[str, list[str]] = {}
    for name in names:
        relation, _, column = name.partition("__")
        found.setdefault(relation if column else "", []).append(column or relation)
    return found
