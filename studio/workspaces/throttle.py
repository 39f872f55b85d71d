"""Slows down guessing: so many tries per name and address in a quarter of an hour."""

import hashlib

from django.core.cache import cache

WINDOW = 15 * 60
TRIES = 8
TRIES_ANYWHERE = 100
"""For a name from all addresses together: few enough to guess at no password, and more than a person needs."""


def slot(kind: str, who: str) -> str:
    return f"throttle:{kind}:{hashlib.sha256(who.encode()).hexdigest()}"


def is_blocked(kind: str, who: str, *, tries: int = TRIES) -> bool:
    return int(cache.get(slot(kind, who), 0)) >= tries


def failed(kind: str, who: str) -> None:
    key = slot(kind, who)
    if cache.add(key, 1, WINDOW):
        return
    try:
        cache.incr(key)
    except ValueError:  # its quarter of an hour ended just now
        cache.set(key, 1, WINDOW)


def forget(kind: str, who: str) -> None:
    cache.delete(slot(kind, who))
