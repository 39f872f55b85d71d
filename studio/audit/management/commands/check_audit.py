"""Looks whether audit records were changed or taken out by hand. Exits with 1 where they were."""

from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand
from django.db import connection

from studio.audit import triggers
from studio.audit.chain import faults, seal, unguarded
from studio.audit.models import AuditChain, AuditRecord


class Command(BaseCommand):
    help = "Checks the audit records of every workspace: none changed, none missing. Keep what it prints elsewhere, to compare later."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--guard", action="store_true", help="Puts the database's triggers against changes back where they are missing."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["guard"]:
            triggers.make(connection)
        seal()
        found = [unguarded()] if unguarded() else []
        recorded = AuditRecord.objects.order_by().values_list("workspace", flat=True).distinct()
        for workspace in sorted({*recorded, *AuditChain.objects.values_list("pk", flat=True)}):
            wrong = list(faults(workspace))
            chain = AuditChain.objects.filter(pk=workspace).first()
            if chain is not None:
                self.stdout.write(f"Workspace {workspace}: {chain.place} records, the last one {chain.sha256}")
            found += [f"Workspace {workspace}: {sentence}" for sentence in wrong]
        for sentence in found:
            self.stderr.write(sentence)
        if found:
            raise SystemExit(1)
        self.stdout.write("Nothing was changed or taken out.")
