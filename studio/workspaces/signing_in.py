"""How people get in, by django-allauth: what this studio decides about it, and nothing of how it is done.

No account comes of signing in: accounts are made by the set-up and by invitations.
"""

import time
from collections.abc import Callable
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter, get_adapter
from allauth.account.internal.flows.login import get_authentication_records, record_authentication
from allauth.core import context
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from django.conf import settings
from django.contrib import messages
from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse

from studio.errors import UserError
from studio.workspaces import throttle
from studio.workspaces.models import Member, User
from studio.workspaces.requests import address_of, caller
from studio.workspaces.secrets import opened, sealed

FACTORS = (Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN)
SIGN_IN_AGAIN = "Sign out and in again first, then change how you sign in within ten minutes."
WRONG = "E-mail or password is not right."
TOO_MANY = "Too many tries. Wait a quarter of an hour, then try again."
WRONG_CODE = "This was not accepted. An app shows a new code every 30 seconds, and each code works once."


def sign_in(request: HttpRequest, user: User) -> None:
    """Lets somebody in whose account was made by this very request, so that no second factor can be asked for yet."""
    record_authentication(request, user, "password", email=user.email)
    get_adapter(request).login(request, user)


def has_second_factor(user: User) -> bool:
    return Authenticator.objects.filter(user=user, type__in=FACTORS).exists()


def must_add_factor(member: Member) -> bool:
    """True where the workspace asks for a second factor and this person has none. Keys are not affected."""
    return member.key is None and member.workspace.second_factor_required and not has_second_factor(member.user)


def can_mail() -> bool:
    return bool(getattr(settings, "SMTP_URL", ""))


def passkeys_work(request: HttpRequest) -> bool:
    """Browsers keep passkeys for a name alone, and offer them only where nobody can read along."""
    name = request.get_host().partition(":")[0]
    is_address = name.startswith("[") or name.replace(".", "").isdecimal()
    return not is_address and (request.is_secure() or name == "localhost")


def after_answer(request: HttpRequest, work: Callable[[], None]) -> None:
    """Does `work` once the answer is out, so that how long the answer takes tells nobody whether there was anything to do."""
    request.after_answer = [*getattr(request, "after_answer", ()), work]  # type: ignore[attr-defined]


def guesser(request: HttpRequest, email: str) -> str:
    """Tries are counted for a name and an address together, so that nobody is locked out by strangers elsewhere."""
    return f"{email.lower()} {caller(request)}"


def is_guessing(request: HttpRequest, email: str) -> bool:
    """Too many tries from here, or so many from everywhere that somebody goes from address to address."""
    return throttle.is_blocked("login", guesser(request, email)) or throttle.is_blocked(
        "login-anywhere", email.lower(), tries=throttle.TRIES_ANYWHERE
    )


password_refused = Signal()
"""Sent with `request` and `email`, whether or not anybody has that address."""


class AccountAdapter(DefaultAccountAdapter):
    error_messages = DefaultAccountAdapter.error_messages | {
        "email_password_mismatch": WRONG,
        "incorrect_password": "This password is not right.",
        "enter_current_password": "This password is not right.",
        "too_many_login_attempts": TOO_MANY,
        "rate_limited": TOO_MANY,
        "invalid_password_reset": "This link has been used or has expired.",
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def pre_authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        if is_guessing(request, credentials.get("email", "")):
            raise self.validation_error("too_many_login_attempts")

    def authenticate(self, request: HttpRequest, **credentials: Any) -> User | None:
        user: User | None = super().authenticate(request, **credentials)
        who = guesser(request, credentials.get("email", ""))
        if user is None or not user.is_active:  # allauth would lead a closed account to a page of its own
            throttle.failed("login", who)
            throttle.failed("login-anywhere", credentials.get("email", "").lower())
            password_refused.send(sender=User, request=request, email=credentials.get("email", ""))
            return None
        throttle.forget("login", who)
        return user

    def is_reauthentication_required(self, *, app: str, **kwargs: Any) -> bool:
        """Whoever has neither password nor factor, and comes by OpenID Connect, confirms who they are by having just signed in."""
        required = bool(super().is_reauthentication_required(app=app, **kwargs))
        if not required or self.get_reauthentication_methods(self.request.user):
            return required
        steps = get_authentication_records(self.request, self.request.user)
        if not steps or time.time() - steps[-1]["at"] > settings.ACCOUNT_REAUTHENTICATION_TIMEOUT:
            raise UserError(SIGN_IN_AGAIN)
        return False

    def get_client_ip(self, request: HttpRequest) -> str:
        return address_of(request) or "0.0.0.0"  # a unix socket has none

    def respond_user_inactive(self, request: HttpRequest, user: User) -> HttpResponse:
        messages.error(request, "This account is closed. Ask the owner of your workspace.")
        return redirect("login")

    def get_password_change_redirect_url(self, request: HttpRequest) -> str:
        return reverse("account:index")

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Mail goes out after the answer, which takes the same time whether or not there is anybody to write to."""
        message = self.render_mail(template_prefix, email, context | {"request": self.request, "email": email})
        after_answer(self.request, message.send)

    def format_email_subject(self, subject: str) -> str:
        return subject


class FactorAdapter(DefaultMFAAdapter):
    error_messages = DefaultMFAAdapter.error_messages | {"incorrect_code": WRONG_CODE}

    def encrypt(self, text: str) -> str:
        return sealed(text)

    def decrypt(self, encrypted_text: str) -> str:
        return opened(encrypted_text)

    def get_totp_issuer(self) -> str:
        return "Adapter Studio"

    def get_public_key_credential_rp_entity(self) -> dict[str, str]:
        return {"id": context.request.get_host().partition(":")[0], "name": "Adapter Studio"}

    def generate_authenticator_name(self, user: User, type: Authenticator.Type) -> str:
        number = Authenticator.objects.filter(user=user, type=type).count() + 1
        return "Passkey" if number == 1 else f"Passkey {number}"


class CompanyAdapter(DefaultSocialAccountAdapter):
    """OpenID Connect: lets in whom the provider vouches for by a verified e-mail address that is a person's here."""

    def is_open_for_signup(self, request: HttpRequest, sociallogin: Any) -> bool:
        return False

    def pre_social_login(self, request: HttpRequest, sociallogin: Any) -> None:
        # Connecting by hand would let whoever is signed in at the provider be tied to the account of whoever clicks a link.
        if sociallogin.state.get("process", "login") != "login":
            raise ImmediateHttpResponse(render(request, "account/signup_closed.html", status=403))
