"""Looks at JSON schemas before a grammar is made of them: small enough, not nested too deep, complete in themselves, and with an end.

llama.cpp writes out what a $ref within an allOf leads to where it stands. One that comes back to itself would take down the whole process,
with everybody's answers.
"""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

MOST_PLACES, DEEPEST, LONGEST_REPEAT, MOST_REPEATS = 2000, 16, 1000, 20_000
MOST_WRITTEN_OUT = 20_000
COUNTS = ("minItems", "maxItems", "minLength", "maxLength")


class Unfit(ValueError):
    """Says why, for whoever wrote the schema."""


def look_through(schema: dict[str, Any]) -> None:
    """Raises Unfit for a schema from which no grammar could be made in little time."""
    if places(schema, depth=1, repeats=1) > MOST_PLACES:
        raise Unfit(f"The schema is too large: at most {MOST_PLACES} places are read.")
    if written_out(schema) > MOST_WRITTEN_OUT:
        raise Unfit(f"The schema is too large: its $refs in allOf lead to more than {MOST_WRITTEN_OUT} places together.")


def places(found: Any, *, depth: int, repeats: int) -> int:
    """How many values a schema holds. What is repeated within what is repeated multiplies in a grammar."""
    if depth > 2 * DEEPEST:  # an object's properties are two steps down
        raise Unfit(f"The schema is nested too deep: at most {DEEPEST} levels are read.")
    if isinstance(found, list):
        return 1 + sum(places(each, depth=depth + 1, repeats=repeats) for each in found)
    if not isinstance(found, dict):
        return 1
    counts = [found[name] for name in COUNTS if isinstance(found.get(name), int | float)]
    if any(count > LONGEST_REPEAT for count in counts):
        raise Unfit(f"{', '.join(COUNTS)} can be at most {LONGEST_REPEAT}.")
    repeats *= int(max(1, *counts)) if counts else 1
    if repeats > MOST_REPEATS:
        raise Unfit("The schema repeats too much within what is repeated. Lower maxItems or maxLength.")
    return 1 + sum(places(each, depth=depth + 1, repeats=repeats) for each in found.values())


def written_out(schema: dict[str, Any]) -> int:
    """How many values it holds once every $ref is written out that has to be. Raises Unfit where that would have no end."""
    leads: dict[int, list[int]] = {}
    found: dict[int, Any] = {}
    to_see: list[Any] = [schema]
    while to_see:
        place = to_see.pop()
        if id(place) in found:
            continue
        found[id(place)], leads[id(place)] = place, []
        for ref, at_once in refs(place, at_once=True):
            to_see.append(target := target_of(schema, ref))
            if at_once:
                leads[id(place)].append(id(target))
    sizes: dict[int, int] = {}
    try:
        for number in TopologicalSorter(leads).static_order():
            sizes[number] = places(found[number], depth=1, repeats=1) + sum(sizes[other] for other in leads[number])
    except CycleError as problem:
        raise Unfit(
            "A $ref leads back to itself with no property and no item between, or within an allOf. Recursion is possible with the"
            " $ref of a property or of items that stands outside of any allOf."
        ) from problem
    return sum(sizes.values())


def refs(found: Any, *, at_once: bool) -> Iterator[tuple[str, bool]]:
    """Each $ref in a place, and whether it is followed at once: in an allOf, or where no property or item is between."""
    if isinstance(found, list):
        for each in found:
            yield from refs(each, at_once=at_once)
    if not isinstance(found, dict):
        return
    if isinstance(ref := found.get("$ref"), str):
        yield ref, at_once
    for name, each in found.items():
        joined = isinstance(each, list) and (name == "allOf" or (at_once and name in ("anyOf", "oneOf")))
        yield from refs(each, at_once=joined)


def target_of(schema: dict[str, Any], ref: str) -> Any:
    """Reads a place's name no more generously than llama.cpp does, which would take 0x for 0, so that both see the same."""
    if not ref.startswith("#"):
        raise Unfit("A $ref can only lead to a place in the same schema, such as #/$defs/address.")
    target: Any = schema
    first, *steps = ref[1:].split("/")
    for step in steps:
        plain = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and step.isascii() and step.isdecimal() and len(step) < 7 and int(step) < len(target):
            target = target[int(step)]
        elif isinstance(target, dict) and (step in target or plain in target):
            target = target[step if step in target else plain]
        else:
            raise Unfit(f"The $ref '{ref[:200]}' leads nowhere.")
    if first:
        raise Unfit(f"The $ref '{ref[:200]}' leads nowhere.")
    return target
