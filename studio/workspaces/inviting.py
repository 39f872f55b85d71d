"""Invitations: a link that makes one person a member, once, before it ends, and as long as who made it might still make it."""

import hashlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from smtplib import SMTPException
from typing import Any

from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from studio.audit.services import record
from studio.errors import UserError
from studio.workspaces.models import Invitation, Member, User, hold
from studio.workspaces.people import Sight, may_give, people, refuse_more_than_own, seen_by, within

log = logging.getLogger("studio.people")
DAYS = {1: "a day", 7: "a week", 30: "30 days"}
"""For how long a link may hold."""
LONGEST_TOKEN = 100
MAILED_A_DAY = 20
"""Invitations by e-mail, so that nobody makes the studio write to strangers without end."""


class Gone(Exception):
    """The link was used, revoked, is past its day, or never was one; which of these nobody is told."""


@dataclass
class Made:
    """A new invitation, and its link, which is shown this once."""

    invitation: Invitation
    link: str
    problem: str = ""
    """Why it could not be sent by e-mail."""


def digest(token: str) -> str:
    # 256 random bits need no slow hash.
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def open_invitations(who: HttpRequest | Member, action: str) -> "QuerySet[Invitation]":
    """The invitations on which `who` may do `action`; whoever sees some clients alone finds only those to these clients."""
    member = who if isinstance(who, Member) else getattr(who, "member", None)
    rows = Invitation.objects.for_action(who, action).filter(used_at=None, revoked_at=None, expires_at__gt=timezone.now())
    return within(rows, member).select_related("created_by") if member else rows


def sends_mail() -> bool:
    return bool(settings.SMTP_URL)


def invite(member: Member, *, role: str, clients: Sight, email: str, days: int, link_to: Callable[[str], str]) -> Made:
    """A link by which one person joins. `link_to` turns its secret into an address; with an e-mail address it is sent there."""
    email = typed_email(email)
    if days not in DAYS:
        raise UserError("Choose how long the link holds.", fields={"days": f"Choose from {', '.join(map(str, DAYS))} days."})
    token = secrets.token_urlsafe(32)
    with transaction.atomic():
        hold(member.workspace)
        refuse_more_than_own(member, role=role, sight=clients)
        if email and people(member, "member.view").filter(user__email=email).exists():
            raise UserError("This person is a member already.", fields={"email": "This person is in the workspace already."})
        if email and sends_mail():
            refuse_flood(member)
        made = Invitation.objects.create(
            workspace=member.workspace,
            role=role,
            narrowed=clients.clients is not None,
            email=email,
            sha256=digest(token),
            created_by=member.user,
            expires_at=timezone.now() + timedelta(days=days),
        )
        made.clients.set(clients.rows)
        record(member, "invitation.create", made, change={"role": [None, role], "expires": [None, f"{made.expires_at:%Y-%m-%d %H:%M} UTC"]})
        answer = Made(made, link_to(token))
        if email and sends_mail():
            transaction.on_commit(lambda: send(answer))
    return answer


def refuse_flood(member: Member) -> None:
    """Counted in the rows, which a restart keeps: for who invites, wherever they do, and for the workspace."""
    mailed = Invitation.objects.exclude(email="").filter(created_at__gt=timezone.now() - timedelta(days=1))
    for rows in (mailed.filter(created_by=member.user), mailed.filter(workspace=member.workspace)):
        if rows.count() >= MAILED_A_DAY:
            text = f"{MAILED_A_DAY} invitations went out by e-mail within a day. Leave the address empty, and hand the link over yourself."
            raise UserError("No more invitations are sent by e-mail today.", fields={"email": text})


def typed_email(typed: str) -> str:
    email = typed.strip().lower()
    if not email:
        return ""
    try:
        User(email=email).clean_fields(exclude=["password"])
    except ValidationError:
        raise UserError("The e-mail address cannot be used.", fields={"email": "This is not an e-mail address."}) from None
    return email


