"""The few forms that no plugin draws."""

from typing import Any

from allauth.account.forms import LoginForm
from django import forms


class SignInForm(LoginForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        address, password = self.fields["login"], self.fields["password"]
        address.label, address.widget = "E-mail", forms.EmailInput(attrs={"autocomplete": "username webauthn", "autofocus": True})
        password.help_text = ""
        password.widget.attrs.pop("placeholder")


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
