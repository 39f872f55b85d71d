"""Prints a new one-time link for the first owner."""

from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand, CommandError

from studio.workspaces.services import setup_url


class Command(BaseCommand):
    help = "Prints a new one-time link through which the first owner makes their account."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--base-url", default="http://127.0.0.1:8000")

    def handle(self, *args: Any, **options: Any) -> None:
        url = setup_url(options["base_url"])
        if url is None:
            raise CommandError("This studio has been set up already.")
        self.stdout.write(url)
