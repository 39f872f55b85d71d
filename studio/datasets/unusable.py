"""Why one record cannot become a row, with the place inside it; and what a value is called in such a sentence."""

from typing import Any

KINDS = {str: "text", list: "a list", dict: "an object", bool: "true or false", int: "number", float: "number", type(None): "nothing"}


class Unusable(Exception):
    """Why one record cannot become a row. `message` is a place inside it, from 1; `whole` needs no colon after the line."""

    def __init__(self, text: str, *, message: int = 0, column: str = "", whole: bool = False, kind: str = ""):
        super().__init__(text)
        self.text, self.message, self.column, self.whole, self.kind = text, message, column, whole, kind

    def sentence(self, place: str) -> str:
        """The sentence with its place, such as "Line 9, message 2: role "bot" is unknown. ..."."""
        if self.whole:
            return f"{place} {self.text}"
        return f"{place}, message {self.message}: {self.text}" if self.message else f"{place}: {self.text}"


def kind_of(value: Any) -> str:
    return KINDS.get(type(value), type(value).__name__)
