"""What llama.cpp calls the way in which a byte-level tokenizer splits text before it merges, told by the structure of tokenizer.json.

The names and the regular expression behind each are those of src/llama-vocab.cpp (`llm_tokenizer_bpe`, MIT). Nothing is guessed: an
unknown structure is refused.
"""

from typing import Any

from studio.errors import UserError

ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{ENGLISH}|{WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BLANKS}"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENGLISH}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENGLISH}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}"
)
SPLITS = {
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "dbrx",  # OLMo 2, and all that descend from OpenAI's cl100k
    (QWEN2, False): "qwen2",
    (TEKKEN, True): "tekken",
    (GPT4O, False): "gpt-4o",
}
"""By the expression, and by whether a word that is a token is taken before any merge (ignore_merges)."""
WITHOUT_MARKS = ("tekken", "gpt-4o")
"""Names for which llama.cpp ends a word at a combining mark (Unicode's M), as Hindi and Thai have them, where the expression goes on."""


def splitting(tokenizer: dict[str, Any]) -> str:
    """tokenizer.ggml.pre of a byte-level tokenizer. Raises UserError for a chain of steps that llama.cpp has no name for."""
    steps = steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers")
    whole = bool(tokenizer["model"].get("ignore_merges"))
    kinds = [step.get("type") for step in steps]
    last = steps[-1] if steps else {}
    if kinds[-1:] != ["ByteLevel"] or last.get("add_prefix_space"):
        raise _unknown()
    if last.get("use_regex", True):  # GPT-2's own expression
        if kinds == ["ByteLevel"] and not whole:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and not whole:
            return "smollm"  # and Granite 3, whose "refact" splits alike
    elif kinds == ["Split", "ByteLevel"]:
        name = SPLITS.get((_expression(steps[0]), whole))
        if name:
            return name
    raise _unknown()


def steps_of(node: Any, inner: str) -> list[dict[str, Any]]:
    """A step of tokenizer.json, or the steps of a sequence."""
    if not isinstance(node, dict):
        return []
    found = node.get(inner) if node.get("type") == "Sequence" else [node]
    return [step for step in found if isinstance(step, dict)] if isinstance(found, list) else []


def _expression(step: dict[str, Any]) -> str:
    """The expression whose matches a Split keeps as words; empty for one that cuts otherwise."""
    keeps = (step.get("behavior"), bool(step.get("invert")))
    pattern = step.get("pattern")
    if keeps not in (("Isolated", False), ("Removed", True)) or not isinstance(pattern, dict):
        return ""
    return str(pattern.get("Regex", ""))


def _unknown() -> UserError:
    return UserError("The base model's tokenizer splits text in a way that llama.cpp has no known name for. Choose another base model.")
