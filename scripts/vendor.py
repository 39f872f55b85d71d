"""Copies the browser files that the studio serves out of their npm packages, pinned, with a checksum for each.

Run it after changing a version or an icon, where fontTools and brotli are installed; `tests/assets` checks that the copies are the ones
listed in VENDORED.json.
"""

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from fontTools.merge import Merger
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "static" / "vendor"
SVG = "http://www.w3.org/2000/svg"
PRINT_FONTS = {"studio/comparisons/fonts/inter-regular.ttf": 400, "studio/comparisons/fonts/inter-semibold.ttf": 600}
"""Copy -> weight."""

# package -> version, and file inside the package -> copy in this repository
PACKAGES = {
    "htmx.org": (
        "4.0.1",
        {
            "dist/htmx.min.js": "static/vendor/htmx.min.js",
            "dist/ext/hx-ws.min.js": "static/vendor/hx-ws.min.js",
            "LICENSE": "static/vendor/licenses/htmx.txt",
        },
    ),
    "uplot": (
        "1.6.32",
        {
            "dist/uPlot.iife.min.js": "static/vendor/uplot.min.js",
            "dist/uPlot.min.css": "static/vendor/uplot.min.css",
            "LICENSE": "static/vendor/licenses/uplot.txt",
        },
    ),
    "tus-js-client": (
        "4.3.1",
        {
            "dist/tus.min.js": "static/vendor/tus.min.js",
            "LICENSE": "static/vendor/licenses/tus-js-client.txt",
        },
    ),
    "@fontsource-variable/inter": (
        "5.3.0",
        {
            "files/inter-latin-opsz-normal.woff2": "static/vendor/inter-latin.woff2",
            "files/inter-latin-ext-opsz-normal.woff2": "static/vendor/inter-latin-ext.woff2",
            "LICENSE": "static/vendor/licenses/inter.txt",
        },
    ),
    "@fontsource-variable/jetbrains-mono": (
        "5.3.0",
        {
            "files/jetbrains-mono-latin-wght-normal.woff2": "static/vendor/jetbrains-mono-latin.woff2",
            "LICENSE": "static/vendor/licenses/jetbrains-mono.txt",
        },
    ),
    "lucide-static": ("1.62.0", {"LICENSE": "static/vendor/licenses/lucide.txt"}),
    "axe-core": ("4.14.1", {"axe.min.js": "tests/browser/axe.min.js", "LICENSE": "static/vendor/licenses/axe-core.txt"}),
}

# name in the sprite -> Lucide icon; whatever a page needs is added here
ICONS = {
    "add": "plus",
    "adapter": "layers",
    "arrow-right": "arrow-right",
    "base-model": "box",
    "check": "check",
    "chevron-down": "chevron-down",
    "chevron-right": "chevron-right",
    "clients": "building-2",
    "close": "x",
    "compare": "columns-2",
    "comparisons": "scale",
    "copy": "copy",
    "cut": "scissors",
    "dataset": "database",
    "delete": "trash-2",
    "download": "download",
    "edit": "pencil",
    "external": "external-link",
    "file": "file-text",
    "fold": "panel-left",
    "gguf": "package",
    "home": "house",
    "info": "info",
    "key": "key-round",
    "keyboard": "keyboard",
    "log": "scroll-text",
    "memory": "memory-stick",
    "menu": "menu",
    "message": "message-square",
    "moon": "moon",
    "more": "ellipsis",
    "person": "user",
    "plugins": "puzzle",
    "projects": "folder",
    "refresh": "refresh-cw",
    "runs": "activity",
    "search": "search",
    "send": "arrow-up",
    "settings": "settings",
    "sign-out": "log-out",
    "sort": "chevrons-up-down",
    "sort-down": "arrow-down",
    "sort-up": "arrow-up",
    "spinner": "loader-circle",
    "stop": "square",
    "sun": "sun",
    "switch": "chevrons-up-down",
    "system": "monitor",
    "time": "clock",
    "upload": "upload",
    "warning": "triangle-alert",
    "workers": "cpu",
    "status-broken": "plug-zap",
    "status-failed": "circle-x",
    "status-finishing": "loader-circle",
    "status-idle": "moon",
    "status-lost": "unplug",
    "status-paused": "circle-pause",
    "status-queued": "clock",
    "status-ready": "circle-check",
    "status-recovering": "refresh-cw",
    "status-refused": "circle-x",
    "status-running": "loader-circle",
    "status-starting": "loader-circle",
    "status-stopped": "circle-stop",
    "status-succeeded": "circle-check",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        unpacked = {name: unpack(name, version, Path(folder)) for name, (version, _) in PACKAGES.items()}
        for name, (_, files) in PACKAGES.items():
            for source, copy in files.items():
                write(ROOT / copy, (unpacked[name] / source).read_bytes())
        write(VENDOR / "icons.svg", sprite(unpacked["lucide-static"] / "icons"))
    for copy, weight in PRINT_FONTS.items():
        write(ROOT / copy, print_font(weight))
    write(VENDOR / "VENDORED.json", (json.dumps(listing(), indent=2) + "\n").encode())


def unpack(name: str, version: str, folder: Path) -> Path:
    """Fetches one package with the npm client, which checks it against its registry's checksum."""
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{name}@{version}"]
    archive = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    target = folder / Path(archive).stem
    with tarfile.open(folder / archive) as packed:
        packed.extractall(target, filter="data")
    return target / "package"


def sprite(icons: Path) -> bytes:
    """One SVG of symbols, drawn with the stroke of whoever uses them."""
    symbols = []
    for name, lucide in sorted(ICONS.items()):
        drawing = ElementTree.parse(icons / f"{lucide}.svg").getroot()
        shapes = "".join(shape(child) for child in drawing)
        symbols.append(f'<symbol id="{name}" viewBox="0 0 24 24">{shapes}</symbol>')
    body = "\n".join(symbols)
    return f'<svg xmlns="{SVG}">\n<!-- Lucide, ISC licence -->\n{body}\n</svg>\n'.encode()


def shape(element: ElementTree.Element) -> str:
    attributes = " ".join(f'{key}="{value}"' for key, value in element.attrib.items())
    return f"<{element.tag.removeprefix('{' + SVG + '}')} {attributes}/>"


def print_font(weight: int) -> bytes:
    """The interface's face in one weight as a TrueType file, which PDFs embed, with the letters of both subsets."""
    parts = []
    for subset in ("latin", "latin-ext"):
        font = TTFont(VENDOR / f"inter-{subset}.woff2")
        font.flavor = None
        font = instantiateVariableFont(font, {"wght": weight, "opsz": 14})
        for table in ("GSUB", "GPOS", "GDEF", "STAT"):
            if table in font:
                del font[table]
        parts.append(io.BytesIO())
        font.save(parts[-1])
        parts[-1].seek(0)
    whole = io.BytesIO()
    merged = Merger().merge(parts)
    merged["head"].created = merged["head"].modified = 0  # so that the same fonts make the same file
    merged.recalcTimestamp = False
    merged.save(whole)
    return whole.getvalue()


def listing() -> dict[str, object]:
    """What stands in the repository: version and sha256 of each copy."""
    copies = [copy for _, files in PACKAGES.values() for copy in files.values()] + ["static/vendor/icons.svg", *PRINT_FONTS]
    return {
        "packages": {name: version for name, (version, _) in PACKAGES.items()},
        "sha256": {copy: hashlib.sha256((ROOT / copy).read_bytes()).hexdigest() for copy in sorted(copies)},
    }


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    main()
