"""What the reader can mend. Everything else is a bug and flies. No Django, no torch."""


class UserError(Exception):
    """Says what is wrong, then what to do. `fields` puts a sentence beside the field it is about."""

    def __init__(self, message: str, *, fields: dict[str, str] | None = None, code: str = "invalid"):
        super().__init__(message)
        self.message = message
        self.fields = fields or {}
        self.code = code
