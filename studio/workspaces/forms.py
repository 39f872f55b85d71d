"""The few forms that no plugin draws."""

from typing import Any

from allauth.account.forms import (
    ChangePasswordForm,
    LoginForm,
    ReauthenticateForm,
    ResetPasswordForm,
    ResetPasswordKeyForm,
    SetPasswordForm,
)
from django import forms


def in_our_words(form: forms.Form, **labels: str) -> None:
    """allauth's labels are in the case of titles, and repeated inside the fields."""
    for name, label in labels.items():
        field = form.fields[name]
        field.label, field.help_text = label, "At least 12 characters." if name == "password1" else ""
        field.widget.attrs.pop("placeholder", None)


class SignInForm(LoginForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["login"].widget = forms.EmailInput(attrs={"autocomplete": "username webauthn", "autofocus": True})
        in_our_words(self, login="E-mail", password="Password")


class ChangePassword(ChangePasswordForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        in_our_words(self, oldpassword="Current password", password1="New password", password2="New password again")


class FirstPassword(SetPasswordForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        in_our_words(self, password1="New password", password2="New password again")


class NewPassword(ResetPasswordKeyForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        in_our_words(self, password1="New password", password2="New password again")


class ForgottenPassword(ResetPasswordForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        in_our_words(self, email="Your e-mail")


class ConfirmByPassword(ReauthenticateForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        in_our_words(self, password="Password")


class SetupForm(forms.Form):
    email = forms.EmailField(label="Your e-mail", widget=forms.EmailInput(attrs={"autocomplete": "email"}))
    password = forms.CharField(
        label="A password",
        min_length=12,
        strip=False,
        help_text="At least 12 characters.",
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )
    workspace = forms.CharField(label="Name of your workspace", max_length=80, help_text="Your team or company, for example.")
