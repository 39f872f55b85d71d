"""Rows as the ids that a model reads, and which of them carry a loss. The one way to load a tokenizer. No torch.

Control tokens (`<|im_end|>`) that stand in somebody's text are text: only those that the template itself writes become control
tokens. Their places are told apart by a mark that is put into the contents before rendering and taken out before encoding.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.chattemplate import PLAIN_TEMPLATE, ChatTemplate, Span, chat_template

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
LARGEST_SETTINGS = 64 << 20
LARGEST_TEMPLATE = 1 << 20
BATCH = 256
NOBODY = -1
"""The owner of a token that no answer holds."""
MARK = "\ufdd0"  # a noncharacter: Unicode promises that no text holds one; rows that do lose it


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row under a tokenizer and template."""

    ids: list[int]
    supervised: list[bool]
    """As long as `ids`: True where the token is learnt."""
    cut: bool
    """True where the row was longer than allowed."""
    weights: list[float] | None = None
    """As long as `ids`: how much each learnt token counts; None where all count as one."""

    @property
    def teaches(self) -> bool:
        """False where nothing is left to learn: the first token has nothing before it to be told from."""
        return any(self.supervised[1:])


def load_tokenizer(folder: Path) -> Any:
    """The `PreTrainedTokenizerFast` of a model or adapter folder, from tokenizer.json exactly as it stands.

    AutoTokenizer is not used anywhere: for some classes transformers 5 replaces the way text is split. A model without a chat
    template gets PLAIN_TEMPLATE (see `has_own_template`). Raises UserError for missing or damaged files.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError("tokenizer.json is missing. Choose a model with a fast tokenizer.")
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise UserError(f"tokenizer.json cannot be read: {error}. Fetch the model again.") from error
    backend.no_truncation()  # some files carry the settings of whoever saved them last
    backend.no_padding()
    settings = _settings(folder)
    named = {name: token for name in NAMED if (token := _text(settings.get(name))) is not None and backend.token_to_id(token) is not None}
    if "eos_token" not in named:
        raise UserError("The tokenizer names no end-of-text token (eos_token). Name it in tokenizer_config.json.")
    named.setdefault("pad_token", named["eos_token"])
    length = settings.get("model_max_length")
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(
        tokenizer_object=backend,
        model_max_length=length if isinstance(length, int) and 0 < length < 1 << 40 else None,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        **named,
    )
    tokenizer.chat_template = own_template(folder) or PLAIN_TEMPLATE
    return tokenizer


def own_template(folder: Path) -> str | None:
    """The chat template that a folder brings: chat_template.jinja, else the one in tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    found: Any = _settings(folder).get("chat_template")
    if file.is_file() and file.stat().st_size <= LARGEST_TEMPLATE:
        found = file.read_text(encoding="utf-8", errors="replace")
    if isinstance(found, list):  # several, by name
        by_name = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = by_name.get("default") or next(iter(by_name.values()), None)
    return found if isinstance(found, str) and found.strip() and len(found) <= LARGEST_TEMPLATE else None


def has_own_template(tokenizer: Any) -> bool:
    return bool(tokenizer.chat_template != PLAIN_TEMPLATE)


def encode_row(tokenizer: Any, row: dict[str, Any], *, max_length: int | None, last_answer: bool = False) -> Encoded:
    """A `{"messages": [...]}` row: answers with their end of turn are learnt. A `{"text": ...}` row: all of it, and its end.

    A message's `weight` is how much its tokens count (1 where there is none, and with 0 it is not learnt). With `last_answer`,
    only the last answer is learnt. Raises UserError where the template does not let the answers be told apart.
    """
    return next(encode_rows(tokenizer, [row], max_length=max_length, last_answer=last_answer))


def encode_rows(tokenizer: Any, rows: Iterable[dict[str, Any]], *, max_length: int | None, last_answer: bool = False) -> Iterator[Encoded]:
    """As `encode_row`, for many rows; they are encoded in batches, so this is several times faster."""
    speaker = _Speaker(tokenizer)
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        texts = [speaker.write(row, last_answer=last_answer) for row in batch]
        for (ids, owners), text in zip(speaker.encode(texts), texts, strict=True):
            if not text.chat and ids[-1:] != [tokenizer.eos_token_id]:
                ids, owners = [*ids, tokenizer.eos_token_id], [*owners, 0]
            cut = max_length is not None and len(ids) > max_length
            owners = owners[:max_length]
            weights = [text.weights[owner] if owner != NOBODY else 0.0 for owner in owners] if text.weights else None
            yield Encoded(ids=ids[:max_length], supervised=[owner != NOBODY for owner in owners], cut=cut, weights=weights)


