"""What a browser answers for a passkey: only what was asked for on a page of ours, and whatever else it sends is a wrong code."""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from allauth.core import context
from allauth.mfa.adapter import get_adapter
from allauth.mfa.webauthn.forms import AddWebAuthnForm, AuthenticateWebAuthnForm, LoginWebAuthnForm, ReauthenticateWebAuthnForm
from django import forms
from fido2.utils import websafe_decode

ODD = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, struct.error)
"""What allauth and fido2 raise at an answer that no browser gives."""


@contextmanager
def as_wrong_code() -> Iterator[None]:
    try:
        yield
    except ODD as error:
        raise get_adapter().validation_error("incorrect_code") from error


class Answer(forms.JSONField):
    widget = forms.HiddenInput

    def to_python(self, value: Any) -> Any:
        with as_wrong_code():
            if value and "\\u0000" in value:  # PostgreSQL cannot keep it
                raise ValueError(value)
            return super().to_python(value)

    def bound_data(self, data: Any, initial: Any) -> Any:
        """Nothing: an answer is good for once."""


def refuse_other_page(answer: Any) -> None:
    """A browser tells which page asked; fido2 also takes other ports and whatever stands before our name. Raises ValueError."""
    told = json.loads(websafe_decode(answer["response"]["clientDataJSON"]))
    page = f"{context.request.scheme}://{context.request.get_host()}".lower()
    if told["origin"] != page:
        raise ValueError(f"Asked on {told['origin']!r}, and this is {page}.")


class SecondFactor(AuthenticateWebAuthnForm):
    credential = Answer()

    def clean_credential(self) -> Any:
        with as_wrong_code():
            refuse_other_page(self.cleaned_data["credential"])
            return super().clean_credential()


class SignInByPasskey(SecondFactor, LoginWebAuthnForm):
    credential = Answer()


class ConfirmByPasskey(SecondFactor, ReauthenticateWebAuthnForm):
    credential = Answer()


class NewPasskey(AddWebAuthnForm):
    credential = Answer()

    def clean(self) -> Any:
        with as_wrong_code():
            if answer := self.cleaned_data.get("credential"):
                refuse_other_page(answer)
            return super().clean()
