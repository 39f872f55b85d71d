"""Columns that the hours and days of calls are kept in."""

from typing import Any

from django.db import models


class WrittenJSON(models.JSONField):
    """JSON that PostgreSQL keeps as it was written. What it takes apart it writes out number by number, which is ten times as long
    where thousands of rows are read at once. Nothing may be asked of the parts, nor whether two are equal.
    """

    def db_type(self, connection: Any) -> str | None:
        return "json" if connection.vendor == "postgresql" else super().db_type(connection)

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return super().from_db_value(value, expression, connection) if isinstance(value, str) else value  # psycopg has read it
