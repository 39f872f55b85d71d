"""Secrets of others that the studio keeps, such as a key of an endpoint: encrypted with a key that is derived from SECRET_KEY."""

import base64

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from studio.errors import UserError

PURPOSE = b"adapter studio: secrets of connections"


def sealed(secret: str) -> str:
    """What is stored of a secret; nothing of nothing."""
    return lock_for(PURPOSE).encrypt(secret.encode()).decode() if secret else ""


def opened(stored: str) -> str:
    """The secret again. Raises UserError where SECRET_KEY has changed since it was stored."""
    if not stored:
        return ""
    try:
        return lock_for(PURPOSE).decrypt(stored.encode()).decode()
    except InvalidToken:
        raise UserError("The stored key cannot be read any more, since the server's SECRET_KEY has changed. Enter it again.") from None


def lock_for(purpose: bytes) -> Fernet:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(settings.SECRET_KEY.encode())
    return Fernet(base64.urlsafe_b64encode(derived))
