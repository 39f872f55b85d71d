"""One readable log from many processes: time, name, message. Terminal codes and passwords are taken out."""

import os
import re
import sys
import time
from typing import TextIO

NAME_WIDTH = 8
COLOURS = (36, 35, 34, 33, 32, 96, 95, 94)
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SECRETS = re.compile(r"(?P<url>://[^/\s:@]*:)[^/\s@]+(?=@)|(?P<bearer>\bBearer )\S+", re.IGNORECASE)


def clean(text: str) -> str:
    """What a process wrote, safe to print: model output and strangers' libraries may hold terminal codes, URLs may hold passwords."""
    return SECRETS.sub(lambda found: (found["url"] or found["bearer"]) + "***", CONTROL.sub("", text))


class Log:
    """Prints lines as `12:03:11 web      message`, the name coloured on a terminal."""

    def __init__(self, stream: TextIO | None = None, *, colour: bool | None = None) -> None:
        self.stream = stream or sys.stdout
        self.colour = self.stream.isatty() if colour is None else colour
        self.names: list[str] = []

    def line(self, name: str, text: str) -> None:
        if name not in self.names:
            self.names.append(name)
        column = name.ljust(NAME_WIDTH)
        if self.colour:
            column = f"\x1b[{COLOURS[self.names.index(name) % len(COLOURS)]}m{column}\x1b[0m"
        self._print(f"{time.strftime('%H:%M:%S')} {column} {clean(text)}")

    def box(self, *lines: str) -> None:
        """The few lines that a person must not miss."""
        width = max(map(len, lines))
        rule = "─" * (width + 4)
        body = "\n".join(f"│  {line.ljust(width)}  │" for line in lines)
        self._print(f"\n╭{rule}╮\n{body}\n╰{rule}╯\n")

    def _print(self, text: str) -> None:
        try:
            print(text, file=self.stream, flush=True)
        except OSError:  # the terminal or the pipe is gone; the processes must still be read and stopped
            self.stream = open(os.devnull, "w")  # noqa: SIM115 - open until the end
