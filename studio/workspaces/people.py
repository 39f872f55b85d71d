"""Who belongs to a workspace, as what, and for which clients. Whoever grants has it themselves, and an owner always remains."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from studio.audit.services import record
from studio.errors import UserError
from studio.workspaces.models import Client, Invitation, Member, hold
from studio.workspaces.watching import people_changed

ROLE_WORDS = {
    "owner": "Everything, and the workspace itself: money, sign-in rules, erasing a client",
    "admin": "Everything a member may do, and people, clients, connections and the audit log",
    "member": "Make datasets, runs, builds, releases and deployments",
    "viewer": "See and download, and change nothing",
    "guest": "A client's own person: see and sign off what was delivered to them, and nothing else",
}
"""What each role is for, where one is chosen."""
LOST = "You may not do this any more: your own role has changed. Reload the page."


@dataclass(frozen=True)
class Sight:
    """Which clients somebody sees. None is all of them, those that will come included."""

    clients: frozenset[UUID] | None

    @property
    def rows(self) -> "QuerySet[Client]":
        """The clients by name; none where it is all."""
        return Client.objects.filter(pk__in=self.clients or ()).order_by("name")

    def covers(self, other: "Sight") -> bool:
        if self.clients is None:
            return True
        return other.clients is not None and other.clients <= self.clients


EVERYTHING = Sight(None)


def sight_of(member: Member) -> Sight:
    ids = member.client_ids()
    return EVERYTHING if ids is None else Sight(frozenset(ids))


def refuse_bound(member: Member, doing: str = "change what holds for all of them") -> None:
    if member.client_ids() is not None:
        raise UserError(f"You see some of the clients only, so you cannot {doing}.")


def within(rows: "QuerySet[Any]", member: Member) -> "QuerySet[Any]":
    """Those of some members or invitations that see no client that `member` does not see."""
    ids = member.client_ids()
    if ids is None:
        return rows
    outside = Client.objects.filter(workspace=member.workspace_id).exclude(pk__in=ids)
    return rows.filter(clients__in=ids).exclude(clients__in=outside).distinct()


def people(who: HttpRequest | Member, action: str) -> "QuerySet[Member]":
    """The members on whom `who` may do `action`, as `for_action` answers for everything else; a foreign one is not among them."""
    member = who if isinstance(who, Member) else getattr(who, "member", None)
    if member is None or not member.may(action):
        return Member.objects.none()
    rows = Member.objects.filter(workspace=member.workspace_id).select_related("user")
    return within(rows, member).order_by("user__email")


def offered_clients(member: Member, assigned: Iterable[Client] = ()) -> "QuerySet[Client]":
    """What `member` may let somebody see: clients at work, and archived ones that are assigned already."""
    rows = Client.objects.for_action(member, "client.view")
    return rows.filter(Q(archived_at=None) | Q(pk__in=[client.pk for client in assigned]))


def offered_roles(member: Member) -> list[str]:
    """The roles that `member` may give, from the one that may least."""
    return [role for role in reversed(ROLE_WORDS) if role != Member.Role.OWNER or member.role == Member.Role.OWNER]


def refuse_more_than_own(member: Member, *, role: str, sight: Sight) -> None:
    """Raises UserError where `member` may not let somebody be this, or where nobody can be it."""
    if role not in ROLE_WORDS:
        raise UserError("Choose a role.", fields={"role": f"Choose from {', '.join(ROLE_WORDS)}."})
    if role not in offered_roles(member):
        raise UserError("Only an owner makes somebody an owner.", fields={"role": "Only an owner makes somebody an owner."})
    if role == Member.Role.OWNER and sight != EVERYTHING:
        raise UserError("An owner sees all clients.", fields={"clients": "An owner sees all clients. Choose all, or another role."})
    if role == Member.Role.GUEST and not sight.clients:
        raise UserError("A guest belongs to a client.", fields={"clients": "Choose the client whose person this is."})
    if sight.clients is not None and not sight.clients:
        raise UserError("Choose at least one client.", fields={"clients": "Choose at least one client, or all."})
    if not sight_of(member).covers(sight):
        raise UserError("You cannot show more clients than you see.", fields={"clients": "Choose from the clients that you see."})


def change(member: Member, person: Member, *, role: str | None = None, clients: Sight | None = None) -> None:
    """Gives somebody another role or other clients; None leaves it. It holds from their next request on."""
    with transaction.atomic():
        member, person = held(member, person)
        role, before, after = role or person.role, seen_by(person), clients or seen_by(person)
        if role == Member.Role.OWNER:
            after = clients or EVERYTHING
        if (role, after) == (person.role, before):
            return
        refuse_change(member, person, role=role, clients_too=after != before)
        refuse_more_than_own(member, role=role, sight=after)
        changed: dict[str, Any] = {}
        if role != person.role:
            changed["role"] = [person.role, role]
        if after != before:
            changed["clients"] = [named(before), named(after)]
        person.role, person.narrowed = role, after.clients is not None
        person.save(update_fields=["role", "narrowed"])
        person.clients.set(after.rows)
        if closed := close_invitations(person):
            changed["open invitations"] = [closed, 0]
        record(member, "member.change", person, change=changed, of_client=before == after)  # else it names other clients
        people_changed(person.user_id)


def remove(member: Member, person: Member) -> None:
    """Ends a membership: its keys and open invitations stop; what the person made stays, and their runs go on."""
    with transaction.atomic():
        member, person = held(member, person)
        if person.pk == member.pk:
            raise UserError("You cannot remove yourself. Ask another owner or admin.")
        refuse_touching(member, person)
        refuse_last_owner(person)
        keys = person.keys.filter(revoked_at=None).count()
        closed = Invitation.objects.filter(**open_by(person)).update(revoked_at=timezone.now())
        changed: dict[str, Any] = {"role": [person.role, None], "clients": [named(seen_by(person)), None]}
        changed |= {name: [count, 0] for name, count in (("keys", keys), ("open invitations", closed)) if count}
        record(member, "member.remove", person, change=changed)
        person.delete()
        people_changed(person.user_id)


def held(member: Member, person: Member) -> tuple[Member, Member]:
    """The one who acts and the person as they are now, with the workspace's people locked.

    Raises UserError where the one who acts is not what they were any more, or may not do it to this person, who may be gone.
    """
    hold(member.workspace)
    me = Member.objects.select_related("user", "workspace").filter(pk=member.pk, role=member.role).first()
    if me is None:
        raise UserError(LOST)
    me.key, me.ip = member.key, member.ip
    found = people(me, "member.edit").select_related("workspace").filter(pk=person.pk).first()
    if found is None:
        raise UserError("You do not see this person here any more. Reload the page.")
    return me, found


def refuse_touching(member: Member, person: Member) -> None:
    if person.role == Member.Role.OWNER and member.role != Member.Role.OWNER:
        raise UserError("Only an owner changes or removes an owner.")


def refuse_change(member: Member, person: Member, *, role: str, clients_too: bool) -> None:
    refuse_touching(member, person)
    if person.pk == member.pk:
        if person.role != Member.Role.OWNER:
            raise UserError("Nobody changes their own role or clients. Ask another owner or admin.")
        if clients_too and role == person.role:
            raise UserError("An owner sees all clients.", fields={"clients": "An owner sees all clients. Choose all, or another role."})
    if role != Member.Role.OWNER:
        refuse_last_owner(person)


def refuse_last_owner(person: Member) -> None:
    """Raises UserError where nobody would own the workspace without this person. Its people are locked by then."""
    if person.role != Member.Role.OWNER:
        return
    owners = Member.objects.filter(workspace=person.workspace_id, role=Member.Role.OWNER, user__is_active=True)
    if not owners.exclude(pk=person.pk).exists():
        raise UserError("A workspace is never without an owner. Make somebody else an owner first.")


def clients_of(row: Member | Invitation) -> list[Client] | None:
    """The clients that a member sees, or whoever accepts an invitation will; None for all. Of the person, not of the key they use."""
    own = list(row.clients.all())
    return own if own or row.narrowed or row.role == Member.Role.GUEST else None


def seen_by(row: Member | Invitation) -> Sight:
    clients = clients_of(row)
    return EVERYTHING if clients is None else Sight(frozenset(client.pk for client in clients))


def named(sight: Sight) -> str:
    """The clients' names, for the record."""
    return "all" if sight.clients is None else ", ".join(client.name for client in sight.rows) or "none"


