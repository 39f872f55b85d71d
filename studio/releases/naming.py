"""What a release is called: `{client}-{task}-{base}-v{major}.{minor}.{patch}`. Text in, text out."""

import re
import unicodedata

LONGEST_BASE = 40

SIZE = re.compile(r"[ae]?\d+(\.\d+)?(x\d+(\.\d+)?)?[mbtk]")
"""135m, 0.5b, 8x7b, a3b of those that are active, e2b; 4k and 128k are how much it reads."""
FORMAT = re.compile(r"(f|fp|bf|int)\d+|\d+bit|q\d+(_[0-9a-z]+)*|gguf|ggml|gptq|awq|bnb|mlx|exl2|mxfp4|nf4|hf")
REVISION = re.compile(r"v\d+(\.\d+)*|\d{4}|\d{6}|\d{8}")
"""v0.3, and dates: 2507, 20240501."""
TUNED = frozenset(("instruct", "instruction", "it", "chat", "base", "pretrained", "pt", "sft", "dpo", "rlhf", "preview", "model"))
"""Words for what a base model was made ready for."""


def release_name(*, client: str, task: str, base: str, version: tuple[int, int, int]) -> str:
    """`acme-support-smollm2-v1.2.0`, of slugs and a base's short name."""
    major, minor, patch = version
    return f"{client}-{task}-{base}-v{major}.{minor}.{patch}"


def short_base(name: str) -> str:
    """A base model's name without its maker, size, format, date and what it was made ready for: `smollm2` of SmolLM2-135M-Instruct.

    The same name always gives the same short one. A name of nothing else keeps it all; one without a letter or digit is `base`.
    """
    words = plain_words(name)
    kept = [word for word in words if not says_how(word)]
    if not any(letter.isalpha() for word in kept for letter in word):
        kept = words
    return shortened(kept) or "base"


def plain_words(name: str) -> list[str]:
    own = name.strip().rstrip("/").rsplit("/", 1)[-1].split("@")[0]
    latin = unicodedata.normalize("NFKD", own).encode("ascii", "ignore").decode().lower()
    with_dots = re.sub(r"(?<=\d)_(?=\d)", ".", latin)  # 1_6b is how some write 1.6b
    return [word.strip(".") for word in re.split(r"[^a-z0-9.]+", with_dots) if word.strip(".")]


def says_how(word: str) -> bool:
    return word in TUNED or any(form.fullmatch(word) for form in (SIZE, FORMAT, REVISION))


def shortened(words: list[str]) -> str:
    """As many whole words as fit; of one that does not fit itself, its beginning."""
    kept = words[:1]
    for word in words[1:]:
        if len("-".join([*kept, word])) > LONGEST_BASE:
            break
        kept.append(word)
    return "-".join(kept)[:LONGEST_BASE].strip("-.")
