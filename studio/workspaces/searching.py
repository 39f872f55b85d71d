"""What somebody types into a search box, as a condition on rows: every word must stand in one of the names, or begin a hash. No pattern."""

import re
from collections.abc import Sequence
from typing import Any

from django.db.models import Model, Q

LONGEST, MOST_WORDS = 100, 6
HASH = re.compile(r"[0-9a-f]{6,64}")


def words_of(typed: str) -> list[str]:
    """The first few words, in small letters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in typed[:LONGEST])
    return plain.lower().split()[:MOST_WORDS]


def matching(model: type[Model], words: Sequence[str], *, names: Sequence[str], hashes: Sequence[str] = ()) -> Q:
    """Rows of `model` that have each word in one of the columns `names`, or a hash in `hashes` that begins with it.

    Names of what a row belongs to are looked for in their own small tables first, not once for every row.
    """
    found = Q()
    for word in words:
        one = Q()
        for relation, columns in _by_relation(names).items():
            inside = Q()
            for column in columns:
                inside |= Q(**{f"{column}__icontains": word})
            one |= inside if not relation else Q(**{f"{relation}__in": _others(model, relation).filter(inside).values("pk")})
        if HASH.fullmatch(word):
            for column in hashes:
                one |= Q(**{f"{column}__gte": word, f"{column}__lt": f"{word}g"})  # between them an index looks; LIKE would read all
        found &= one
    return found


def _by_relation(names: Sequence[str]) -> dict[str, list[str]]:
    """`project__client__name` as the column `client__name` of `project`; the row's own columns stand under the empty name."""
    found: dict[str, list[str]] = {}
    for name in names:
        relation, _, column = name.partition("__")
        found.setdefault(relation if column else "", []).append(column or relation)
    return found


def _others(model: type[Model], relation: str) -> Any:
    related: Any = model._meta.get_field(relation).related_model
    return related._base_manager.order_by()
