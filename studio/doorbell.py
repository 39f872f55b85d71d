"""Rings the pages that are open: Redis says that there is something to look at, and the database what."""

import functools
import logging

import redis
from django.conf import settings

log = logging.getLogger("studio.doorbell")


@functools.cache
def redis_at(url: str) -> "redis.Redis":
    """One pool of connections for each process; an order in work rings many times a second."""
    return redis.Redis.from_url(url)


def ring(channel: str, whom: str) -> None:
    try:
        redis_at(settings.REDIS_URL).publish(channel, whom)
    except redis.RedisError as error:
        log.warning("The doorbell is away (%s); pages catch up by themselves.", error)
