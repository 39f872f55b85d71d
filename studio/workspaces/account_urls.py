"""Signing in and one's own account. Of allauth's addresses these are all that exist."""

from allauth.account import views as passwords
from allauth.mfa.base import views as factors
from allauth.mfa.recovery_codes import views as codes
from allauth.mfa.totp import views as authenticators
from allauth.mfa.webauthn import views as passkeys
from allauth.socialaccount import views as company
from django.db.transaction import atomic
from django.urls import include, path, register_converter
from django.views.decorators.cache import never_cache

from studio.workspaces import account_views as views


class UserNumber:
    """A user's id as a link to set a password has it: without a dash, which ends it."""

    regex = "[0-9A-Za-z]+"

    def to_python(self, value: str) -> str:
        return value

    def to_url(self, value: str) -> str:
        return value


register_converter(UserNumber, "user_number")

own = [
    path("", views.account, name="index"),
    path("sessions/<int:pk>/end/", views.session_end, name="session_end"),
    path("sessions/end-others/", views.sessions_end, name="sessions_end"),
    path("connections/<int:pk>/remove/", views.disconnect, name="disconnect"),
]
# A change and its audit record are one transaction.
urlpatterns = [
    path("login/", views.SignIn.as_view(), name="login"),
    path("login/", views.SignIn.as_view(), name="account_login"),
    path("logout/", views.SignOut.as_view(), name="logout"),
    path("login/second-factor/", factors.authenticate, name="mfa_authenticate"),
    path("login/passkey/", passkeys.login_webauthn, name="mfa_login_webauthn"),
    path("login/with/<slug:provider_id>/", views.company_login, name="openid_connect_login"),
    path("login/with/<slug:provider_id>/callback/", views.company_callback, name="openid_connect_callback"),
    path("login/cancelled/", company.login_cancelled, name="socialaccount_login_cancelled"),
    path("login/forgotten/", views.by_mail(passwords.password_reset), name="account_reset_password"),
    path("login/forgotten/sent/", views.by_mail(passwords.password_reset_done), name="account_reset_password_done"),
    path(
        "login/forgotten/<user_number:uidb36>-<str:key>/",
        views.by_mail(atomic(passwords.password_reset_from_key)),
        name="account_reset_password_from_key",
    ),
    path("login/forgotten/done/", views.by_mail(passwords.password_reset_from_key_done), name="account_reset_password_from_key_done"),
    path("account/", include((own, "account"))),
    path("account/", views.account, name="mfa_index"),
    path("account/", views.account, name="mfa_list_webauthn"),
    path("account/", views.account, name="socialaccount_connections"),
    path("account/confirm/", views.confirming(passwords.reauthenticate), name="account_reauthenticate"),
    path("account/confirm/code/", views.confirming(factors.reauthenticate), name="mfa_reauthenticate"),
    path("account/confirm/passkey/", views.confirming(passkeys.reauthenticate_webauthn), name="mfa_reauthenticate_webauthn"),
    path("account/password/", atomic(passwords.password_change), name="account_change_password"),
    path("account/password/set/", atomic(passwords.password_set), name="account_set_password"),
    path("account/authenticator/", never_cache(atomic(authenticators.activate_totp)), name="mfa_activate_totp"),
    path("account/authenticator/remove/", views.leading_back(atomic(authenticators.deactivate_totp)), name="mfa_deactivate_totp"),
    path("account/recovery-codes/", views.leading_back(codes.view_recovery_codes), name="mfa_view_recovery_codes"),
    path("account/recovery-codes/new/", atomic(codes.generate_recovery_codes), name="mfa_generate_recovery_codes"),
    path("account/recovery-codes/file/", views.leading_back(codes.download_recovery_codes), name="mfa_download_recovery_codes"),
    path("account/passkeys/new/", atomic(views.AddPasskey.as_view()), name="mfa_add_webauthn"),
    path("account/passkeys/<int:pk>/", atomic(passkeys.edit_webauthn), name="mfa_edit_webauthn"),
    path("account/passkeys/<int:pk>/remove/", atomic(passkeys.remove_webauthn), name="mfa_remove_webauthn"),
]
