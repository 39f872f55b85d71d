"""Signing in, and the page of one's own account. What allauth does by itself is only given an address."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import requests
from allauth.account.adapter import get_adapter
from allauth.account.views import LoginView, LogoutView
from allauth.mfa import app_settings as mfa_settings
from allauth.mfa.models import Authenticator
from allauth.mfa.webauthn.internal.auth import begin_registration
from allauth.mfa.webauthn.views import AddWebAuthnView
from allauth.socialaccount.models import SocialAccount
from allauth.socialaccount.providers.openid_connect import views as openid
from django.conf import settings
from django.contrib import messages
from django.db.transaction import atomic
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache

from studio.errors import UserError
from studio.workspaces import accounts, services
from studio.workspaces.sessions import sessions_of
from studio.workspaces.signing_in import SIGN_IN_AGAIN, can_mail, is_guessing, must_add_factor, passkeys_work

View = Callable[..., HttpResponse]


@method_decorator(never_cache, name="dispatch")
class SignIn(LoginView):
    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if is_guessing(request, request.POST.get("login", "")):
            form = self.get_form_class()(request=request, initial={"login": request.POST.get("login", "")})
            return render(request, self.template_name, self.get_context_data(form=form, blocked=True), status=429)
        return super().post(request, *args, **kwargs)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        offers = {
            "is_set_up": services.is_set_up(),
            "company": settings.OIDC_NAME if settings.OIDC_URL else "",
            "can_mail": can_mail(),
            "passkeys_work": passkeys_work(self.request),
        }
        return super().get_context_data(**offers, **kwargs)


class SignOut(LogoutView):
    """Also ends a sign-in that waits for its second factor."""

    http_method_names = ("post",)

    def post(self, request: HttpRequest) -> HttpResponse:
        with atomic():
            if request.user.is_authenticated:
                accounts.sign_out(request)
            return super().post(request)


def confirming(view: View) -> View:
    """A page that asks who one is, for somebody who has something to answer with."""

    @wraps(view)
    def answered(request: HttpRequest) -> HttpResponse:
        if not get_adapter(request).get_reauthentication_methods(request.user):
            raise UserError(SIGN_IN_AGAIN)
        return view(request)

    return answered


def leading_back(view: View) -> View:
    """A page about a factor; whoever has none such is led to where one is added."""

    @wraps(view)
    def answered(request: HttpRequest) -> HttpResponse:
        try:
            return view(request)
        except Http404:
            return redirect("account:index")

    return answered


def by_mail(view: View) -> View:
    """A page that exists only where the studio can send e-mail."""

    @wraps(view)
    def answered(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not can_mail():
            raise Http404
        return view(request, *args, **kwargs)

    return answered


def company_login(request: HttpRequest, provider_id: str) -> HttpResponse:
    """To the provider. Nothing but signing in is started here, whatever the address asks for."""
    asked = request.GET.copy()
    for name in ("process", "scope", "auth_params"):
        asked.pop(name, None)
    request.GET = asked  # type: ignore[assignment]
    return reaching(openid.login, request, provider_id)


def company_callback(request: HttpRequest, provider_id: str) -> HttpResponse:
    return reaching(openid.callback, request, provider_id)


def reaching(view: View, request: HttpRequest, provider_id: str) -> HttpResponse:
    try:
        return view(request, provider_id=provider_id)
    except (requests.RequestException, KeyError) as problem:  # it is away, or what it answers is no OpenID Connect
        accounts.log.warning("The OpenID Connect provider cannot be used: %s", problem)
        return render(request, "socialaccount/authentication_error.html", status=502)


def account(request: HttpRequest) -> HttpResponse:
    user = request.user
    factors = list(Authenticator.objects.filter(user=user).order_by("created_at"))
    codes = next((row for row in factors if row.type == Authenticator.Type.RECOVERY_CODES), None)
    member = request.member  # type: ignore[attr-defined]
    return render(
        request,
        "account/index.html",
        {
            "section": "account",
            "authenticator": next((row for row in factors if row.type == Authenticator.Type.TOTP), None),
            "passkeys": [row for row in factors if row.type == Authenticator.Type.WEBAUTHN],
            "codes_left": len(codes.wrap().get_unused_codes()) if codes else None,
            "codes_total": mfa_settings.RECOVERY_CODE_COUNT,
            "sessions": sessions_of(user, request.session.session_key),  # type: ignore[arg-type]
            "connections": SocialAccount.objects.filter(user=user),
            "company": settings.OIDC_NAME if settings.OIDC_URL else "",
            "passkeys_work": passkeys_work(request),
            "must_add_factor": member is not None and must_add_factor(member),
        },
    )


def second_factor(request: HttpRequest) -> HttpResponse:
    """Owners say whether everybody in their workspace needs one."""
    required = request.POST.get("required") == "on"
    accounts.require_second_factor(request.member, required)  # type: ignore[attr-defined]
    messages.success(request, "Everybody here needs a second factor now." if required else "A second factor is up to each person now.")
    return redirect("settings:index")


def session_end(request: HttpRequest, pk: int) -> HttpResponse:
    if accounts.end_session(request, pk):
        messages.success(request, "Signed that device out.")
    return redirect("account:index")


def sessions_end(request: HttpRequest) -> HttpResponse:
    if accounts.end_other_sessions(request):
        messages.success(request, "Signed all other devices out.")
    return redirect("account:index")


def disconnect(request: HttpRequest, pk: int) -> HttpResponse:
    if accounts.disconnect(request, pk):
        messages.success(request, "Disconnected. You can still sign in with your password.")
    return redirect("account:index")


class AddPasskey(AddWebAuthnView):
    """Every passkey is one that signs in by itself: kept by the device, and opened by a finger, a face or a PIN."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        # After allauth's own, which asks for less: the last one that was begun is the one that is expected back.
        return context | {"js_data": {"creation_options": begin_registration(self.request.user, True)}}
