"""Tokenizers that merge letters as SentencePiece does, with bytes for what they do not know, as llama.cpp's "llama" vocabulary wants them.

Source: llama.cpp's src/llama-vocab.cpp (`llm_tokenizer_spm`, MIT). It merges the pair of neighbours whose joint piece has the best score,
whatever the two are; tokenizer.json lists the pairs instead, in the same order where it was made from a SentencePiece model.
"""

from typing import Any, Literal

from studio.errors import UserError
from studio.ml.gguf.pretokenizers import steps_of

SPACE = "▁"
BYTES = [f"<0x{number:02X}>" for number in range(256)]
Prefix = Literal["always", "first", "never"]
PREFIXES: dict[str, Prefix] = {"first": "first", "never": "never"}
"""What a Metaspace may say; its "always" puts a space only where a piece begins with none, llama.cpp's puts one everywhere."""


def spaces_before(tokenizer: dict[str, Any]) -> Prefix:
    """Where the tokenizer puts a space of its own: before every piece of text between special tokens, before a text that
    begins with none, or nowhere.

    Raises UserError for a way of handling spaces that llama.cpp does not have.
    """
    normalizers = [_normalizer(step) for step in steps_of(tokenizer.get("normalizer"), "normalizers")]
    steps = steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if normalizers in (["prepend", "replace"], ["replace"]):
        if all(_cuts_nothing(step) for step in steps):
            return "always" if "prepend" in normalizers else "never"
    elif not normalizers and len(steps) == 1:
        step = steps[0]
        scheme = str(step.get("prepend_scheme", "always"))
        if step.get("type") == "Metaspace" and step.get("replacement") == SPACE and not step.get("split", True) and scheme in PREFIXES:
            return PREFIXES[scheme]
    raise UserError("The base model's tokenizer handles spaces in a way that llama.cpp does not know. Choose another base model.")


def scores(tokens: list[str], merges: list[tuple[str, str]]) -> list[float]:
    """Minus the rank at which each token is first merged, shape (tokens,); one that nothing is merged into comes last."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [float(-ranks.get(token, len(merges))) for token in tokens]


def refuse_missing_bytes(vocabulary: dict[str, int]) -> None:
    """llama.cpp ends at a byte that has no token."""
    if any(name not in vocabulary for name in BYTES):
        raise UserError(
            "The base model's tokenizer has no token for some bytes, so llama.cpp could not read every text. Choose another base model."
        )


def _normalizer(step: dict[str, Any]) -> str:
    if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
        return "prepend"
    if step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == SPACE:
        return "replace"
    return "unknown"


def _cuts_nothing(step: dict[str, Any]) -> bool:
    """A cut at spaces, of which none are left."""
    return step.get("type") == "Split" and step.get("pattern") == {"String": " "}
