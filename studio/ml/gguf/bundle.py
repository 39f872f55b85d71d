"""What lies beside a built file so that somebody who finds it alone can run it: a card, Ollama's Modelfile, the licences. No torch.

Names and titles were typed by people, templates and tokens come from strangers: in the card they are plain text, and into the Modelfile
goes nothing that its syntax could read as a command. The file's hash is written into SHA256SUMS when the bundle is sent.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.chattemplate import ChatTemplate
from studio.ml.gguf import vocabulary
from studio.ml.gguf.card import UNSEEN, model_card
from studio.ml.gguf.header import read_header
from studio.ml.gguf.turns import Messages, Turns, find_turns
from studio.training.orders import BuildAbout

CARD, MODELFILE, NOTICE = "README.md", "Modelfile", "NOTICE"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")
LICENCES = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|USE_POLICY)[A-Za-z0-9._-]{0,60}", re.IGNORECASE)
LARGEST_LICENCE = 1 << 20
MOST_LICENCES = 10
LONGEST_STOP = 60
DATED = "strftime_now"
"""What a template calls to write today's date, which no fixed text can."""
SETTINGS = {"temperature": (0.0, 5.0), "top_p": (0.0, 1.0), "top_k": (0, 10_000)}
"""Keys of generation_config.json that Ollama has by the same name, and what they may be."""


@dataclass(frozen=True)
class Chat:
    """How a conversation is written for the model."""

    template: str
    """Jinja."""
    stops: tuple[str, ...]
    """Tokens that end an answer, as text."""
    tokens: Mapping[str, str]
    """bos_token and eos_token, where there are any."""
    begin: str = ""
    """What the runner puts before every prompt by itself."""

    def turns(self) -> Turns | None:
        """The template as turns, where it is no more than that."""
        if DATED in self.template:
            return None
        template = ChatTemplate(source=self.template, tokens=dict(self.tokens), control=self.stops)

        def render(messages: Messages) -> str | None:
            try:
                return template.render([dict(message) for message in messages], prompt=True)
            except UserError:  # it refuses such a chat, or never ends
                return None

        return find_turns(render, ends=self.stops, begin=self.begin)