def open_by(person: Member) -> dict[str, Any]:
    return {"workspace": person.workspace_id, "created_by": person.user_id, "used_at": None, "revoked_at": None}


def close_invitations(person: Member) -> int:
    """Revokes those of somebody's invitations that they could not make any more; how many those were."""
    rows = Invitation.objects.filter(**open_by(person), expires_at__gt=timezone.now())
    lost = [each.pk for each in rows if not may_give(person, each)]
    return Invitation.objects.filter(pk__in=lost).update(revoked_at=timezone.now())


def may_give(person: Member, invitation: Invitation) -> bool:
    """True where this person could make this very invitation now."""
    if not person.may("member.edit"):
        return False
    try:
        refuse_more_than_own(person, role=invitation.role, sight=seen_by(invitation))
    except UserError:
        return False
    return True


def memberships_of(user: Any) -> list[Member]:
    """What a person is in all their workspaces, by the workspaces' names."""
    return list(Member.objects.filter(user=user).select_related("workspace").order_by("workspace__name", "pk"))


def may_make_workspace(memberships: list[Member]) -> bool:
    """Who owns one already, or everybody where the operator says so. An account alone, such as a removed guest keeps, gives nothing."""
    return settings.OPEN_WORKSPACES or any(each.role == Member.Role.OWNER for each in memberships)
