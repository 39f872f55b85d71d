"""A version's rows as a file for other programs: JSONL, Parquet or CSV, in the spelling that those expect. Flat memory; no Django.

OpenAI       {"messages": [{"role", "content"}]}; {"input": {"messages"}, "preferred_output", "non_preferred_output"}
ShareGPT     {"conversations": [{"from", "value"}]}; {"conversations", "chosen", "rejected"}
Alpaca       {"instruction", "input", "output", "system", "history"}; {"instruction", "input", "chosen", "rejected", ...}
Plain text is {"text"} in each of them. What a spelling cannot say is refused with a count, never left out.
"""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from studio.cells import cell
from studio.errors import UserError
from studio.rowfile import Split, Texts, stores

FORMATS = {"jsonl": "JSONL", "parquet": "Parquet", "csv": "CSV"}
SPELLINGS = {"openai": "OpenAI", "sharegpt": "ShareGPT", "alpaca": "Alpaca"}
PIECE = 1 << 18
"""Bytes that are gathered before they are sent."""
Row = dict[str, Any]
SHARED_NAMES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is asked for. `pieces` is the file."""

    path: Path
    """The version's rows.parquet."""
    shape: str
    format: str
    spelling: str
    split: Split | None = None

    def check(self) -> None:
        """Raises UserError where there is no such export, or where the spelling cannot say what stands in the rows."""
        _refuse_unknown("format", self.format, FORMATS)
        _refuse_unknown("spelling", self.spelling, SPELLINGS)
        if self.spelling == "alpaca" and self.shape != "text" and (number := self.beyond_alpaca):
            rows = f"{number:,} rows" if number > 1 else "1 row"
            sentence = f"{rows} with tool calls, weights or more than one answer cannot be said in Alpaca's spelling. Choose OpenAI."
            raise UserError("These rows cannot be exported in this way.", fields={"spelling": sentence}, code="not_expressible")

    @cached_property
    def beyond_alpaca(self) -> int:
        return sum(not plain_pairs(orjson.loads(text)) for text in self.suspects())

    def suspects(self) -> Iterator[str]:
        """The texts of rows that may hold more than roles and contents."""
        for texts in groups(self.path, split=self.split):
            here = pa.array(texts, pa.large_string())
            odd = pc.match_substring_regex(here, '"(weight|tools|tool_calls|tool_call_id)":')
            if self.shape == "preference":
                odd = pc.or_(odd, pc.match_substring_regex(here, r'"(chosen|rejected)":\[\{[^\]]*\},\{'))
            yield from here.filter(odd).to_pylist()

    @cached_property
    def extras(self) -> "Extras":
        """What the columns of a table must have room for."""
        found = Extras(False, False, False)
        for text in self.suspects():
            found = found.joined(Extras.of(orjson.loads(text)))
            if found.weights and found.calls and found.tools:
                break
        return found

    @property
    def filename(self) -> str:
        return f"rows.{self.format}"

    def spelt(self, row: Row) -> Row:
        return SPELT[self.spelling](row)

    def pieces(self) -> Iterator[bytes]:
        return {"jsonl": self._jsonl, "csv": self._csv, "parquet": self._parquet}[self.format]()

    def _jsonl(self) -> Iterator[bytes]:
        lines, size = [], 0
        as_it_is = self.shape == "text" or (self.spelling == "openai" and self.shape == "chat")
        for texts in groups(self.path, split=self.split):
            for text in texts:
                # A canonical chat is spelt as OpenAI does, but for the arguments of tool calls.
                if as_it_is and '"tool_calls":' not in text:
                    lines.append(text.encode())
                else:
                    lines.append(orjson.dumps(self.spelt(orjson.loads(text))))
                size += len(lines[-1])
                if size > PIECE:
                    yield b"\n".join(lines) + b"\n"
                    lines, size = [], 0
        if lines:
            yield b"\n".join(lines) + b"\n"

    def _csv(self) -> Iterator[bytes]:
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        names = self.columns
        writer.writerow(names)
        for texts in groups(self.path, split=self.split):
            for text in texts:
                row = self.spelt(orjson.loads(text))
                writer.writerow([cell(row.get(name)) for name in names])
                if file.tell() > PIECE:
                    yield file.getvalue().encode()
                    file.seek(0)
                    file.truncate()
        yield file.getvalue().encode()

    def _parquet(self) -> Iterator[bytes]:
        sink, schema = Sink(), self.schema
        with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
            for texts in groups(self.path, split=self.split):
                rows = [in_columns(self.spelt(orjson.loads(text)), schema) for text in texts]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                yield sink.take()
        yield sink.take()

    @property
    def columns(self) -> list[str]:
        return [field.name for field in self.schema]

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns, with room for weights and tool calls only where rows have them."""
        text = pa.string()
        if self.shape == "text":
            return pa.schema([("text", text)])
        if self.spelling == "alpaca":
            answers = ["output"] if self.shape == "chat" else ["chosen", "rejected"]
            fields = [(name, text) for name in ("instruction", "input", *answers, "system")]
            return pa.schema([*fields, ("history", pa.list_(pa.list_(text)))])
        message = pa.list_(self.extras.message("role", "content") if self.spelling == "openai" else self.extras.message("from", "value"))
        tools = [("tools", text)] if self.extras.tools else []
        if self.shape == "chat":
            return pa.schema([("messages" if self.spelling == "openai" else "conversations", message), *tools])
        if self.spelling == "openai":
            question = pa.struct([("messages", message), *tools])
            return pa.schema([("input", question), ("preferred_output", message), ("non_preferred_output", message)])
        return pa.schema([("conversations", message), ("chosen", message), ("rejected", message), *tools])


def _refuse_unknown(name: str, value: str, known: dict[str, str]) -> None:
    if value not in known:
        raise UserError("There is no such export.", fields={name: f"Choose from {', '.join(known)}."})


@dataclass(frozen=True)
class Extras:
    """Whether rows have more than roles and contents."""

    weights: bool
    calls: bool
    tools: bool

    @classmethod
    def of(cls, row: Row) -> "Extras":
        messages = all_messages(row)
        return cls(
            any("weight" in message for message in messages),
            any("tool_calls" in message or message["role"] == "tool" for message in messages),
            "tools" in row,
        )

    def joined(self, other: "Extras") -> "Extras":
        return Extras(self.weights or other.weights, self.calls or other.calls, self.tools or other.tools)

    def message(self, role: str, content: str) -> pa.StructType:
        text = pa.string()
        function = pa.struct([("name", text), ("arguments", text)])
        fields = [(role, text), (content, text)]
        if self.weights:
            fields.append(("weight", pa.float64()))
        if self.calls:
            call = pa.struct([("id", text), ("type", text), ("function", function)])
            fields += [("tool_calls", pa.list_(call)), ("tool_call_id", text), ("name", text)]
        return pa.struct(fields)


def all_messages(row: Row) -> list[Row]:
    return [message for name in ("messages", "prompt", "chosen", "rejected") for message in row.get(name, ())]


def groups(path: Path, *, split: Split | None) -> Iterator[list[str]]:
    """The canonical JSON of the rows of a split, a row group at a time."""
    with pq.ParquetFile(path) as file:
        source = Texts(path.parent, stores(file))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["split", "store", "at", "row"])
            if split is not None:
                table = table.filter(pc.equal(table["split"], split))
            if len(table):
                yield source.fill(table)


def openai(row: Row) -> Row:
    if "text" in row:
        return row
    tools = {"tools": row["tools"]} if "tools" in row else {}
    if "messages" in row:
        return {"messages": [_openai_message(message) for message in row["messages"]], **tools}
    prompt, chosen, rejected = ([_openai_message(message) for message in row[name]] for name in ("prompt", "chosen", "rejected"))
    return {"input": {"messages": prompt, **tools}, "preferred_output": chosen, "non_preferred_output": rejected}


def _openai_message(message: Row) -> Row:
    return message | {"tool_calls": _calls(message)} if "tool_calls" in message else message


def _calls(message: Row) -> list[Row]:
    """With arguments as JSON text, as OpenAI has them."""
    return [
        call | {"function": call["function"] | {"arguments": orjson.dumps(call["function"]["arguments"]).decode()}}
        for call in message["tool_calls"]
    ]


def sharegpt(row: Row) -> Row:
    if "text" in row:
        return row
    tools = {"tools": orjson.dumps(row["tools"]).decode()} if "tools" in row else {}
    if "messages" in row:
        return {"conversations": [_shared(message) for message in row["messages"]], **tools}
    prompt, chosen, rejected = ([_shared(message) for message in row[name]] for name in ("prompt", "chosen", "rejected"))
    return {"conversations": prompt, "chosen": _alone(chosen), "rejected": _alone(rejected), **tools}


def _alone(answer: list[Row]) -> Row | list[Row]:
    return answer[0] if len(answer) == 1 else answer


def _shared(message: Row) -> Row:
    rest = {key: value for key, value in message.items() if key not in ("role", "content", "tool_calls")}
    if "tool_calls" not in message:
        return {"from": SHARED_NAMES[message["role"]], "value": message["content"], **rest}
    if message["content"]:  # the role function_call has no room for words beside the calls
        return {"from": "gpt", "value": message["content"], **rest, "tool_calls": _calls(message)}
    calls = [{"id": call["id"], **call["function"]} if "id" in call else call["function"] for call in message["tool_calls"]]
    return {"from": "function_call", "value": orjson.dumps(calls[0] if len(calls) == 1 else calls).decode(), **rest}


def plain_pairs(row: Row) -> bool:
    """True where a row is questions and answers in turn and nothing else, which is all that Alpaca can say."""
    messages = all_messages(row)
    answers = [row[name] for name in ("chosen", "rejected") if name in row]
    if "tools" in row or any(len(answer) != 1 for answer in answers):
        return False
    return all(message.keys() == {"role", "content"} and message["role"] != "tool" for message in messages)


def alpaca(row: Row) -> Row:
    if "text" in row:
        return row
    asked = row["prompt"] if "prompt" in row else row["messages"][:-1]
    system = asked[0]["content"] if asked[0]["role"] == "system" else ""
    pairs = [message["content"] for message in (asked[1:] if system else asked)]
    answers = (
        {"chosen": row["chosen"][0]["content"], "rejected": row["rejected"][0]["content"]}
        if "prompt" in row
        else {"output": row["messages"][-1]["content"]}
    )
    history = [list(pair) for pair in zip(pairs[:-1:2], pairs[1:-1:2], strict=True)]
    return (
        {"instruction": pairs[-1], "input": "", **answers}
        | ({"system": system} if system else {})
        | ({"history": history} if history else {})
    )


SPELT: dict[str, Callable[[Row], Row]] = {"openai": openai, "sharegpt": sharegpt, "alpaca": alpaca}


def in_columns(row: Row, schema: pa.Schema) -> Row:
    """The row with JSON text where a column is text but its value has parts, and lists where all rows have lists."""
    found = {}
    for field in schema:
        value = row.get(field.name)
        if pa.types.is_string(field.type) and not isinstance(value, str | None):
            value = orjson.dumps(value).decode()
        elif pa.types.is_list(field.type) and isinstance(value, dict):
            value = [value]
        elif pa.types.is_struct(field.type) and isinstance(value, dict) and "tools" in value:
            value = value | {"tools": orjson.dumps(value["tools"]).decode()}
        found[field.name] = value
    return found


class Sink(io.RawIOBase):
    """What a Parquet file is written into: keeps the bytes until they are taken. Nothing written is ever changed."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.length = 0

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        taken = bytes(piece)
        self.kept.append(taken)
        self.length += len(taken)
        return len(taken)

    def tell(self) -> int:
        return self.length

    def take(self) -> bytes:
        taken, self.kept = b"".join(self.kept), []
        return taken
