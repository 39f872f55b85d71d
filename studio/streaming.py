"""Sends what is made while it is sent."""

import asyncio
from collections.abc import AsyncIterator, Iterator


async def sent(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Each piece is made in a thread, for others are served meanwhile; Django would read a plain iterator whole."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        if piece:
            yield piece
