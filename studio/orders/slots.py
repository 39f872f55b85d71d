"""What a worker says of itself while it lives: its queue, and the machine that it would train on."""

import json
import logging
import os
import subprocess
import sys
import threading
from typing import Any

from django.db import DatabaseError, close_old_connections
from django.utils import timezone

from studio.orders.models import Slot
from studio.worker.host import training_environment

log = logging.getLogger("studio.orders")
EVERY = 15.0
"""Seconds; a slot that has not been heard of for a minute is gone."""
MEASURE = "import sys; from studio.worker.host import host_facts; print(host_facts(sys.argv[1]).model_dump_json())"


def measure(name: str) -> dict[str, Any]:
    """The machine's facts, measured in a process of its own: the threads of a matrix library would hang a worker that forks."""
    environment = {**os.environ, **training_environment()}
    done = subprocess.run([sys.executable, "-c", MEASURE, name], check=True, capture_output=True, timeout=120, env=environment)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def announce(*, name: str, queue: str, facts: dict[str, Any]) -> None:
    Slot.objects.update_or_create(name=name, defaults={"queue": queue, "facts": facts, "seen_at": timezone.now()})


def forget(name: str) -> None:
    Slot.objects.filter(name=name).delete()


class Announcer(threading.Thread):
    """Announces a slot until its process ends."""

    def __init__(self, *, name: str, queue: str, facts: dict[str, Any]):
        super().__init__(daemon=True)
        self.slot, self.queue, self.facts = name, queue, facts
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(EVERY):
            close_old_connections()
            try:
                announce(name=self.slot, queue=self.queue, facts=self.facts)
            except DatabaseError as error:  # away or busy; a worker that fell silent here would be taken for gone
                log.warning("The worker cannot say that it lives (%s); it tries again.", error)