def chat_of_file(gguf: Path, *, tokenizer: Path) -> Chat:
    """As the GGUF itself says it; what else ends an answer stands in the `tokenizer` folder's generation_config.json."""
    header = read_header(gguf)
    listed = header.get("tokenizer.ggml.tokens")
    tokens = [str(token) for token in listed] if isinstance(listed, list) else []
    ends = [header.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")]
    return _chat(
        str(header.get("tokenizer.chat_template") or ""),
        tokens,
        begin=header.get("tokenizer.ggml.bos_token_id"),
        ends=ends,
        adds_begin=header.get("tokenizer.ggml.add_bos_token") is True,
        folder=tokenizer,
    )


def write_bundle(
    folder: Path,
    *,
    file: Path | None,
    kind: str,
    quantization: str,
    about: BuildAbout,
    base: Path,
    verification: Mapping[str, Any],
    tokenizer: Path | None = None,
    importance: bool = False,
) -> list[str]:
    """Writes the card, the Modelfile and the licences into `folder`, beside `file`; returns the names of what it wrote.

    `file` is the .gguf in `folder`, None for merged weights; `kind` is gguf, gguf_adapter or merged. `verification` holds the figures of
    the proof. `tokenizer` is the folder whose tokenizer counts, where that is not the base's.
    """
    if file is not None and not SAFE_NAME.fullmatch(file.name):
        raise ValueError(f"{file.name!r} is no name for a file to take home")
    chat = chat_of_file(file, tokenizer=tokenizer or base) if file and kind == "gguf" else None
    turns = chat.turns() if chat else None
    written = _copy_licences(base, folder)
    if file is not None:
        _write(folder, MODELFILE, modelfile(file.name, kind=kind, chat=chat, turns=turns, generation=_generation(base)), written)
    _write(folder, NOTICE, _notice(about, folder), written)
    card = model_card(
        file.name if file else "",
        kind=kind,
        quantization=quantization,
        about=about,
        verification=verification,
        importance=importance,
        has_template=turns is not None,
        knows_system=turns is None or turns.system is not None or bool(turns.folded),
        licences=[name for name in written if LICENCES.fullmatch(name)],
    )
    _write(folder, CARD, card, written)
    return sorted(written)


def modelfile(file: str, *, kind: str, chat: Chat | None, turns: Turns | None, generation: Mapping[str, Any]) -> str:
    """Ollama's Modelfile (docs/modelfile.mdx of Ollama). For an adapter, base.gguf stands for the base model's own file."""
    lines = ["FROM ./base.gguf", f"ADAPTER ./{file}"] if kind == "gguf_adapter" else [f"FROM ./{file}"]
    if turns is not None:
        lines += ["", f'TEMPLATE """{turns.go_template()}"""', ""]
    lines += [f'PARAMETER stop "{stop}"' for stop in (chat.stops if chat else ()) if _is_plain(stop)]
    for key, (least, most) in SETTINGS.items():
        value = generation.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and least <= value <= most:
            lines.append(f"PARAMETER {key} {value:g}")
    return "\n".join(lines) + "\n"


def _chat(template: str, tokens: Sequence[str], *, begin: Any, ends: Sequence[Any], adds_begin: bool, folder: Path) -> Chat:
    def text(number: Any) -> str:
        return tokens[number] if isinstance(number, int) and 0 <= number < len(tokens) else ""

    others = vocabulary.special_tokens(folder, {token: number for number, token in enumerate(tokens)}, rows=len(tokens)).ends
    stops = tuple(dict.fromkeys(stop for number in [*ends, *others] if (stop := text(number))))
    named = {"bos_token": text(begin), "eos_token": text(ends[0])}
    return Chat(template, stops, {name: token for name, token in named.items() if token}, text(begin) if adds_begin else "")


def _generation(base: Path) -> dict[str, Any]:
    """The base's own settings of how to answer; nothing where they cannot be read."""
    file = base / "generation_config.json"
    if not file.is_file() or file.stat().st_size > LARGEST_LICENCE:
        return {}
    try:
        found = json.loads(file.read_text())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_plain(stop: str) -> bool:
    """Whether a Modelfile can hold it between quotes: it knows no escapes."""
    return 0 < len(stop) <= LONGEST_STOP and '"' not in stop and stop.isprintable() and stop == stop.strip()


def _copy_licences(base: Path, folder: Path) -> list[str]:
    """Copies what the base's maker wrote about its use: small plain files, no links. Returns their names."""
    found = [
        path
        for path in sorted(base.iterdir())
        if LICENCES.fullmatch(path.name) and path.suffix.lower() in ("", ".md", ".txt") and not path.is_symlink() and path.is_file()
    ]
    copied = [path for path in found if path.stat().st_size <= LARGEST_LICENCE][:MOST_LICENCES]
    for path in copied:
        shutil.copyfile(path, folder / path.name, follow_symlinks=False)
    return [path.name for path in copied]


def _notice(about: BuildAbout, folder: Path) -> str:
    """Whose work it stands on; the base's own notice follows where it has one."""
    base = UNSEEN.sub(" ", f"{about.base_name} {f'({about.base_source})' if about.base_source else ''}").strip() or "its base model"
    terms = f"is under the licence {UNSEEN.sub(' ', about.license)}" if about.license else "states no licence here"
    own = folder / NOTICE
    theirs = f"\n{own.read_text(errors='replace')}" if own.is_file() else ""
    return f"This work is derived from {base}, which {terms}.\nIts terms hold for this work too.\n{theirs}"


def _write(folder: Path, name: str, text: str, written: list[str]) -> None:
    (folder / name).write_text(text)
    if name not in written:
        written.append(name)
