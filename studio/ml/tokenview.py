"""Rows as a base model reads them, token by token: text, id, and what is learnt. For people to look at; nothing is trained here. No torch.

A row that the model's template cannot write, or in which it cannot mark the answer, comes with the reason in place of its tokens.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from studio import rowfile
from studio.errors import UserError
from studio.ml.chattemplate import Endless
from studio.ml.tokens import ENDS, Encoded, both_answers, encode_row, load_tokenizer
from studio.training import Job
from studio.training.orders import TokenViewPayload

ROWS = "rows.jsonl"
"""The file of the result: one line for each row of the block."""
LONGEST = 32_768
"""Tokens of one answer that are written; what follows is counted only."""
ROOM = 1_000_000
"""Tokens of a block that are written; where they are used up, each further row has SHORT of its own."""
SHORT = 1_024
CONTINUED = None
"""The text of a token that goes on with the letter which the one before began."""

SPACE = "\u2581"
"""How many vocabularies write a space."""
ONE_BYTE = re.compile("<0x([0-9A-F]{2})>")
PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(byte): bytes([byte]) for byte in PRINTED} | {
    chr(256 + number): bytes([byte]) for number, byte in enumerate(sorted(set(range(256)) - set(PRINTED)))
}
"""The letter that byte-level vocabularies write for each byte (as GPT-2 began it)."""

Text = str | None


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """The order "token_view": a line in `rows.jsonl` for each row, and their number."""
    order = TokenViewPayload.model_validate(payload)
    job.phase("tokenizing", "Reading the rows as tokens")
    tokenizer = load_tokenizer(Path(order.base))

    def report(done: int) -> None:
        job.raise_if_stopped()
        job.progress(done, order.count, "rows")

    rows = rowfile.between(Path(order.rows), order.begin, order.begin + order.count)
    return {"rows": write_block(tokenizer, rows, job.out / ROWS, report=report)}


def write_block(
    tokenizer: Any, rows: Iterator[tuple[int, dict[str, Any]]], path: Path, *, report: Callable[[int], None] = lambda done: None
) -> int:
    """Writes a line for each row, very long ones in part; their number. `report` hears it after each."""
    done, room = 0, ROOM
    with path.open("wb") as file:
        for seen in views(tokenizer, rows):
            for reading in seen["readings"]:
                shorten(reading, min(LONGEST, max(room, SHORT)))
                room -= len(reading["ids"])
            file.write(orjson.dumps(seen) + b"\n")
            done += 1
            report(done)
    return done


def views(tokenizer: Any, rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Each row as {index, readings, error}: one reading, two of a preference row, none where there is an `error`."""
    spelling, endless = Spelling(tokenizer), ""
    for index, row in rows:
        seen: dict[str, Any] = {"index": index, "readings": [], "error": endless}
        try:
            if not endless:  # with such a template the next row would take as long
                seen["readings"] = readings(tokenizer, spelling, row)
        except UserError as error:
            seen["error"] = error.message
            endless = error.message if isinstance(error, Endless) else ""
        yield seen


def readings(tokenizer: Any, spelling: "Spelling", row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row's readings, whole. Raises UserError where the template does not let the answers be told apart."""
    if "prompt" in row:
        names = [end for end in ENDS if end in row]
        return [{"name": name, **_reading(tokenizer, spelling, end)} for name, end in zip(names, both_answers(row), strict=True)]
    return [{"name": "", **_reading(tokenizer, spelling, row)}]


def _reading(tokenizer: Any, spelling: "Spelling", row: dict[str, Any]) -> dict[str, Any]:
    """{total, ids, texts, special, learnt, last}.

    `texts` has None where a token goes on with the letter that the one before began; `special` are the places of control tokens;
    `learnt` and `last` are runs [begin, end, weight] of what is learnt from all answers and from the last one alone.
    """
    encoded = encode_row(tokenizer, row, max_length=None)
    answers = sum(message["role"] == "assistant" for message in row.get("messages", []))
    last = encode_row(tokenizer, row, max_length=None, last_answer=True) if answers > 1 else encoded
    return {
        "total": len(encoded.ids),
        "ids": encoded.ids,
        "texts": texts(spelling, encoded.ids),
        "special": [place for place, number in enumerate(encoded.ids) if spelling.added.get(number, "").strip()],
        "learnt": runs(encoded),
        "last": runs(last),
    }


def shorten(reading: dict[str, Any], room: int) -> None:
    """Keeps the first tokens only; `total` and the runs go on to tell of all."""
    reading["ids"], reading["texts"] = reading["ids"][:room], reading["texts"][:room]
    reading["special"] = [place for place in reading["special"] if place < room]


def runs(encoded: Encoded) -> list[tuple[int, int, float]]:
    """(begin, end, weight) of the tokens that are learnt, in order."""
    weights = encoded.weights or [1.0] * len(encoded.ids)
    found = []
    for (learnt, weight), places in groupby(enumerate(zip(encoded.supervised, weights, strict=True)), key=lambda each: each[1]):
        begin, *rest = [place for place, _ in places]
        if learnt:
            found.append((begin, begin + len(rest) + 1, weight))
    return found


def texts(spelling: "Spelling", ids: list[int]) -> list[Text]:
    """What each token says. A letter whose bytes are spread over tokens stands with the first of them; the others have None."""
    found: list[Text] = []
    begun, held = 0, b""
    """Where the letter began that is not whole yet, and its bytes."""
    for place, number in enumerate(ids):
        written = held + spelling.of(number)
        whole, used = codecs.utf_8_decode(written, "replace", False)
        if held and whole:
            found[begun] = (found[begun] or "") + whole[0]
            whole = whole[1:]
        begins = used < len(written) and not (held and not used)
        found.append(whole or ("" if begins or not held else CONTINUED))
        begun, held = place if begins else begun, written[used:]
    if held:
        found[begun] = (found[begun] or "") + "\ufffd"
    return found


class Spelling:
    """The bytes that each token of a tokenizer stands for."""

    def __init__(self, tokenizer: Any):
        self.backend = tokenizer.backend_tokenizer
        self.added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
        decoder = self.backend.decoder
        state = decoder.__getstate__().decode() if decoder is not None else "{}"  # JSON of this part alone; to_str() writes megabytes
        kinds = {part.get("type") for part in _parts(json.loads(state))}
        self.by_bytes = "ByteLevel" in kinds
        self.falls_back = "ByteFallback" in kinds
        self.marks_spaces = SPACE in state
        self.known: dict[int, bytes] = {}

    def of(self, number: int) -> bytes:
        if number not in self.known:
            self.known[number] = self._spelt(number)
        return self.known[number]

    def _spelt(self, number: int) -> bytes:
        if number in self.added:
            return str(self.added[number]).encode("utf-8", "replace")
        token = self.backend.id_to_token(number) or ""
        if self.by_bytes:
            return b"".join(BYTES.get(letter, letter.encode("utf-8", "replace")) for letter in token)
        if self.falls_back and (byte := ONE_BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return (token.replace(SPACE, " ") if self.marks_spaces else token).encode("utf-8", "replace")


def _parts(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return [decoder, *decoder.get("decoders", [])]
