"""What a client is handed in one zip: the file, a Modelfile, a README, a card, the licences, and the checksum of each. No torch.

It is put together when it is sent, of what the build left and what the release says; the same delivery is the same zip each time.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from studio.artifacts.downloads import SUMS, main_file, sum_lines, zip_length
from studio.artifacts.models import Artifact, Build
from studio.releases.cards import card, readme
from studio.releases.modelfile import modelfile
from studio.releases.models import Delivery, Evaluation
from studio.releases.running import SYSTEM, numbers_of, stem_of, stops_of, system_of

MODELFILE, README, CARD, NOTICE = "Modelfile", "README.md", "MODEL_CARD.md", "NOTICE"
COMPOSED = {README, MODELFILE, NOTICE, SUMS}
"""Files of a build in whose place the bundle has its own."""


@dataclass(frozen=True)
class Bundle:
    name: str
    """Of the folder in the zip, and of the zip without its suffix."""
    files: dict[str, Path | bytes]
    """Name in that folder, and where it lies or what it says."""
    hashes: dict[str, str]

    @property
    def entries(self) -> list[tuple[str, Path | bytes]]:
        return [(f"{self.name}/{name}", content) for name, content in self.files.items()]

    @cached_property
    def length(self) -> int:
        return zip_length(self.entries)

    @property
    def identity(self) -> str:
        """The same for the same zip, byte for byte."""
        told = "\n".join(f"{self.hashes[name]}  {self.name}/{name}" for name in self.files)
        return hashlib.sha256(told.encode()).hexdigest()


def bundle_of(delivery: Delivery) -> Bundle:
    release, build = delivery.release, delivery.build
    artifact = built(build)
    files: dict[str, Path | bytes] = {name: artifact.folder / name for name in sorted(artifact.files) if name not in COMPOSED}
    hashes = {name: str(artifact.files[name]["sha256"]) for name in files}
    texts = {
        README: readme(delivery, files=sorted(files), file=main_file(artifact) or ""),
        CARD: card(delivery, evaluation=evaluation_of(delivery), licences=[name for name in files if is_licence(name)]),
    }
    if NOTICE in artifact.files:
        texts[NOTICE] = without_places((artifact.folder / NOTICE).read_text(errors="replace"), delivery)
    if MODELFILE in artifact.files:
        before = (artifact.folder / MODELFILE).read_text(errors="replace")
        texts[MODELFILE] = modelfile(before, system=system_of(release), numbers=numbers_of(release), stops=stops_of(release))
    if system := system_of(release):
        texts[SYSTEM] = system
    for name, text in texts.items():
        hashes[name] = put(files, name, text)
    hashes[SUMS] = put(files, SUMS, sum_lines(hashes))
    return Bundle(stem_of(release), files, hashes)


def put(files: dict[str, Path | bytes], name: str, text: str) -> str:
    """Adds a text; returns its hash."""
    content = text.encode(errors="replace")
    files[name] = content
    return hashlib.sha256(content).hexdigest()


def built(build: Build) -> Artifact:
    assert build.artifact is not None  # only what passed is delivered
    return build.artifact


def evaluation_of(delivery: Delivery) -> Evaluation | None:
    """The newest one that had ended when it was handed over: what comes later does not change what was delivered."""
    found = delivery.release.evaluations.filter(result__isnull=False, order__ended_at__lte=delivery.created_at)
    newest: Evaluation | None = found.select_related("dataset_version__dataset", "against").order_by("-created_at").first()
    return newest


def is_licence(name: str) -> bool:
    return name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "USE_POLICY"))


def without_places(notice: str, delivery: Delivery) -> str:
    """A base model's folder on the server is nobody else's business."""
    base = delivery.release.base_model
    is_public = base is None or base.source.startswith(("hub:", "package:"))
    return notice if is_public or base is None else notice.replace(f" ({base.source})", "")
