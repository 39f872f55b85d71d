"""What a worker says of itself while it lives: its queue, and the machine that it would train on."""

import threading
from typing import Any

from django.db import close_old_connections
from django.utils import timezone

from studio.orders.models import Slot

EVERY = 15.0
"""Seconds; a slot that has not been heard of for a minute is gone."""


def announce(*, name: str, queue: str, facts: dict[str, Any]) -> None:
    Slot.objects.update_or_create(name=name, defaults={"queue": queue, "facts": facts, "seen_at": timezone.now()})


def forget(name: str) -> None:
    Slot.objects.filter(name=name).delete()


class Announcer(threading.Thread):
    """Announces a slot until its process ends. The machine is measured once, in this thread."""

    def __init__(self, *, name: str, queue: str):
        super().__init__(daemon=True)
        self.slot, self.queue = name, queue
        self.ended = threading.Event()

    def run(self) -> None:
        from studio.ml.host import host_facts  # torch-free; measures for half a second

        facts = host_facts(self.slot).model_dump(mode="json")
        while True:
            close_old_connections()
            announce(name=self.slot, queue=self.queue, facts=facts)
            if self.ended.wait(EVERY):
                return
