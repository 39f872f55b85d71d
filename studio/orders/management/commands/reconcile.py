"""Finds orders that a dead worker left and rings again for those nobody heard."""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand
from django.db import close_old_connections

from studio.orders.services import reconcile, worker_lost


class Command(BaseCommand):
    help = "Takes up again what a lost worker or a flushed queue left behind."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--every", type=float, default=0, help="Seconds between looks; 0 looks once.")
        parser.add_argument("--lost", metavar="WORKER", help="A worker that has just ended: what it held is taken up at once.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["lost"]:
            for line in worker_lost(options["lost"]):
                self.stdout.write(line)
        while True:
            for line in reconcile():
                self.stdout.write(line)
            if not options["every"]:
                return
            close_old_connections()
            time.sleep(options["every"])
