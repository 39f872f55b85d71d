"""How long a list in a JSON column is, counted by the database: the list may be a megabyte."""

from typing import Any

from django.db.models import Func, IntegerField


class Length(Func):
    function = "json_array_length"
    output_field = IntegerField()

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, function="jsonb_array_length", **extra)
