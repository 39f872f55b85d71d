"""Does our tokenizer.json give the ids that llama.cpp gives? Asked of both, text by text, before a base model is accepted."""

from pathlib import Path

from studio.errors import UserError
from studio.ml.llamacpp import Model

TEXTS = [
    "Hello, world!",
    "Hello world",
    " Hello world",
    "  two spaces in front",
    "trailing spaces  ",
    "a  b   c    d     e",
    "\n",
    "\n\n",
    "\n\n\nthree lines above",
    "line one\nline two\r\nline three\r",
    "\ttab\t\ttabs",
    " \n \t \n mixed white space \n\n  ",
    "0",
    "1234567890",
    "  0.",
    "  12 345,67",
    "3.14159 -42 +7 1e-9 0xDEADBEEF",
    "2024-02-29T23:59:59Z",
    "Room 101a, 2nd floor, 50%",
    "1st2nd3rd4th",
    "it's we're I'll they've I'd can't 'quoted' IT'S",
    "don\u2019t \u201cquote\u201d \u2013 \u2014 \u2026",
    "def add(a, b):\n    return a + b\n",
    "for (int i = 0; i < 10; ++i) { x[i] = i * 2; }",
    "    if x == 1:\n        return {'a': [1, 2, 3]}\n",
    "SELECT * FROM users WHERE id = 42; -- comment",
    '<div class="a b">&nbsp;</div>',
    '{"key": [1, 2.5, null, true], "text": "a\\nb"}',
    "C:\\Users\\name\\file.txt /usr/local/bin https://example.org/?q=1&r=2#top",
    "user.name+tag@example.org",
    "camelCase snake_case SCREAMING_CASE kebab-case",
    "!!! ??? ... ,,, ;;; ::: --- ___ *** ###",
    "# Title\n\n- item\n- **bold** and `code`\n\n```python\nprint(1)\n```\n",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Größe, Straße, Übung, ÄÖÜ äöü ß ẞ",
    "Donaudampfschifffahrtsgesellschaft",
    "Où est la bibliothèque ? Ça va très bien, garçon.",
    "¿Dónde está el niño? ¡Mañana!",
    "Привет, мир! Как дела?",
    "Γειά σου Κόσμε",
    "你好，世界！今天天气怎么样？",
    "こんにちは世界。カタカナ。",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "😀 😃🎉 👩‍👩‍👧‍👦 🇩🇪 👍🏽",
    "e\u0301 é n\u0303 ñ ﬁ ﬀ ½ ² ™ € £ ¥",
    "zero\u200bwidth\u200djoiner\ufeffbom\u00a0nbsp\u2028separator",
    "∑ ∫ √ ≤ ≥ ≠ ∞ α β γ λ",
    "１２３ ٤٥٦ ७८९ ⅣⅤ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "=" * 80,
    " " * 33,
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n<|im_start|>user\n1 + 1 = ?<|im_end|>\n",
    "text<|endoftext|>more text",
    "almost <|im_end| > a token, <im_end> and <|unknown|>",
    "<|im_end|><|im_end|>  <|im_end|>\n",
    "The quick brown fox jumps over the lazy dog. " * 4,
    "Mr. O'Neill-Smith said: \"It's 5 o'clock somewhere (isn't it?)\"",
    "\\begin{equation} E = mc^2 \\end{equation}",
    "\x01\x02 control \x7f characters",
]


def prove(tokenizer_file: Path, gguf: Path) -> dict[str, int]:
    """`{"texts": n, "equal": n}`; raises UserError on the first text that the two read differently."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    with Model(gguf) as model:
        theirs = [model.tokenize(text) for text in TEXTS]
    for text, expected in zip(TEXTS, theirs, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if ids != expected:
            raise UserError(
                f"The tokenizer of this model could not be rebuilt: {text[:40]!r} became {ids[:8]}, llama.cpp reads {expected[:8]}. "
                "Register the model's safetensors folder instead."
            )
    return {"texts": len(TEXTS), "equal": len(TEXTS)}
