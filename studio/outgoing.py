"""A client for files of others: whatever a name leads to, and wherever an answer sends on, it reaches public addresses only. No Django."""

import os
from collections.abc import Sequence

import httpx

from studio.errors import UserError
from studio.outside import Address, is_allowed, is_public, resolved

PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
TIMEOUT = httpx.Timeout(60, connect=10)
MOST_REDIRECTS = 5


def client(*, private: Sequence[str], timeout: httpx.Timeout | float = TIMEOUT) -> httpx.Client:
    """`private` are hosts, as `name` or `name:port`, that are asked although their addresses are not public.

    Where the operator has set a proxy, the proxy decides what is reached.
    """
    limits = {"timeout": timeout, "max_redirects": MOST_REDIRECTS, "follow_redirects": True}
    if any(os.environ.get(name) for name in PROXIES):
        return httpx.Client(trust_env=True, **limits)  # type: ignore[arg-type]
    return httpx.Client(transport=PublicOnly(private), trust_env=False, **limits)  # type: ignore[arg-type]


class PublicOnly(httpx.BaseTransport):
    """Looks a name up once, and asks the very address that was found to be public: the name cannot change its mind in between."""

    def __init__(self, private: Sequence[str]):
        self.private = private
        # An open connection belongs to an address, not to a name; so none is kept.
        self.inner = httpx.HTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        if is_allowed(host, port, private=self.private):
            return self.inner.handle_request(request)
        found = resolved(host, port)
        if not all(is_public(address) for address in found):
            raise UserError(f"{host[:100]} is not a public address. The server's operator can allow it in STUDIO_PRIVATE_HOSTS.")
        if request.url.scheme != "https":
            raise UserError(f"{host[:100]} would send the file over http://, which anybody on the way can change.")
        refused: httpx.ConnectError | None = None
        for address in found:
            try:
                return self.inner.handle_request(asked_at(address, request))
            except httpx.ConnectError as error:
                refused = error
        raise refused or httpx.ConnectError("The name leads nowhere.")

    def close(self) -> None:
        self.inner.close()


def asked_at(address: Address, request: httpx.Request) -> httpx.Request:
    """The same request to that address; its header Host, and the certificate that is expected, keep the name."""
    named = {**request.extensions, "sni_hostname": request.url.host}
    url = request.url.copy_with(host=str(address))
    return httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=named)
