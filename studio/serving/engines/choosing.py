"""Which engine answers for a model: vLLM where it can, llama.cpp for all else. Behaves as one engine."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from studio.errors import UserError
from studio.serving.engines.contract import Engine, Route, State, Subject, Took
from studio.serving.engines.vllm import VLLM, Way


def add_options(parser: ArgumentParser) -> None:
    """As the settings hand them on: STUDIO_ENGINE, STUDIO_VLLM_URLS, STUDIO_VLLM_COMMAND, STUDIO_SERVING_CONTEXT."""
    parser.add_argument("--engine", choices=["auto", "llamacpp", "vllm"], default="auto")
    parser.add_argument("--vllm-url", action="append", default=[], help="A vLLM server that runs elsewhere.")
    parser.add_argument("--vllm-command", default="vllm", help="What starts one here, where there is a GPU; empty starts none.")
    parser.add_argument("--context", type=int, default=0, help="Tokens of one conversation at most; 0 is the engine's own choice.")


def chosen(options: Namespace, llamacpp: Callable[[], Engine]) -> Engine:
    """The engine that the options mean. Called where a loop runs. `llamacpp` makes the other one, where it is needed."""
    if options.engine == "llamacpp":
        return llamacpp()
    key = os.environ.get("STUDIO_VLLM_KEY", "")
    way = Way(tuple(options.vllm_url), key=key, command=options.vllm_command, context=options.context)
    vllm = VLLM(way)  # a key on the command line would be read by everybody on the machine
    if options.engine == "vllm":
        return vllm
    return Choosing(vllm, llamacpp()) if vllm.is_possible else llamacpp()


class Choosing:
    """Asks `first`, and hands on to `second` what it says that it cannot do ("unsupported"). A lack of memory is told, not handed on:
    what was made for a GPU would hold up the processors that train, and nobody had been told.
    """

    def __init__(self, first: Engine, second: Engine):
        self.first, self.second = first, second
        self.name = f"{first.name} and {second.name}"

    async def load(self, subject: Subject, state: State) -> None:
        try:
            await self.first.load(subject, state)
        except UserError as error:
            handed_on(error)
            await self.second.load(subject, state)

    async def ask(
        self, subject: Subject, route: Route, body: dict[str, Any], *, state: State, took: Took
    ) -> AsyncGenerator[dict[str, Any], None]:
        begun = False
        try:
            async with aclosing(self.first.ask(subject, route, body, state=state, took=took)) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield chunk
            return
        except UserError as error:
            if begun:
                raise
            handed_on(error)
        async with aclosing(self.second.ask(subject, route, body, state=state, took=took)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def tokenize(self, subject: Subject, *, text: str = "", messages: list[dict[str, Any]] | None = None) -> list[int]:
        try:
            return await self.first.tokenize(subject, text=text, messages=messages)
        except UserError as error:
            handed_on(error)
        return await self.second.tokenize(subject, text=text, messages=messages)

    async def drop(self, names: list[str]) -> int:
        return await self.first.drop(names) + await self.second.drop(names)

    async def make_room(self, wanted: int, *, on_gpu: bool = False) -> int:
        return await self.first.make_room(wanted, on_gpu=on_gpu) + await self.second.make_room(wanted, on_gpu=on_gpu)

    def metrics(self) -> dict[str, Any]:
        both = [self.first.metrics(), self.second.metrics()]
        summed = ("answers", "prompt_tokens", "completion_tokens", "budget", "used")
        return {
            "engine": self.name,
            "models": [model for found in both for model in found["models"]],
            "engines": both,
            **{name: sum(found[name] for found in both) for name in summed},
        }


def handed_on(error: UserError) -> None:
    """Raises what another engine would not mend."""
    if error.code != "unsupported":
        raise error
