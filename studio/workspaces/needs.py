"""What waits for somebody, as their home page lists it. Each app says what of its own does."""

from collections.abc import Callable
from dataclasses import dataclass

from studio.workspaces.models import Member


@dataclass(frozen=True)
class Need:
    """One line of "Needs you": what it is about, why, and where it is seen to."""

    title: str
    text: str
    url: str
    level: str = "warning"
    """error or warning: what stands first."""
    colour: int = 0
    """The dot of its client; 0 where it is nobody's."""


NEEDS: list[Callable[[Member], list[Need]]] = []
"""Filled from each app's `ready`; each asks a constant number of queries and answers few."""


def needs_of(member: Member) -> list[Need]:
    """The most urgent first."""
    found = [need for source in NEEDS for need in source(member)]
    return sorted(found, key=lambda need: need.level != "error")
