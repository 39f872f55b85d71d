"""What people do to their own account, and what is written down of it: signing in, factors, passwords, sessions.

An account is in no workspace, so each workspace that the person is in keeps a record of its own.
"""

import logging
from typing import Any

from allauth.account.internal.flows.login import get_authentication_records
from allauth.account.internal.flows.reauthentication import raise_if_reauthentication_required
from allauth.account.models import EmailAddress
from allauth.core import context
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount, SocialLogin
from allauth.usersessions.internal.flows.sessions import end_other_sessions as end_all_but_current
from allauth.usersessions.internal.flows.sessions import end_sessions
from allauth.usersessions.models import UserSession
from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest

from studio.audit.services import record
from studio.errors import UserError
from studio.workspaces.models import Member, User, Workspace, hold
from studio.workspaces.requests import address_of
from studio.workspaces.sessions import device
from studio.workspaces.signing_in import FACTORS, after_answer, has_second_factor
from studio.workspaces.watching import people_changed

log = logging.getLogger("studio.workspaces")
METHODS = {
    "password": "password",
    "socialaccount": "OpenID Connect",
    "totp": "app",
    "webauthn": "passkey",
    "recovery_codes": "recovery code",
}


def tell(user: User, verb: str, *, change: dict[str, Any] | None = None, ip: str | None = None) -> None:
    """One record in each workspace of this person, in one transaction."""
    request = getattr(context, "request", None)
    with transaction.atomic():
        for member in Member.objects.filter(user=user).select_related("user", "workspace"):
            member.ip = ip or (address_of(request) if request else None)
            record(member, verb, user, change=change)


def methods_used(request: HttpRequest, user: User) -> str:
    """ "password, app": by what somebody got in."""
    steps = [step.get("type") or step["method"] for step in get_authentication_records(request, user)]
    return ", ".join(METHODS.get(step, step) for step in dict.fromkeys(steps))


def end_session(request: HttpRequest, pk: int) -> bool:
    """Signs one device out. False where that session is not this person's or has ended."""
    with transaction.atomic():
        session = UserSession.objects.select_for_update().filter(user=request.user.pk, pk=pk).first()
        if session is None:
            return False
        tell(request.user, "session.revoke", change={"device": [device(session.user_agent), None], "ip": [session.ip, None]})  # type: ignore[arg-type]
        end_sessions(request, [session])
        people_changed(session.user_id)
    return True


def end_other_sessions(request: HttpRequest) -> int:
    """Signs every device out but this one; answers how many."""
    with transaction.atomic():
        others = list(UserSession.objects.select_for_update().filter(user=request.user.pk).exclude(session_key=request.session.session_key))
        if not others:
            return 0
        tell(request.user, "session.revoke_others", change={"sessions": [len(others), 0]})  # type: ignore[arg-type]
        end_sessions(request, others)
        people_changed(others[0].user_id)
    return len(others)


def disconnect(request: HttpRequest, pk: int) -> bool:
    """Forgets who this person is at the OpenID Connect provider. Their next sign-in there connects them again."""
    raise_if_reauthentication_required(request, app="allauth.socialaccount")
    with transaction.atomic():
        connection = SocialAccount.objects.filter(user=request.user.pk, pk=pk).first()
        if connection is None:
            return False
        tell(request.user, "connected_sign_in.remove")  # type: ignore[arg-type]
        connection.delete()
    return True


def sign_out(request: HttpRequest) -> None:
    """Beside the end of the session itself, in one transaction with it."""
    UserSession.objects.filter(session_key=request.session.session_key).delete()
    tell(request.user, "user.sign_out")  # type: ignore[arg-type]
    people_changed(request.user.pk)  # type: ignore[arg-type]


def require_second_factor(member: Member, required: bool) -> None:
    """Whether this workspace is open only to people with a second factor. Its keys are not affected."""
    if required and not has_second_factor(member.user):
        raise UserError("You have no second factor yourself. Add one to your account first, then ask everybody for one.")
    with transaction.atomic():
        hold(member.workspace)
        workspace = Workspace.objects.get(pk=member.workspace_id)
        if workspace.second_factor_required == required:
            return
        workspace.second_factor_required = required
        workspace.save(update_fields=["second_factor_required"])
        record(member, "workspace.second_factor", workspace, change={"second_factor_required": [not required, required]})


