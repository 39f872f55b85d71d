"""Which servers go on computing though nobody asks: a chat template that never ends, of somebody who has left. Ends nothing itself."""

from collections.abc import Iterable
from dataclasses import dataclass

from studio.serving.engines.servers import Server


@dataclass(frozen=True)
class Look:
    """A server that nobody used, at one look."""

    uses: int
    seconds: float
    quiet: bool
    """Nobody had used it since the look before either, so what was being computed for whoever left is done."""


class Watch:
    def __init__(self, *, most: float):
        """`most`: seconds of computing between two looks that nobody needs to account for."""
        self.most = most
        self.looks: dict[Server, Look] = {}

    def look(self, servers: Iterable[Server]) -> list[Server]:
        """Those that have computed since the last look, without a question before, between, or now."""
        before, self.looks = self.looks, {}
        burning = []
        for server in servers:
            if server.users:
                continue
            last, seconds = before.get(server), server.seconds
            quiet = last is not None and last.uses == server.uses
            if last and quiet and last.quiet and seconds - last.seconds > self.most:
                burning.append(server)
            self.looks[server] = Look(server.uses, seconds, quiet)
        return burning
