"""Sets a new studio up without a browser: first owner, workspace and API key."""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError, call_command

from studio.errors import UserError
from studio.workspaces import keys
from studio.workspaces.policy import SCOPE_ACTIONS
from studio.workspaces.services import set_up


class Command(BaseCommand):
    help = "Creates the first owner, a workspace and an API key; prints them as one line of JSON."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--data-dir", help="Folder that holds everything; read by manage.py before Django starts.")
        parser.add_argument("--email", required=True)
        parser.add_argument("--password-file", type=Path, required=True)
        parser.add_argument("--workspace", required=True)
        parser.add_argument("--api-key", required=True, metavar="NAME")

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", verbosity=0, interactive=False)
        password = options["password_file"].read_text().rstrip("\r\n")
        try:
            member = set_up(email=options["email"], password=password, workspace=options["workspace"], token=None)
            _, secret = keys.create(member, name=options["api_key"], scopes=list(SCOPE_ACTIONS), days=None)
        except UserError as error:
            raise CommandError(" ".join([error.message, *error.fields.values()])) from error
        self.stdout.write(json.dumps({"workspace": str(member.workspace_id), "api_key": secret}))