def prove_address(request: HttpRequest, user: User) -> bool:
    """For the first time it is known whose the address is: what somebody set up who only typed it is gone. False where it was known."""
    with transaction.atomic():
        typed = EmailAddress.objects.select_for_update().filter(user=user, email=user.email, verified=False).first()
        if typed is None:
            return False
        Authenticator.objects.filter(user=user).delete()
        end_all_but_current(request, user)
        typed.verified = True
        typed.save(update_fields=["verified"])
        people_changed(user.pk)
    return True


def on_company_sign_in(sender: object, request: HttpRequest, sociallogin: SocialLogin, **kwargs: Any) -> None:
    """Before allauth looks at the address, whose own wiping of passwords leaves second factors in place."""
    if not sociallogin.is_existing or sociallogin.account.pk:  # nobody's, or connected before
        return
    user = sociallogin.user
    with transaction.atomic():
        if prove_address(request, user) and user.has_usable_password():
            user.set_unusable_password()
            user.save(update_fields=["password"])
            tell(user, "password.remove")


def on_signed_in(sender: object, request: HttpRequest, user: User, **kwargs: Any) -> None:
    tell(user, "user.sign_in", change={"by": [None, methods_used(request, user)]})


def on_password_refused(sender: object, request: HttpRequest, email: str, **kwargs: Any) -> None:
    """Looked up and written when the answer is out, which must not tell whether anybody has this address."""

    def write() -> None:
        if user := User.objects.filter(email=email.lower()).first():
            tell(user, "user.sign_in_failed", change={"by": [None, "password"]}, ip=address_of(request))

    after_answer(request, write)


def on_code_refused(sender: object, request: HttpRequest, user: User, authenticator: Authenticator, **kwargs: Any) -> None:
    tell(user, "user.sign_in_failed", change={"by": [None, METHODS[authenticator.type]]})


def on_password_changed(sender: object, request: HttpRequest, user: User, **kwargs: Any) -> None:
    tell(user, "password.change")
    people_changed(user.pk)  # whoever else uses this account is signed out


def on_password_reset(sender: object, request: HttpRequest, user: User, **kwargs: Any) -> None:
    tell(user, "password.reset")
    had_factor = has_second_factor(user)
    if prove_address(request, user) and had_factor:  # the link came by e-mail
        messages.warning(request, "This was the first mail to you, so second factors from before are gone. Add yours under Your account.")
    people_changed(user.pk)


FACTOR_NAMES = {Authenticator.Type.TOTP: "authenticator", Authenticator.Type.WEBAUTHN: "passkey"}
"""Recovery codes come and go with the first and the last factor, and are no change of their own."""


def end_sessions_without_factor(added: Authenticator) -> None:
    """With the first second factor every session ends that was opened without one, but this."""
    first = not Authenticator.objects.filter(user=added.user, type__in=FACTORS).exclude(pk=added.pk).exists()
    if first and (request := getattr(context, "request", None)):
        end_all_but_current(request, added.user)
        people_changed(added.user.pk)


def on_factor_saved(sender: object, instance: Authenticator, created: bool, update_fields: Any = None, **kwargs: Any) -> None:
    name = FACTOR_NAMES.get(instance.type)
    if name and created:
        end_sessions_without_factor(instance)
        tell(instance.user, f"{name}.add", change={"name": [None, str(instance)]} if name == "passkey" else None)
    elif name == "passkey" and not update_fields:  # a use writes only when it was
        tell(instance.user, "passkey.rename", change={"name": str(instance)})


def on_factor_removed(sender: object, instance: Authenticator, **kwargs: Any) -> None:
    if name := FACTOR_NAMES.get(instance.type):
        tell(instance.user, f"{name}.remove", change={"name": [str(instance), None]} if name == "passkey" else None)


def on_codes_made(sender: object, request: HttpRequest, user: User, **kwargs: Any) -> None:
    tell(user, "recovery_codes.create")
