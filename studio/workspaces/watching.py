"""Tells the pages that somebody has open that what they may do has changed, so that they ask again at once."""

from typing import Any

from django.db import transaction
from django.http import HttpRequest

from studio import doorbell
from studio.workspaces.models import User
from studio.workspaces.signing_in import after_answer

PEOPLE = "studio:people"


def people_changed(user_id: int) -> None:
    """Once the change is committed, every open websocket of this user looks whether they may still watch."""
    transaction.on_commit(lambda: doorbell.ring(PEOPLE, str(user_id)))


def on_sessions_ended(sender: object, request: HttpRequest, user: User | None, **kwargs: Any) -> None:
    """Somebody signed out or has another password. Their sessions end with this request, and not before."""
    if user is not None:
        after_answer(request, lambda: people_changed(user.pk))
