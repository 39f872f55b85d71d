"""llama.cpp in this very process: one server per base model, its adapters chosen per request (see `studio.ml.chatting`)."""

import itertools
import json
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.chatting import refusal, start_server
from studio.ml.gguf.serving import prepare
from studio.serving.engines.contract import Ask

BASES = 2
"""Base models held in memory; the one unused longest leaves first."""
ADAPTERS = 8
"""Adapters held per base model."""
CONTEXT = 4096
"""Tokens of one conversation."""
AT_ONCE = 2
"""Conversations that a base model answers side by side."""


@dataclass
class Loaded:
    """A base model in memory with the adapters that it can put on."""

    server: Any
    adapters: list[str] = field(default_factory=list)


class LlamaCpp:
    def __init__(self, cache: Path):
        self.cache = cache
        self.loaded: OrderedDict[str, Loaded] = OrderedDict()
        self.lock = threading.Lock()
        self.sockets = tempfile.TemporaryDirectory(prefix="studio-llama-")
        self.numbers = itertools.count()

    def answer(self, ask: Ask, *, say: Callable[[str], bool], state: Callable[[str], None]) -> dict[str, Any]:
        asked_at = time.monotonic()
        with self.lock:  # loading is done once, also where both columns ask at the same time
            loaded, adapter = self.ready(ask, state)
        state("answering")
        first: list[float] = []
        timings: dict[str, float] = {}
        refused: list[str] = []

        def on_chunk(chunk: Any) -> bool:
            told = chunk if isinstance(chunk, dict) else json.loads(chunk)
            timings.update(told.get("timings") or {})
            if problem := told.get("error"):
                refused.append(refusal(problem))
            for choice in told.get("choices", []):
                piece = choice.get("delta", {}).get("content")
                if piece:
                    first.append(time.monotonic())
                    if not say(piece):
                        return True
            return False

        body: dict[str, Any] = {
            "messages": ask.messages,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "stream": True,
            "lora": [{"id": number, "scale": 1.0 if number == adapter else 0.0} for number in range(len(loaded.adapters))],
        }
        if ask.top_p is not None:
            body["top_p"] = ask.top_p
        if ask.stop:
            body["stop"] = list(ask.stop)
        if not say(""):  # whoever asked has left while the model was loaded
            return {"tokens": 0, "seconds": 0.0, "first": 0.0}
        loaded.server.handle_chat_completions(body, on_chunk)
        if refused:
            raise UserError(refused[0])
        begun_at = first[0] if first else time.monotonic()
        # llama.cpp's own clock, since pieces that were made one by one can arrive together
        seconds = timings.get("predicted_ms", 1000 * (time.monotonic() - begun_at)) / 1000
        return {"tokens": int(timings.get("predicted_n", len(first))), "seconds": round(seconds, 3), "first": round(begun_at - asked_at, 3)}

    def ready(self, ask: Ask, state: Callable[[str], None]) -> tuple[Loaded, int | None]:
        """The loaded base with the adapter on it, and the adapter's number there; None for none."""
        state("preparing the model")
        files = prepare(base=ask.base, adapter=ask.adapter, cache=self.cache)
        base, adapter = str(files["model"]), str(files["adapter"]) if files.get("adapter") else None
        known = self.loaded.get(base)
        if known and (adapter is None or adapter in known.adapters):
            self.loaded.move_to_end(base)
            return known, known.adapters.index(adapter) if adapter else None
        state("loading the model")
        # Adapters are fixed when a server starts: a new one means a new server; running answers keep the old.
        adapters = [*(known.adapters if known else []), *([adapter] if adapter else [])][-ADAPTERS:]
        fresh = Loaded(self.start(base, adapters), adapters)
        self.loaded[base] = fresh
        self.loaded.move_to_end(base)
        while len(self.loaded) > BASES:
            self.loaded.popitem(last=False)
        return fresh, adapters.index(adapter) if adapter else None

    def forget(self, names: list[str]) -> int:
        """What was erased is still mapped into memory until its server is gone. Answers under way keep theirs to their end."""
        with self.lock:
            held = [
                base for base, loaded in self.loaded.items() if any(name in path for path in (base, *loaded.adapters) for name in names)
            ]
            for base in held:
                del self.loaded[base]
        return len(held)

    def start(self, base: str, adapters: list[str]) -> Any:
        socket = os.path.join(self.sockets.name, f"{next(self.numbers)}.sock")
        return start_server(base, adapters, context=CONTEXT, at_once=AT_ONCE, socket=socket)
