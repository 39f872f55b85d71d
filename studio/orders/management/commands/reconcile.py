"""The rounds: takes up what a dead worker left, rings for what may start now, pauses what gives way, seals audit records, deletes what has
expired."""

import logging
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand
from django.db import close_old_connections

from studio.audit.chain import seal
from studio.orders.kinds import ROUNDS, SWEEPS
from studio.orders.preempting import make_room, rest_by_day
from studio.orders.services import reconcile, worker_lost
from studio.orders.states import sweep

log = logging.getLogger(__name__)
SWEEP = 3600.0
"""Seconds between two looks for expired states."""


def swept() -> list[str]:
    """What each sweep did, in words."""
    return done_by((sweep, *SWEEPS), "A sweep failed, and is tried again within the hour.")


def done_by(steps: Iterable[Callable[[], list[str]]], failed: str) -> list[str]:
    """An error of one is logged, and neither the others nor the rounds end with it."""
    did = []
    for each in steps:
        try:
            did += each()
        except Exception:
            log.exception(failed)
    return did


class Command(BaseCommand):
    help = "Takes up again what a lost worker or a flushed queue left behind."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--every", type=float, default=0, help="Seconds between looks; 0 looks once.")
        parser.add_argument("--lost", metavar="WORKER", help="A worker that has just ended: what it held is taken up at once.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["lost"]:
            for line in worker_lost(options["lost"]):
                self.stdout.write(line)
        swept_at = -SWEEP
        while True:
            did = reconcile() + rest_by_day() + [line for queue in settings.RQ_QUEUES for line in make_room(queue)]
            did += done_by(ROUNDS, "A round failed, and is tried again in the next.")
            seal()
            if time.monotonic() - swept_at > SWEEP:
                swept_at = time.monotonic()
                did += swept()
            for line in did:
                self.stdout.write(line)
            if not options["every"]:
                return
            close_old_connections()
            time.sleep(options["every"])
