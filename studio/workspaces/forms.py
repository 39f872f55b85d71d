"""The few forms that no plugin draws."""

from django import forms
from django.contrib.auth.forms import AuthenticationForm


class SignInForm(AuthenticationForm):
    username = forms.EmailField(label="E-mail", widget=forms.EmailInput(attrs={"autocomplete": "email", "autofocus": True}))
    error_messages = {"invalid_login": "E-mail or password is not right.", "inactive": "E-mail or password is not right."}


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
