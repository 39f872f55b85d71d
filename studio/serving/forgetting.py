"""Has the process that answers let go of models that were erased: on the disk they are gone, in its memory they would stay."""

import httpx
from django.conf import settings

PIECE = 10_000
"""Names that are told at once."""
TIMEOUT = httpx.Timeout(120, connect=5)
"""An engine that loads a model answers once it has."""


def forget(names: list[str]) -> bool:
    """`names` are the beginnings of hashes, as in the files' names. False where the process could not be asked; one that does not run
    has nothing in memory.
    """
    transport = httpx.HTTPTransport(uds=settings.ENGINE_SOCKET)
    try:
        with httpx.Client(transport=transport, timeout=TIMEOUT) as client:
            for begin in range(0, len(names), PIECE):
                client.post("http://engine/forget", json={"names": names[begin : begin + PIECE]}).raise_for_status()
    except httpx.ConnectError:
        return True
    except httpx.HTTPError:
        return False
    return True
