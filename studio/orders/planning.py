"""Keeps what SQLite knows of its tables fresh, since it chooses indexes by that. PostgreSQL does so by itself."""

from django.db import connection

ROWS_LOOKED_AT = 400
"""Of each index; SQLite's own advice for large tables."""


def look_at_tables() -> list[str]:
    """Counts anew only those tables that have changed much since they were counted last."""
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"PRAGMA analysis_limit={ROWS_LOOKED_AT}")
            cursor.execute("PRAGMA optimize=0x10002")
    return []
