"""API keys: who may make, see and revoke which. A key never reaches further than whoever made it, be that a person or another key."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from studio.audit.services import record
from studio.errors import UserError
from studio.workspaces.models import ApiKey, Client, Member, ScopedQuerySet, hold
from studio.workspaces.people import people
from studio.workspaces.policy import ROLE_ACTIONS, SCOPE_ACTIONS
from studio.workspaces.services import plain_name

SCOPE_WORDS = {
    "read": "See clients, datasets, runs and artifacts, and download them",
    "write": "Make projects, upload datasets, add base models",
    "train": "Start and stop runs and builds",
    "deploy": "Build, release, deliver and deploy",
    "inference": "Chat with models",
    "admin": "Everything you may do",
}
DAYS: dict[int | None, str] = {30: "30 days", 90: "90 days", 365: "A year", None: "Until it is revoked"}
DEFAULT_DAYS = 90
ASKING = "inference"
"""The scope of a key that is narrowed to deployments."""
SOON = timedelta(days=14)
"""How long before its end a key is shown as one that ends soon."""
DEPLOYMENTS: list[Callable[[Member], ScopedQuerySet]] = []
"""What a key may be narrowed to. The app that has deployments stands above, and adds those that somebody may let a key ask."""


@dataclass(frozen=True)
class Limits:
    """Of a key at the endpoint; None sets no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    at_once: int | None = None

    @classmethod
    def of(cls, key: ApiKey) -> "Limits":
        return cls(**{name: getattr(key, name) for name in LARGEST})

    def as_words(self) -> str:
        """`60 requests a minute, 4 at once`; empty where nothing is limited."""
        told = {"requests_per_minute": "request{} a minute", "tokens_per_minute": "token{} a minute", "at_once": "at once"}
        pairs = [(getattr(self, name), words) for name, words in told.items()]
        return ", ".join(f"{number:,} {words.format('' if number == 1 else 's')}" for number, words in pairs if number is not None)

    def within(self, outer: "Limits") -> "Limits":
        """Where nothing is said, as the outer ones. Raises UserError where one is above."""
        above, found = {}, {}
        for name in LARGEST:
            own, most = getattr(self, name), getattr(outer, name)
            found[name] = most if own is None else own
            if own is not None and most is not None and own > most:
                above[name] = f"The key that you use may {most:,}. Choose no more."
        if above:
            raise UserError("The key would be allowed more than the one that makes it.", fields=above)
        return Limits(**found)

    def refuse_impossible(self) -> None:
        wrong = {
            name: f"Must be from 1 to {most:,}, or empty for no limit."
            for name, most in LARGEST.items()
            if (number := getattr(self, name)) is not None and not 1 <= number <= most
        }
        if wrong:
            raise UserError("Some limits cannot be used.", fields=wrong)


LARGEST = {"requests_per_minute": 1_000_000, "tokens_per_minute": 2_000_000_000, "at_once": 1000}
NO_LIMITS = Limits()


def offered_scopes(member: Member) -> list[str]:
    """The scopes of which the member's role, and the key that they act through, give anything at all."""
    given = actions_of(member.key.scopes) if member.key else set().union(*SCOPE_ACTIONS.values())
    return [scope for scope, actions in SCOPE_ACTIONS.items() if actions & ROLE_ACTIONS[member.role] and actions <= given]


def actions_of(scopes: Iterable[str]) -> set[str]:
    return {action for scope in scopes for action in SCOPE_ACTIONS[scope]}


def keys(who: HttpRequest | Member, action: str) -> "QuerySet[ApiKey]":
    """The keys on which `who` may do `action`: their own, and those of everybody whom they may change."""
    rows = ApiKey.objects.for_action(who, action)
    member = who if isinstance(who, Member) else getattr(who, "member", None)
    if member is None:
        return rows
    own = Q(member=member)
    if (reached := narrowed_to(member)) is not None:  # it is told of no other client, nor of a wider key
        outside = Client.objects.filter(workspace=member.workspace_id).exclude(pk__in=reached)
        own &= Q(narrowed=True) & ~Q(clients__in=outside)
    found: QuerySet[ApiKey] = rows.filter(own | Q(member__in=people(member, "member.edit"))).distinct()
    return found


def narrowed_to(member: Member) -> list[UUID] | None:
    """The clients that the key reaches which somebody acts through; None where there is none, or it is not narrowed."""
    key = member.key
    narrow = key is not None and (key.narrowed or key.clients.exists())
    return member.client_ids() if narrow else None


def offered_deployments(member: Member) -> "QuerySet[Any]":
    """The deployments at work that a key of theirs may be narrowed to."""
    found: QuerySet[Any] = DEPLOYMENTS[0](member).current()
    return found


