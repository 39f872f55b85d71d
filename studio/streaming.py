"""Sends what is made while it is sent."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from asgiref.sync import sync_to_async


async def sent(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Each piece is made in a thread, for others are served meanwhile; Django would read a plain iterator whole."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        if piece:
            yield piece


async def read(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The same for what is read from the database: in the thread of the request, whose connection is closed with it."""
    while (piece := await sync_to_async(_next)(pieces)) is not None:
        if piece:
            yield piece


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)
