"""What waits for a client's own people on their home page. Each app says what of its own does."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from studio.workspaces.models import Member


@dataclass(frozen=True)
class Asked:
    """One line: what they are asked, as somebody outside the workshop would say it, and where they do it."""

    title: str
    text: str
    url: str
    action: str
    """On its button."""
    since: datetime | None


ASKED: list[Callable[[Member], list[Asked]]] = []
"""Filled from each app's `ready`; each asks a constant number of queries and answers few."""


def asked_of(member: Member) -> list[Asked]:
    return [asked for source in ASKED for asked in source(member)]
