"""Slows down guessing: so many tries per name and address in a quarter of an hour."""

import hashlib

from django.core.cache import cache

WINDOW = 15 * 60
TRIES = 8


def slot(kind: str, who: str) -> str:
    return f"throttle:{kind}:{hashlib.sha256(who.encode()).hexdigest()}"


def is_blocked(kind: str, who: str) -> bool:
    return int(cache.get(slot(kind, who), 0)) >= TRIES


def failed(kind: str, who: str) -> None:
    key = slot(kind, who)
    cache.add(key, 0, WINDOW)
    cache.incr(key)


def forget(kind: str, who: str) -> None:
    cache.delete(slot(kind, who))
