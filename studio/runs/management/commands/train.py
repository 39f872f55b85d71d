"""`manage.py train run.yaml`: places the run that a file describes, and can follow it to its end in plain lines."""

import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.db import OperationalError, ProgrammingError, close_old_connections
from django.urls import reverse

from studio.errors import UserError
from studio.orders.models import Event, Order
from studio.runs.models import Run
from studio.runs.plainyaml import LARGEST
from studio.runs.recipe import read_recipe, start
from studio.training.form import plain_float
from studio.workspaces.models import Member

LOOK = 0.5
"""Seconds between looks at what the worker has reported."""


class Command(BaseCommand):
    help = "Starts the run that a YAML file describes; the page of a run shows such a file. Exits with 1 where it cannot or it fails."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="The run as YAML.")
        parser.add_argument("--follow", action="store_true", help="Prints what the run reports until it ends. Ctrl-C leaves it running.")
        parser.add_argument("--as", dest="email", metavar="EMAIL", help="Who starts it. Needed where more than one person may.")
        parser.add_argument("--workspace", metavar="NAME", help="In which workspace. Needed where that person is in more than one.")
        parser.add_argument("--data-dir", help="Folder that holds everything; read by manage.py before Django starts.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            member = acting(email=options["email"], workspace=options["workspace"])
            run = start(member, read_recipe(content_of(options["file"])))
        except UserError as error:
            raise CommandError(in_lines(error)) from error
        except (OperationalError, ProgrammingError) as error:
            raise CommandError(f"There is no studio in this data folder yet. Run: python3 manage.py up. ({error})") from error
        self.stdout.write(f"Run {run.pk}: {printable(run.name)} is queued, as {member.user}.")
        self.stdout.write(f"Its page: {reverse('runs:detail', args=[run.pk])}")
        if options["follow"] and not self.follow(run):
            raise SystemExit(1)

    def follow(self, run: Run) -> bool:
        """Prints the events of a run until it has ended. True where it succeeded."""
        seen = 0
        while True:
            order = Order.objects.get(pk=run.order_id)  # before its events, so that its last one is among them
            events = list(Event.objects.filter(order=order, seq__gt=seen, seq__lte=order.last_seq))
            for event in thinned(events):
                if line := told(event):
                    self.stdout.write(printable(line))
            self.stdout.flush()
            seen = order.last_seq
            if not order.is_live:
                return order.status == Order.Status.SUCCEEDED
            close_old_connections()
            time.sleep(LOOK)


def acting(*, email: str | None, workspace: str | None) -> Member:
    """Who places the run: the one who is named, or the only one who may."""
    members = Member.objects.filter(user__is_active=True).select_related("user", "workspace").order_by("created_at")
    if email:
        members = members.filter(user__email=email.lower())
    if workspace:
        members = members.filter(workspace__name=workspace)
    able = [member for member in members if member.may("run.create")]
    if len(able) == 1:
        return able[0]
    if not able:
        raise UserError(
            "Nobody of that name may start runs here." if email or workspace else "Nobody here may start runs yet. Set the studio up first."
        )
    people = ", ".join(f"{member.user} in {member.workspace}" for member in able[:10])
    raise UserError(f"Say who starts it, with --as EMAIL and --workspace NAME. There are: {people}.")


def content_of(path: Path) -> bytes:
    """The file, or as much of it as shows that it is too large."""
    try:
        with path.open("rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def in_lines(error: UserError) -> str:
    """What is wrong, one line for each setting, as the form has it beside its fields."""
    return printable("\n".join([error.message, *(f"  {name}: {text}" if name else f"  {text}" for name, text in error.fields.items())]))


def thinned(events: list[Event]) -> list[Event]:
    """Of the losses between two looks only the last, for a quick run makes hundreds; validation losses and all else stay."""
    plain = [event for event in events if event.type == "metric" and "validation_loss" not in event.body]
    return [event for event in events if event not in plain[:-1]]


def told(event: Event) -> str:
    """One line about an event; empty for what has no place among lines."""
    body = event.body
    if event.type == "metric":
        numbers = [
            f"{name.replace('_', ' ')} {plain_float(float(f'{body[name]:.4g}'))}"
            for name in FIGURES
            if isinstance(body.get(name), int | float)
        ]
        return f"step {body['step']} of {body['total']}: {', '.join(numbers)}" if numbers else ""
    if event.type == "phase":
        return body.get("text") or str(body.get("name", "")).capitalize()
    if event.type == "note":
        return f"{body.get('level', 'info')}: {body['text']}"
    if event.type == "checkpoint":
        return f"step {body['step']}: state saved"
    if event.type == "end":
        return f"{Order.Status(body['status']).label}. {body.get('error') or ''}".strip()
    return ""


FIGURES = ("loss", "validation_loss", "learning_rate", "tokens_per_second")


def printable(text: str) -> str:
    """Without what a terminal would obey: names and reports come from anybody."""
    return "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in text)