ENDS = ("chosen", "rejected")


def both_answers(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A preference row as chats, with the better and with the worse end; one where somebody only liked or disliked an answer.

    Only the ends are learnt, and weights do not count.
    """
    prompt = [{**_said(message), "weight": 0} if message["role"] == "assistant" else message for message in row["prompt"]]
    tools = {"tools": row["tools"]} if "tools" in row else {}
    return [{"messages": prompt + [_said(message) for message in row[end]]} | tools for end in ENDS if end in row]


def _said(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "weight"}


def _texts(value: Any) -> Iterator[str]:
    """Every text inside, names of keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield key
            yield from _texts(child)
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child)


def _written_by_people(row: dict[str, Any]) -> Iterator[str]:
    """What somebody could have put a control token into."""
    for message in row["messages"]:
        yield message["content"]
        if len(message) > 2:
            yield from _texts([message.get("tool_calls"), message.get("name"), message.get("tool_call_id")])
    yield from _texts(row.get("tools"))


def holds_control_tokens(tokenizer: Any, row: dict[str, Any]) -> bool:
    """True where a control token stands in what people wrote. It is read as plain text; worth a warning, not a refusal."""
    pattern = _pattern(_control(tokenizer))
    texts = [row["text"]] if "text" in row else _written_by_people(row)
    return any(pattern.search(text) for text in texts)


@dataclass(frozen=True)
class _Written:
    text: str
    spans: list[Span]
    """What is learnt, in order."""
    chat: bool
    marked: bool
    weights: list[float] | None = None
    """How much each span counts; None where all count as one."""


class _Speaker:
    """Writes rows with one tokenizer's template and reads them back as ids."""

    def __init__(self, tokenizer: Any):
        self.backend = tokenizer.backend_tokenizer
        self.control = _control(tokenizer)
        self.pattern = _pattern(self.control)
        tokens = {name: token for name in NAMED if isinstance(token := getattr(tokenizer, name), str)}
        self.template: ChatTemplate = chat_template(tokenizer.chat_template or PLAIN_TEMPLATE, tuple(tokens.items()), self.control)

    def write(self, row: dict[str, Any], *, last_answer: bool) -> _Written:
        if "text" in row:
            return _Written(text=row["text"], spans=[(0, len(row["text"]))], chat=False, marked=False)
        if not row["messages"]:
            raise UserError("A row has no messages. Give every row at least a question and an answer.")
        marked = any(self.pattern.search(text) for text in _written_by_people(row))
        messages, tools = [_said(message) for message in row["messages"]], row.get("tools")
        if marked:
            messages, tools = [self._marked(message) for message in messages], self._marked(tools)
        counted = _weights(row["messages"], last_answer=last_answer)
        text, found = self.template.answers(messages, tools=tools, wanted=[weight > 0 for weight in counted])
        spans, weights = _weighed(found, counted)
        return _Written(text=text, spans=spans, chat=True, marked=marked, weights=weights)

    def encode(self, rows: list[_Written]) -> Iterator[tuple[list[int], list[int]]]:
        """The ids of each row, and for each id the number of the span that it begins in, or NOBODY."""
        plain = [row.text for row in rows if row.chat and not row.marked]
        chats = iter(self.backend.encode_batch(plain, add_special_tokens=False))
        texts = iter(self._as_text([row.text for row in rows if not row.chat], add_special_tokens=True))
        for row in rows:
            if not row.chat:
                ids = next(texts).ids
                yield ids, [0] * len(ids)
            elif row.marked:
                yield self._encode_marked(row)
            else:
                encoding = next(chats)
                yield encoding.ids, _owners(encoding.offsets, row.spans)

    def _marked(self, value: Any) -> Any:
        """The same with a mark in every control token that stands in one of its texts."""
        if isinstance(value, str):
            return self._mark(value)
        if isinstance(value, dict):
            return {self._mark(key): self._marked(child) for key, child in value.items()}
        return [self._marked(child) for child in value] if isinstance(value, list) else value

    def _mark(self, content: str) -> str:
        return self.pattern.sub(lambda found: found[0][0] + MARK + found[0][1:], content.replace(MARK, ""))

    def _as_text(self, texts: list[str], *, add_special_tokens: bool = False) -> list[Any]:
        """Encodings in which a control token that is written out is read as its letters."""
        self.backend.encode_special_tokens = True
        try:
            return list(self.backend.encode_batch(texts, add_special_tokens=add_special_tokens))
        finally:
            self.backend.encode_special_tokens = False

    def _encode_marked(self, row: _Written) -> tuple[list[int], list[int]]:
        """The template's control tokens as ids, and all between them as text without its marks.

        A tokenizer that treats the start of a text differently (it sets a space in front) would read these pieces otherwise
        than the whole; there the marks' places keep an invisible word joiner instead.
        """
        if not self._reads_in_pieces(row.text):
            encoding = self.backend.encode(row.text.replace(MARK, "\u2060"), add_special_tokens=False)
            return encoding.ids, _owners(encoding.offsets, row.spans)
        ids: list[int] = []
        owners: list[int] = []
        for start, piece in self._pieces(row.text):
            if self.pattern.fullmatch(piece):
                ids.append(self.backend.token_to_id(piece))
                owners += _owners([(start, start + len(piece))], row.spans)
                continue
            encoding = self._as_text([piece.replace(MARK, "")])[0]
            places = _places_without(piece, MARK)
            ids += encoding.ids
            owners += _owners([(start + places[left], start + places[right]) for left, right in encoding.offsets], row.spans)
        return ids, owners

    def _pieces(self, text: str) -> Iterator[tuple[int, str]]:
        at = 0
        for found in self.pattern.finditer(text):
            if found.start() > at:
                yield at, text[at : found.start()]
            yield found.start(), found[0]
            at = found.end()
        if at < len(text):
            yield at, text[at:]

    def _reads_in_pieces(self, text: str) -> bool:
        """Tried on the same text with the marked tokens taken out: whole and in pieces it must give the same ids."""
        marked = _pattern(tuple(token[0] + MARK + token[1:] for token in self.control))
        clean = marked.sub("", text)
        ids: list[int] = []
        for _, piece in self._pieces(clean):
            ids += [self.backend.token_to_id(piece)] if self.pattern.fullmatch(piece) else self._as_text([piece])[0].ids
        return bool(self.backend.encode(clean, add_special_tokens=False).ids == ids)


