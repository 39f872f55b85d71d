"""What a built file and its model are both asked: texts to split, chats to write out, rows to weigh, prompts to answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.ml.gguf import vocabulary
from studio.ml.gguf.alike import caveats, comparable
from studio.ml.gguf.weights import Weights

LONGEST_ROW = 256
"""Tokens of a held-out row that are looked at."""
LEAST_ROW = 16
"""Tokens of a row below which looking at fewer rows is better."""
MOST_LOGITS = 256 << 20
"""Bytes of logits of one file that are kept on disk; a large vocabulary gets fewer tokens."""

Row = dict[str, Any]
CONVERSATIONS: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Give me three tips for staying healthy.", "1. Eat a balanced diet.\n2. Move every day.\n3. Sleep eight hours."),
    ("Write a short reply to a customer who asks where the order is.", "Thank you for writing. Your order left our warehouse today."),
    ("How much is 17 + 25?", "17 + 25 = 42."),
    ("Write a Python function that adds two numbers.", "def add(a, b):\n    return a + b"),
    ("Übersetze ins Deutsche: Good morning!", "Guten Morgen!"),
    ("Summarise: The meeting was moved from Monday to Thursday because the room was taken.", "The meeting is now on Thursday."),
    ("Name the colours of the rainbow.", "Red, orange, yellow, green, blue, indigo and violet."),
    ("Why is the sky blue?", "Air scatters blue light more than red light, so we see blue from every direction."),
    ("Write one sentence about the sea.", "The sea was calm, and the boats lay still in the evening light."),
)
BUILT_IN: list[Row] = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]} for question, answer in CONVERSATIONS
]
"""Rows to compare on where a build has none of its own."""


@dataclass(frozen=True)
class Case:
    texts: list[str]
    text_ids: list[list[int]]
    """Of each text, where the name of a special token stands for that token, as a template writes it."""
    letter_ids: list[list[int]]
    """Of each text, where such a name is read as its letters, as it is in what people write."""
    adjusted: int
    """Texts that both sides read alike only in another form (`studio.ml.gguf.alike`)."""
    caveats: list[str]
    """What llama.cpp is known to read otherwise."""
    chats: list[list[dict[str, str]]]
    """Conversations that end with a question."""
    chat_ids: list[list[int]]
    sequences: list[list[int]]
    """Whole rows, whose every next token is weighed."""
    prompts: list[list[int]]
    ends: list[int]
    """Tokens that end an answer."""


def make_case(base: Path, rows: list[Row], *, tokenizer_folder: Path | None = None) -> Case:
    """Of held-out rows, or of our own where there are none. `tokenizer_folder` is the adapter's where the vocabulary grew in training."""
    from studio.ml.generating import prompt_ids
    from studio.ml.tokenizer_proof import TEXTS
    from studio.ml.tokens import encode_row, load_tokenizer

    rows = rows or BUILT_IN
    tokenizer = load_tokenizer(tokenizer_folder or base)
    encoded = [encode_row(tokenizer, row, max_length=LONGEST_ROW) for row in rows]
    chats = [chat for row in rows if (chat := question(row))]
    chat_ids = [prompt_ids(tokenizer, chat) for chat in chats]
    heads = [row.ids[: max(2, len(row.ids) // 2)] for row, source in zip(encoded, rows, strict=True) if "text" in source]
    turn_ends = {end for row, source in zip(encoded, rows, strict=True) if (end := turn_end(row, source)) is not None}
    made = comparable(tokenizer_folder or base)
    texts = [made(text) for text in TEXTS]
    return Case(
        texts=texts,
        text_ids=read(tokenizer, texts, letters=False),
        letter_ids=read(tokenizer, texts, letters=True),
        adjusted=sum(text != made(text) for text in TEXTS),
        caveats=caveats(tokenizer_folder or base),
        chats=chats,
        chat_ids=chat_ids,
        sequences=within([row.ids for row in encoded if len(row.ids) > 1], columns=columns_of(base, tokenizer)),
        prompts=[ids[-LONGEST_ROW:] for ids in chat_ids] + heads,
        ends=sorted({*ends(tokenizer_folder or base, tokenizer), *turn_ends}),
    )


def read(tokenizer: Any, texts: list[str], *, letters: bool) -> list[list[int]]:
    """The ids of texts; `letters` reads the name of a special token as its letters (see `studio.ml.tokens`)."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = letters
    try:
        return [list(encoding.ids) for encoding in backend.encode_batch(texts, add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = False


def ends(folder: Path, tokenizer: Any) -> list[int]:
    """Tokens that end an answer, as the model's folder names them."""
    ids = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    return vocabulary.special_tokens(folder, ids, rows=max(ids.values()) + 1).ends


def columns_of(base: Path, tokenizer: Any) -> int:
    """Logits of one token: rows of the embedding, which may hold more than the tokenizer knows, or fewer where it grew."""
    with Weights.of_model(base) as weights:
        stored = max((place.shape[0] for name, place in weights.places.items() if name.endswith("embed_tokens.weight")), default=0)
    return max(stored, int(tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=True)))


def question(row: Row) -> list[dict[str, str]]:
    """A row's conversation up to its last question; empty for a row of text."""
    messages = list(row.get("messages", []))
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    return messages


def turn_end(encoded: Any, row: Row) -> int | None:
    """The token that a whole chat was taught to end its answer with."""
    if "messages" not in row or encoded.cut or not encoded.teaches:
        return None
    return int(encoded.ids[-1 - encoded.supervised[::-1].index(True)])


def within(sequences: list[list[int]], *, columns: int) -> list[list[int]]:
    """As many of the tokens as may be weighed; every row keeps its share, and some are left out before shares get too small."""
    tokens = MOST_LOGITS // (4 * columns)
    chosen = sequences[: max(1, tokens // LEAST_ROW)]
    share = max(2, tokens // max(1, len(chosen)))
    return [ids[:share] for ids in chosen]
