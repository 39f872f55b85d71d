"""`manage.py fill`: a workspace with very many things in it, to see whether every page stays quick."""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from studio.clients.filling import Amounts, fill
from studio.workspaces.models import User, Workspace


class Command(BaseCommand):
    help = "Makes a workspace with very many clients, projects, runs and artifacts, rows only, to see whether every page stays quick."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email", help="who is to own it: somebody who has an account here")
        parser.add_argument("--workspace", default="Very many", help="what it is called; there must be none of this name")
        for name, amount in vars(Amounts()).items():
            parser.add_argument(f"--{name}", type=int, default=amount)

    def handle(self, *, email: str, workspace: str, **options: Any) -> None:
        user = User.objects.filter(email=email.lower()).first()
        if user is None:
            raise CommandError(f"Nobody has an account as {email}. Name somebody who has one.")
        if Workspace.objects.filter(name=workspace).exists():
            raise CommandError(f"There is a workspace called {workspace} already. Choose another name with --workspace.")
        amounts = Amounts(**{name: options[name] for name in vars(Amounts())})
        if min(vars(amounts).values()) < 1:
            raise CommandError("There must be at least one of each.")
        started = time.monotonic()
        fill(user, workspace, amounts)
        self.stdout.write(f"{workspace} is filled after {time.monotonic() - started:.0f} s: {amounts}")