def _places_without(text: str, mark: str) -> list[int]:
    """For each place in `text` without its marks, and its end: the place in `text`."""
    return [place for place, letter in enumerate(text) if letter != mark] + [len(text)]


def _weights(messages: list[dict[str, Any]], *, last_answer: bool) -> list[float]:
    """How much each answer counts; 0 where it is not learnt."""
    weights = [float(message.get("weight", 1.0)) for message in messages if message["role"] == "assistant"]
    return [0.0] * (len(weights) - 1) + weights[-1:] if last_answer else weights


def _weighed(spans: list[Span | None], weights: list[float]) -> tuple[list[Span], list[float] | None]:
    """Those answers that are learnt, and how much each counts where that is not one for all."""
    if all(weight == 1.0 for weight in weights):
        return [span for span in spans if span], None
    if len(weights) == 1:
        weights *= len(spans)
    if len(spans) != len(weights):
        raise UserError(
            "The model's chat template does not mark each answer by itself, so they cannot count differently. "
            "Choose another model, learn from all answers, or use rows without weights."
        )
    kept = [(span, weight) for span, weight in zip(spans, weights, strict=True) if span and weight > 0]
    counted = [weight for _, weight in kept]
    return [span for span, _ in kept], None if all(weight == 1.0 for weight in counted) else counted


def _owners(offsets: list[tuple[int, int]], spans: list[Span]) -> list[int]:
    """For each token the number of the span that it begins in, or NOBODY. Both are in order, so one walk does it."""
    owners = [NOBODY] * len(offsets)
    number = 0
    for place, (start, _end) in enumerate(offsets):
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        if number < len(spans) and spans[number][0] <= start:
            owners[place] = number
    return owners


def _control(tokenizer: Any) -> tuple[str, ...]:
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


@lru_cache(maxsize=32)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Finds any of them, the longest first; nothing where there are none."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    if file.stat().st_size > LARGEST_SETTINGS:
        raise UserError("tokenizer_config.json is larger than 64 MB. Fetch the model again.")
    try:
        settings = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError("tokenizer_config.json is not JSON. Fetch the model again.") from error
    if not isinstance(settings, dict):
        raise UserError("tokenizer_config.json holds no settings. Fetch the model again.")
    return settings


def _text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None