def send(made: Made) -> None:
    """By e-mail. Where the mail server refuses, the invitation stands all the same, and its maker is told."""
    invitation, name = made.invitation, " ".join(made.invitation.workspace.name.split())
    message = EmailMessage(
        subject=f"Join {name} in Adapter Studio",
        body=f"{invitation.created_by} invites you to the workspace {name} as {invitation.get_role_display().lower()}.\n\n"
        f"Open this link to join. It works once, until {invitation.expires_at:%d %B %Y, %H:%M} UTC:\n\n{made.link}\n\n"
        "If you do not know what this is about, do nothing: without the link nothing happens.\n",
        from_email=settings.MAIL_FROM,
        to=[invitation.email],
    )
    try:
        message.send()
    except (SMTPException, OSError) as error:
        log.warning("An invitation could not be sent: %s", error)
        made.problem = f"The mail server did not take it ({type(error).__name__})."
        return
    invitation.sent_at = timezone.now()
    invitation.save(update_fields=["sent_at"])


def revoke(member: Member, invitation: Invitation) -> None:
    with transaction.atomic():
        closed = Invitation.objects.filter(pk=invitation.pk, used_at=None, revoked_at=None).update(revoked_at=timezone.now())
        if not closed:
            raise UserError("This invitation is not open any more. Reload the page.")
        record(member, "invitation.revoke", invitation)


def invitation_of(token: str) -> Invitation:
    """The invitation that a link opens. Raises Gone where it opens none."""
    rows = Invitation.objects.select_related("workspace", "created_by")
    found = rows.filter(sha256=digest(token)).first() if len(token) <= LONGEST_TOKEN else None
    if found is None or not found.is_open or not still_stands(found):
        raise Gone
    return found


def still_stands(invitation: Invitation) -> bool:
    """False once its maker could not make it any more, or its clients are gone."""
    maker = Member.objects.filter(workspace=invitation.workspace_id, user=invitation.created_by_id, user__is_active=True).first()
    return maker is not None and may_give(maker, invitation)


def accept(token: str, user: User, *, ip: str | None) -> Member:
    """Makes a person who has an account a member. Raises Gone, or UserError where the link is not for them."""
    with transaction.atomic():
        invitation = held(token)
        refuse_who_cannot(invitation, user)
        return join(invitation, user, ip=ip)


def accept_as_new(token: str, *, email: str, password: str, ip: str | None) -> Member:
    """Makes an account, and it a member. Raises Gone, or UserError with `fields`."""
    email = typed_email(email) or invitation_of(token).email
    wrong: dict[str, str] = {} if email else {"email": "Your e-mail address is needed."}
    try:
        validate_password(password, User(email=email))
    except ValidationError as error:
        wrong["password"] = " ".join(error.messages)
    if wrong:
        raise UserError("The account could not be made.", fields=wrong)
    with transaction.atomic():
        invitation = held(token)
        refuse_stranger(invitation, email)
        try:
            with transaction.atomic():
                # Whoever made the link saw it too, so that not even the address it is bound to is known to be theirs.
                user = User.objects.create_user(email, password, verified=False)
        except IntegrityError:
            text = "This address has an account. Sign in with it, and you come back here."
            raise UserError(text, fields={"email": text}, code="has_account") from None
        return join(invitation, user, ip=ip)


def held(token: str) -> Invitation:
    """The invitation, with its workspace's people locked: of two who use a link at once, one waits and finds it used."""
    hold(invitation_of(token).workspace)
    return invitation_of(token)


def refuse_who_cannot(invitation: Invitation, user: User) -> None:
    """Raises UserError where this person is a member already, or somebody else was meant."""
    if Member.objects.filter(workspace=invitation.workspace_id, user=user).exists():
        raise UserError("You are in this workspace already.", code="is_member")
    refuse_stranger(invitation, user.email)


def refuse_stranger(invitation: Invitation, email: str) -> None:
    if invitation.email and invitation.email != email.lower():
        text = f"This invitation is for {invitation.email}, and you are {email}."
        raise UserError(text, fields={"email": f"This invitation is for {invitation.email}."}, code="not_yours")


def join(invitation: Invitation, user: User, *, ip: str | None) -> Member:
    sight = seen_by(invitation)
    member = Member.objects.create(user=user, workspace=invitation.workspace, role=invitation.role, narrowed=sight.clients is not None)
    member.clients.set(sight.rows)
    Invitation.objects.filter(pk=invitation.pk).update(used_at=timezone.now(), used_by=user)
    member.ip = ip
    change: dict[str, Any] = {"role": [None, member.role]}
    if invitation.created_by:
        change["invited by"] = [None, invitation.created_by.email]
    record(member, "member.join", member, change=change)
    return member
