"""In which of their workspaces a person acts: the one that their session chose; and that no form of one acts in another."""

from typing import Any

from django.http import HttpRequest
from django.middleware.csrf import rotate_token

from studio.workspaces.models import Member, User

CHOSEN = "workspace"
"""Where the session keeps which workspace its person is in."""


def member_by_session(user: Any, session: Any) -> Member | None:
    """The membership that a signed-in user acts in: the one that their session chose, or their first."""
    if not user.is_authenticated:
        return None
    memberships = Member.objects.filter(user=user.pk).select_related("user", "workspace")
    chosen = session.get(CHOSEN)
    return (memberships.filter(workspace=chosen).first() if chosen else None) or memberships.order_by("created_at").first()


def is_elsewhere(member: Member, session: Any) -> bool:
    """True where the workspace that the session chose is not this person's any more, so that `member` is of another one."""
    return session.get(CHOSEN, str(member.workspace_id)) != str(member.workspace_id)


def go_to(request: HttpRequest, member: Member) -> None:
    """From here on; forms of the workspace before, open in another window, are refused."""
    if request.session.get(CHOSEN) != str(member.workspace_id):
        request.session[CHOSEN] = str(member.workspace_id)
        rotate_token(request)


def on_signed_in(sender: object, request: HttpRequest, user: User, **kwargs: Any) -> None:
    """Chosen at once, so that it is noticed when this very one is not theirs any more."""
    if member := member_by_session(user, request.session):
        request.session[CHOSEN] = str(member.workspace_id)
