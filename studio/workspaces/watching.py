"""Tells the pages that somebody has open that what they may do has changed, so that they ask again at once."""

from django.db import transaction

from studio import doorbell

PEOPLE = "studio:people"


def people_changed(user_id: int) -> None:
    """Once the change is committed, every open websocket of this user looks whether they may still watch."""
    transaction.on_commit(lambda: doorbell.ring(PEOPLE, str(user_id)))