def create(
    member: Member,
    *,
    name: str,
    scopes: list[str],
    clients: "Iterable[Client] | None" = None,
    deployments: "Iterable[Any] | None" = None,
    limits: Limits = NO_LIMITS,
    days: int | None = DEFAULT_DAYS,
) -> tuple[ApiKey, str]:
    """The key and its secret, which is shown this once and kept only as a hash. `clients` None reaches all that its maker does.

    Narrowed to `deployments` it can ask those and do nothing else. They and the clients are such as the maker may see; whoever calls has
    looked them up among those.
    """
    name = plain_name(name)
    asked = list(deployments) if deployments is not None else None
    if asked is not None:
        scopes, clients = to_ask(asked, scopes, clients)
    scopes = offered_of(member, scopes)
    chosen = list(clients) if clients is not None else None
    if chosen is None and (reached := narrowed_to(member)) is not None:
        chosen = list(Client.objects.filter(pk__in=reached))
    if chosen is not None and not chosen:
        raise UserError("Choose the clients that the key reaches.", fields={"clients": "Choose at least one."})
    limits.refuse_impossible()
    limits = limits.within(Limits.of(member.key)) if member.key else limits
    ends = end_of(member, days)
    secret = ApiKey.new_secret()
    with transaction.atomic():
        key = ApiKey.objects.create(
            member=member,
            name=name,
            prefix=secret[:8],
            sha256=ApiKey.hash(secret),
            scopes=scopes,
            narrowed=chosen is not None,
            by_deployment=asked is not None,
            expires_at=ends,
            **vars(limits),
        )
        change: dict[str, Any] = {"scopes": [None, scopes], "until": [None, f"{ends:%Y-%m-%d}" if ends else None]}
        if chosen is not None:
            key.clients.set(chosen)
            change["clients"] = [None, sorted(client.name for client in chosen)]
        if asked is not None:
            key.deployments.set(asked)
            change["deployments"] = [None, sorted(str(deployment) for deployment in asked)]
        change |= {name: [None, number] for name, number in vars(limits).items() if number is not None}
        record(member, "key.create", key, change=change)
    return key, secret


def to_ask(deployments: list[Any], scopes: list[str], clients: "Iterable[Client] | None") -> tuple[list[str], list[Client]]:
    """The scopes and the clients of a key that is narrowed to deployments. Raises UserError where others were asked for."""
    if not deployments:
        raise UserError("Choose the deployments that the key reaches.", fields={"deployments": "Choose at least one."})
    if clients is not None:
        raise UserError(
            "Say either clients or deployments.", fields={"clients": "The deployments say whose they are. Leave the clients out."}
        )
    if any(scope != ASKING for scope in scopes):
        raise UserError("Such a key can only ask.", fields={"scopes": f"Narrowed to deployments, a key has the scope {ASKING} alone."})
    return [ASKING], list({deployment.audit_client.pk: deployment.audit_client for deployment in deployments}.values())


def offered_of(member: Member, scopes: list[str]) -> list[str]:
    """Those scopes, in the order in which they are offered. Raises UserError where one is not the member's to give."""
    offered = offered_scopes(member)
    beyond = [scope for scope in dict.fromkeys(scopes) if scope not in offered]
    if beyond or not scopes:
        text = f"Choose from {', '.join(offered)}."
        refused = f"You cannot give {', '.join(beyond)[:100]}. " if beyond else ""
        raise UserError("Choose what the key may do.", fields={"scopes": refused + text})
    return [scope for scope in offered if scope in scopes]


def change_limits(member: Member, key: ApiKey, limits: Limits) -> bool:
    """They hold from the next request on; the secret stays. False where they are so already. A key lifts none above its own."""
    limits.refuse_impossible()
    with transaction.atomic():
        hold(key)
        key.refresh_from_db(fields=list(LARGEST))
        wanted = {name: number for name, number in vars(limits).items() if getattr(key, name) != number}
        allowed = Limits(**wanted).within(Limits.of(member.key)) if member.key else limits
        change = {name: [getattr(key, name), number] for name in wanted if (number := getattr(allowed, name)) != getattr(key, name)}
        if not change:
            return False
        for name, (_, number) in change.items():
            setattr(key, name, number)
        key.save(update_fields=list(change))
        of = {"of": str(key.member.user)} if key.member_id != member.pk else {}
        record(member, "key.limit", key, change=change | of)
    return True


def end_of(member: Member, days: int | None) -> datetime | None:
    """When a key ends that is to hold for so many days. Raises UserError where the key that makes it ends before."""
    if days not in DAYS:
        offered = ", ".join(str(number) for number in DAYS if number)
        raise UserError("The key's end cannot be used.", fields={"days": f"Choose {offered} days, or no end."})
    ends = timezone.now() + timedelta(days=days) if days else None
    limit = member.key.expires_at if member.key else None
    if limit is None or (ends is not None and ends <= limit):
        return ends
    if days == DEFAULT_DAYS:
        return limit
    raise UserError(
        "The key would outlive the one that makes it.", fields={"days": f"That one ends on {limit:%d %B %Y}. Choose fewer days."}
    )


def revoke(member: Member, key: ApiKey) -> None:
    """The key is refused from the next request on. Once is enough: a second time changes nothing."""
    with transaction.atomic():
        if ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now()):
            record(member, "key.revoke", key, change={"of": str(key.member.user)} if key.member_id != member.pk else None)


def ends_soon(key: ApiKey) -> bool:
    return key.expires_at is not None and key.expires_at - timezone.now() < SOON


def end_words(key: ApiKey) -> str:
    """`Expires in 5 days`, `Expires today`, `Expired`; empty where it has no end."""
    if key.expires_at is None:
        return ""
    left = key.expires_at - timezone.now()
    if left <= timedelta(0):
        return "Expired"
    days = left.days
    return f"Expires in {days} day{'s' if days > 1 else ''}" if days else "Expires within a day"
