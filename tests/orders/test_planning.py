"""What SQLite knows of its tables is looked at anew by the rounds."""

import pytest
from django.core.management import call_command
from django.db import connection


@pytest.mark.django_db(transaction=True)
def test_the_rounds_count_tables_that_nobody_had_counted(acme):
    call_command("reconcile")
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM sqlite_stat1 WHERE tbl = 'artifacts_artifact'")
            assert cursor.fetchone()[0] > 0
