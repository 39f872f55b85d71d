"""`manage.py up`: what the command line says, and what only Django knows, for the supervisor."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, call_command
from django.db import connections

from studio.errors import UserError
from studio.supervisor.up import Hooks, Options, up
from studio.workspaces import services


class Command(BaseCommand):
    help = "Runs the web server, Redis and the workers in this terminal until Ctrl-C."
    requires_system_checks = ()  # `check` does them; here they would delay the first page

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 is every one of this machine.")
        parser.add_argument("--port", type=int, default=8000, help="Port to listen on; 0 takes a free one.")
        parser.add_argument("--workers", type=int, help="Trainings that run at once. Default: one on each NVIDIA GPU, else one on the CPU.")
        parser.add_argument("--ready-file", type=Path, help="Gets the address and the link for the first owner once pages are served.")
        parser.add_argument("--data-dir", help="Folder with the database and all files. Default: data/ beside manage.py.")

    def handle(self, *args: Any, **options: Any) -> None:
        ready_file = options["ready_file"].absolute() if options["ready_file"] else None
        wanted = Options(settings.DATA_DIR, options["host"], options["port"], options["workers"], ready_file, settings.ENGINE_WORDS)
        try:
            up(wanted, Hooks(prepare=migrate, setup_url=setup_url))
        except UserError as error:
            raise SystemExit(error.message) from error


def migrate() -> None:
    call_command("migrate", verbosity=0, interactive=False)
    connections.close_all()


def setup_url(base_url: str) -> str | None:
    link = services.setup_url(base_url)
    connections.close_all()
    return link
