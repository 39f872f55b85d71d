"""`manage.py compare comparison.yaml`: places the comparison that a file describes, and can follow it to its verdict in plain lines."""

import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.db import OperationalError, ProgrammingError, close_old_connections
from django.urls import reverse

from studio.comparisons.models import ArmRun, Comparison
from studio.comparisons.recipe import read_recipe, start
from studio.errors import UserError
from studio.orders.models import Order
from studio.runs.management.commands.train import acting, content_of, in_lines, printable
from studio.training.form import plain_float
from studio.workspaces.templatetags.studio import duration

LOOK = 1.0
"""Seconds between looks at how far it is."""
STRIDE = 0.1
"""Share of a run after which it is told of again."""


class Command(BaseCommand):
    help = "Starts the comparison that a YAML file describes; the page of a comparison offers such a file. Exits with 1 where it fails."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="The comparison as YAML.")
        parser.add_argument(
            "--follow", action="store_true", help="Prints how it goes, and the verdict in the end. Ctrl-C leaves it running."
        )
        parser.add_argument("--as", dest="email", metavar="EMAIL", help="Who starts it. Needed where more than one person may.")
        parser.add_argument("--workspace", metavar="NAME", help="In which workspace. Needed where that person is in more than one.")
        parser.add_argument("--data-dir", help="Folder that holds everything; read by manage.py before Django starts.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            member = acting(email=options["email"], workspace=options["workspace"])
            comparison = start(member, read_recipe(content_of(options["file"])))
        except UserError as error:
            raise CommandError(in_lines(error)) from error
        except (OperationalError, ProgrammingError) as error:
            raise CommandError(f"There is no studio in this data folder yet. Run: python3 manage.py up. ({error})") from error
        runs = ArmRun.objects.filter(arm__comparison=comparison).count()
        self.say(f"Comparison {comparison.pk}: {comparison.name} is queued with {runs} runs, as {member.user}.")
        self.say(f"Its page: {reverse('comparisons:detail', args=[comparison.pk])}")
        if options["follow"] and not self.follow(comparison):
            raise SystemExit(1)

    def say(self, line: str) -> None:
        self.stdout.write(printable(line))
        self.stdout.flush()

    def follow(self, comparison: Comparison) -> bool:
        """Prints what changes until the comparison has ended. True where there is a verdict."""
        begun, told = time.monotonic(), dict[Any, str]()
        while True:
            comparison = Comparison.objects.select_related("order").get(pk=comparison.pk)
            after = duration(time.monotonic() - begun)
            for each in (
                ArmRun.objects.filter(arm__comparison=comparison).select_related("arm", "run__order").order_by("arm__number", "seed")
            ):
                if (line := words(each)) and told.get(each.pk) != line:
                    told[each.pk] = line
                    self.say(f"[{after}] {each.arm}, seed {each.seed}: {line}")
            if (line := measuring(comparison)) and told.get("measuring") != line:
                told["measuring"] = line
                self.say(f"[{after}] {line}")
            if not comparison.is_live:
                return self.ended(comparison, after)
            close_old_connections()
            time.sleep(LOOK)

    def ended(self, comparison: Comparison, after: str) -> bool:
        self.say(f"[{after}] {comparison.get_state_display()}. {comparison.error}".strip())
        if comparison.sentence:
            self.say(comparison.sentence)
        return comparison.state == Comparison.State.DONE


def words(each: ArmRun) -> str:
    """How far a run is, in steps that are worth a line."""
    order = each.run.order
    if order.status == Order.Status.QUEUED:
        return ""
    if order.status == Order.Status.RUNNING and order.total:
        return f"{int(order.share / STRIDE) * STRIDE:.0%}"
    loss = order.latest.get("validation_loss")
    ended = f", validation loss {plain_float(float(f'{loss:.4g}'))}" if isinstance(loss, int | float) and not order.is_live else ""
    why = each.ended_early or (order.error if order.status == Order.Status.FAILED else "")
    return f"{order.get_status_display().lower()}{ended}{'. ' + why if why else ''}"


def measuring(comparison: Comparison) -> str:
    order = comparison.order
    if order is None or comparison.state != Comparison.State.MEASURING:
        return ""
    return f"Measuring: {order.phase_text or order.get_status_display().lower()}"
