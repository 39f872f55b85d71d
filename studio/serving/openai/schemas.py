"""Looks at JSON schemas before a grammar is made of them: small enough, not nested too deep, and complete in themselves."""

from typing import Any

MOST_PLACES, DEEPEST, LONGEST_REPEAT, MOST_REPEATS = 2000, 16, 1000, 20_000
COUNTS = ("minItems", "maxItems", "minLength", "maxLength")


class Unfit(ValueError):
    """Says why, for whoever wrote the schema."""


def look_through(schema: dict[str, Any]) -> None:
    """Raises Unfit for a schema from which no grammar could be made in little time."""
    if places(schema, depth=1, repeats=1) > MOST_PLACES:
        raise Unfit(f"The schema is too large: at most {MOST_PLACES} places are read.")


def places(found: Any, *, depth: int, repeats: int) -> int:
    """How many values a schema holds. What is repeated within what is repeated multiplies in a grammar."""
    if depth > 2 * DEEPEST:  # an object's properties are two steps down
        raise Unfit(f"The schema is nested too deep: at most {DEEPEST} levels are read.")
    if isinstance(found, list):
        return 1 + sum(places(each, depth=depth + 1, repeats=repeats) for each in found)
    if not isinstance(found, dict):
        return 1
    if isinstance(ref := found.get("$ref"), str) and not ref.startswith("#"):
        raise Unfit("A $ref can only lead to a place in the same schema, such as #/$defs/address.")
    counts = [found[name] for name in COUNTS if isinstance(found.get(name), int | float)]
    if any(count > LONGEST_REPEAT for count in counts):
        raise Unfit(f"{', '.join(COUNTS)} can be at most {LONGEST_REPEAT}.")
    repeats *= int(max(1, *counts)) if counts else 1
    if repeats > MOST_REPEATS:
        raise Unfit("The schema repeats too much within what is repeated. Lower maxItems or maxLength.")
    return 1 + sum(places(each, depth=depth + 1, repeats=repeats) for each in found.values())
