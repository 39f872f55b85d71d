"""YAML for people: reads plain YAML 1.2 from anybody, and writes JSON values as YAML that every reader takes for the same.

Read are at most 128 KiB of tables, lists, words and numbers, which mean what they look like: `2e-5` is a number, `on` is a word. Anchors,
tags, a key twice and deep nesting are refused with their line: only an attacker or an accident writes them.
"""

import json
import re
from collections.abc import Hashable, Iterator
from typing import Any, ClassVar

import yaml

from studio.errors import UserError
from studio.training.form import plain_float

LARGEST = 128 << 10
DEEPEST = 8
"""Tables and lists within each other."""
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_-]*", re.ASCII)
READ_OTHERWISE = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
"""Words that some reader of YAML takes for something else."""
UNSTORABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""What escapes can bring into a text, and neither a database nor a terminal should get."""
CODE = "invalid_yaml"


def read_plain(content: bytes) -> Any:
    """What a file says, as JSON values. Raises UserError with the line and what is wrong there."""
    if len(content) > LARGEST:
        raise UserError(f"This file is larger than {LARGEST >> 10} KiB.", code=CODE)
    try:
        return yaml.load(content.decode("utf-8-sig"), Loader=Reader)  # Reader makes no objects
    except UnicodeDecodeError as error:
        raise UserError("This file is not text in UTF-8.", code=CODE) from error
    except yaml.YAMLError as error:
        raise UserError(f"This file is no YAML: {said(error)}", code=CODE) from error


def said(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    words = " ".join(str(problem).split())[:200]
    return f"line {mark.line + 1}: {words}." if mark else f"{words}."


class Reader(yaml.SafeLoader):
    """The core schema of YAML 1.2, without anchors, tags and repeated keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise refusal(event.start_mark, "has an anchor or an alias. Write the value out.")
        if getattr(event, "tag", None):
            raise refusal(event.start_mark, f"has the tag {quoted(event.tag)}. Write the plain value.")
        self.depth += 1
        if self.depth > DEEPEST:
            raise refusal(event.start_mark, "is nested too deeply.")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def words(self, node: yaml.ScalarNode) -> str:
        if UNSTORABLE.search(node.value):
            raise refusal(node.start_mark, "has a control character. Leave it out.")
        return str(node.value)

    def table(self, node: yaml.MappingNode) -> Iterator[dict[Hashable, Any]]:
        found: dict[Hashable, Any] = {}
        yield found
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise refusal(key_node.start_mark, "needs a word before its colon.")
            if key in found:
                raise refusal(key_node.start_mark, f"says {quoted(key)} a second time.")
            found[key] = self.construct_object(value_node, deep=True)

    def items(self, node: yaml.SequenceNode) -> Iterator[list[Any]]:
        found: list[Any] = []
        yield found
        found.extend(self.construct_object(item, deep=True) for item in node.value)


NUMBER = r"[-+]?(?:\.[0-9]{1,40}|[0-9]{1,40}(?:\.[0-9]{0,40})?)(?:[eE][-+]?[0-9]{1,4})?"
SCALARS: tuple[tuple[str, str, str, Any], ...] = (
    ("null", r"null|~|", "n~", lambda text: None),
    ("bool", r"true|false", "tf", lambda text: text == "true"),
    ("int", r"[-+]?[0-9]{1,20}", "-+0123456789", int),
    ("float", NUMBER, "-+.0123456789", float),
)
"""(tag, its pattern, the signs that it begins with, what makes it a value); the first that fits."""


def add_scalar(tag: str, pattern: str, first: str, made: Any) -> None:
    begins: list[str] = [*first, ""] if tag == "null" else [*first]
    Reader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z", re.ASCII), begins)
    Reader.add_constructor(f"tag:yaml.org,2002:{tag}", lambda reader, node: made(node.value))


for scalar_kind in SCALARS:
    add_scalar(*scalar_kind)
Reader.add_constructor("tag:yaml.org,2002:str", Reader.words)
Reader.add_constructor("tag:yaml.org,2002:seq", Reader.items)
Reader.add_constructor("tag:yaml.org,2002:map", Reader.table)


def refusal(mark: yaml.Mark, reason: str) -> UserError:
    return UserError(f"Line {mark.line + 1} {reason}", code=CODE)


def quoted(text: str) -> str:
    """A name from outside within a sentence."""
    return json.dumps(text[:60], ensure_ascii=False)


def scalar(value: Any) -> str:
    """A JSON value on one line of YAML."""
    if isinstance(value, str):
        if PLAIN.fullmatch(value) and value.lower() not in READ_OTHERWISE:
            return value
        line: str = yaml.dump(value, Dumper=yaml.SafeDumper, default_style='"', allow_unicode=True, width=float("inf"))
        return line.removesuffix("\n")
    if isinstance(value, float):
        return plain_float(value)
    if isinstance(value, list):
        return f"[{', '.join(scalar(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {scalar(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
