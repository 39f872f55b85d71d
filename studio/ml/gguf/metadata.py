"""The general.* and quantize.* keys of a GGUF: what a model is called and where it comes from. No date, no path, no machine.

Names follow gguf-py's constants.py. People's words are cleaned, since every program that opens the file shows them.
"""

import re
import unicodedata

from studio.ml.gguf.header import Entry
from studio.training.orders import BuildAbout

LONGEST = 200
"""Characters of one value."""
MOST_LANGUAGES = 50
HUB = re.compile(r"hub:(?P<owner>[^/@]+)/(?P<name>[^/@]+)(@(?P<revision>.+))?")


def general_entries(arch: str, *, name: str, file_type: int, weights: int = 0, about: BuildAbout | None = None) -> dict[str, Entry]:
    """What stands under general.*, of a model with `weights` weights; what `about` leaves empty is left out."""
    about = about or BuildAbout()
    # llama.cpp changes its token handling for names that contain phi3, so such a name must not come from a person
    title = re.sub(r"(?i)phi-?3", "phi_3", clean(about.title or name))
    texts = {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": title,
        "general.author": clean(about.author),
        "general.version": clean(about.version),
        "general.size_label": size_label(weights) if weights else "",
        "general.license": clean(about.license),
    }
    found = {key: Entry("STRING", text) for key, text in texts.items() if text}
    found |= _listed("base_model", _base_model(about)) | _listed("dataset", {"name": clean(about.dataset)})
    languages = [clean(language) for language in about.languages[:MOST_LANGUAGES]]
    if any(languages):
        found["general.languages"] = Entry("ARRAY", [language for language in languages if language], "STRING")
    found["general.quantization_version"] = Entry("UINT32", 2)
    found["general.file_type"] = Entry("UINT32", file_type)
    return found


def importance_entries(count: int) -> dict[str, Entry]:
    """What llama.cpp's tool writes where an importance matrix with `count` entries was used; ours comes from no file."""
    return {
        "quantize.imatrix.file": Entry("STRING", ""),
        "quantize.imatrix.dataset": Entry("STRING", "training rows"),
        "quantize.imatrix.entries_count": Entry("UINT32", count),
    }


def clean(text: str) -> str:
    """One line without control characters, at most LONGEST characters long."""
    kept = (" " if unicodedata.category(sign) in ("Cc", "Zl", "Zp") else sign for sign in text)
    line = "".join(sign for sign in kept if unicodedata.category(sign)[0] != "C")
    return " ".join(line.split())[:LONGEST].strip()


def size_label(weights: int) -> str:
    """135M, 1.2B: how llama.cpp names the size of a model."""
    unit, letter = next((pair for pair in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if weights > pair[0]), (1e3, "K"))
    return f"{weights / unit:.{0 if round(weights / unit) >= 10 else 1}f}{letter}"


def _base_model(about: BuildAbout) -> dict[str, str]:
    hub = HUB.fullmatch(about.base_source)
    if hub is None:
        return {"name": clean(about.base_name)}
    return {"name": clean(hub["name"]), "organization": clean(hub["owner"]), "version": clean(hub["revision"] or "")}


def _listed(kind: str, facts: dict[str, str]) -> dict[str, Entry]:
    """A list of one, where there is a name."""
    if not facts["name"]:
        return {}
    texts = {f"general.{kind}.0.{key}": Entry("STRING", text) for key, text in facts.items() if text}
    return {f"general.{kind}.count": Entry("UINT32", 1)} | texts
