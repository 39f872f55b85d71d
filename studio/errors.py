"""What the reader can mend. Everything else is a bug and flies. No Django, no torch."""

from typing import Any


class UserError(Exception):
    """Says what is wrong, then what to do. `fields` puts a sentence beside the field it is about.

    `facts` is what was found all the same and helps to mend it; an order that fails keeps it as its result.
    """

    def __init__(self, message: str, *, fields: dict[str, str] | None = None, code: str = "invalid", facts: dict[str, Any] | None = None):
        super().__init__(message)
        self.message = message
        self.fields = fields or {}
        self.code = code
        self.facts = facts or {}
