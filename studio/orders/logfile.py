"""Keeps what a process says: the beginning and the end of it, however much that is."""

import os
import threading
from pathlib import Path

HEAD = 8 << 20
"""Bytes that are written as they come."""
TAIL = 1 << 20
"""Bytes at the end that are kept where there was more, for the last words tell why a process died."""
PIECE = 1 << 16


class LogFile(threading.Thread):
    """Reads the pipe `descriptor` until its end into the file `path`. It goes on reading where nothing more can be kept,
    since a process that nobody listens to would stand still.
    """

    def __init__(self, descriptor: int, path: Path):
        super().__init__(daemon=True, name="log")
        self.descriptor, self.path = descriptor, path
        self.room, self.beyond = HEAD, 0
        self.tail = bytearray()
        self.said = 0
        """Bytes that came; they tell whether the process still says anything."""

    def run(self) -> None:
        with self.path.open("ab", buffering=0) as file:
            while piece := os.read(self.descriptor, PIECE):
                self.keep(piece, file.fileno())
            if left_out := self.beyond - len(self.tail):
                self.write(f"\n… {left_out} bytes were left out here …\n".encode(), file.fileno())
            self.write(bytes(self.tail), file.fileno())

    def keep(self, piece: bytes, file: int) -> None:
        self.said += len(piece)
        self.write(piece[: self.room], file)
        rest = piece[self.room :]
        self.room -= len(piece) - len(rest)
        self.beyond += len(rest)
        self.tail += rest
        if len(self.tail) > 2 * TAIL:  # not at every piece: it moves the whole tail
            del self.tail[:-TAIL]

    def write(self, piece: bytes, file: int) -> None:
        try:
            while piece:
                piece = piece[os.write(file, piece) :]
        except OSError:  # a full disk: the process says so itself, in its last event
            self.room = 0
