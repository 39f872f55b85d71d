"""Rounds in which nobody knows who answers: columns in a drawn order, sealed so that the page can ask them and not read them."""

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from cryptography.fernet import InvalidToken
from django.http import Http404

from studio.serving.columns import Column
from studio.workspaces.models import Member
from studio.workspaces.secrets import lock_for

PURPOSE = b"adapter studio: rounds in which nobody knows who answers"
LASTS = 24 * 3600
"""Seconds in which a round can be asked and voted on."""


@dataclass(frozen=True)
class Round:
    pk: uuid.UUID
    """Of the vote that may come of it, so that there is one at most."""
    targets: list[str]
    """In the order in which they are shown."""


def sealed(member: Member, columns: Sequence[Column]) -> str:
    """A new round for one member: encrypted, for what is only signed can be read."""
    order = [column.target for column in columns]
    secrets.SystemRandom().shuffle(order)
    written: dict[str, Any] = {"round": uuid.uuid4().hex, "member": member.pk, "targets": order}
    return lock_for(PURPOSE).encrypt(orjson.dumps(written)).decode()


def opened(member: Member, token: str) -> Round:
    """Raises Http404 for what is no round of theirs, or no longer."""
    try:
        told = orjson.loads(lock_for(PURPOSE).decrypt(token.encode(), ttl=LASTS))
    except (InvalidToken, ValueError) as problem:
        raise Http404 from problem
    if told["member"] != member.pk:
        raise Http404
    return Round(uuid.UUID(told["round"]), told["targets"])
