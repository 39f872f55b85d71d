"""Ollama's Modelfile of a release: that of the build, with the system prompt and the settings that the release is asked with.

Its syntax knows no escapes (parser/parser.go of Ollama): a value begins with three quotes and ends at the next three that end a line.
"""

from collections.abc import Iterable, Mapping

QUOTES, INSTEAD = '"""', "'''"
PARAMETERS = {"temperature": "temperature", "top_p": "top_p", "max_tokens": "num_predict"}
"""What Ollama calls the numbers that a release is asked with."""
LONGEST_STOP = 60


def modelfile(built: str, *, system: str, numbers: Mapping[str, float], stops: Iterable[str]) -> str:
    """The build's own, in which what the release says comes in the place of what the base model would do."""
    head, quotes, tail = built.rpartition(QUOTES)  # a template before it may hold any line
    own = {f"PARAMETER {PARAMETERS[name]} " for name in numbers}
    lines = [line for line in tail.splitlines() if not line.startswith(tuple(own))] if own else tail.splitlines()
    lines += [f"PARAMETER {PARAMETERS[name]} {value:g}" for name, value in numbers.items()]
    lines += [line for stop in stops if fits(stop) and (line := f'PARAMETER stop "{stop}"') not in lines]
    if system:
        lines += ["", f"SYSTEM {QUOTES}{quoted(system)}{QUOTES}"]
    return head + quotes + "\n".join(lines) + "\n"


def quoted(system: str) -> str:
    """Between three quotes; what would end them early is written with others, which a model reads alike."""
    return system.replace("\x00", "").replace(QUOTES, INSTEAD)


def fits(stop: str) -> bool:
    """Whether a Modelfile can hold it on one line."""
    return 0 < len(stop) <= LONGEST_STOP and '"' not in stop and stop.isprintable() and stop == stop.strip()
