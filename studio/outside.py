"""Which addresses outside the studio may be asked: through the server, nobody reaches what only the server can reach. No Django."""

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from studio.errors import UserError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def checked_address(url: str, *, private: Sequence[str]) -> str:
    """The address without its trailing slash. Raises UserError where it is none, or leads to a machine that is not public.

    `private` are the hosts, as `name` or `name:port`, that the operator allows all the same (STUDIO_PRIVATE_HOSTS).
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise UserError("Write an address that begins with https:// or http://, without a password in it.")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise UserError("The port of the address is no number from 1 to 65535.") from None
    if is_allowed(parts.hostname, port, private=private):
        return url.strip().rstrip("/")
    if not all(is_public(found) for found in resolved(parts.hostname, port)):
        text = f"{parts.hostname} is not a public address. The server's operator can allow it in STUDIO_PRIVATE_HOSTS."
        raise UserError(text, code="private_address")
    if parts.scheme == "http":
        raise UserError("Write https://: over http:// the key would travel in clear.")
    return url.strip().rstrip("/")


def is_allowed(host: str, port: int, *, private: Sequence[str]) -> bool:
    return host in private or f"{host}:{port}" in private


def is_public(address: Address) -> bool:
    return address.is_global and not address.is_multicast


def resolved(host: str, port: int) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{host[:100]} was not found. Look at the address.") from error
    return [ipaddress.ip_address(str(address[4][0]).split("%")[0]) for address in found]
