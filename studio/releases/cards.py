"""The two texts of a client's bundle: README.md says how to run it, MODEL_CARD.md what it was made of, how well it does, on what terms.

What people typed stays plain text, whatever marks stand in it; of the data there are names, counts and hashes, never a row.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from studio.artifacts.models import Build
from studio.datasets.models import DatasetVersion
from studio.releases.modelfile import fits
from studio.releases.models import Delivery, Evaluation, Release
from studio.releases.running import numbers_of, stops_of, system_of, ways

MARKS = re.compile(r"([\\`*_\[\]<>#|~&$!])")
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
"""Control characters, breaks of lines, and marks that turn the direction of writing."""
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")
KINDS = {
    "gguf": "One GGUF file",
    "gguf_adapter": "A GGUF adapter, which goes on its base model",
    "merged": "Merged weights, as safetensors",
}
ASKED = {"temperature": "Temperature", "top_p": "Top p", "max_tokens": "Tokens of an answer, at most"}
MOST_DATA = 50
"""Versions of datasets that a card follows back."""


def readme(delivery: Delivery, *, files: Sequence[str], file: str) -> str:
    release, build = delivery.release, delivery.build
    client = release.project.client
    lines = [
        f"# {plain(release.name)}",
        "",
        f"From {plain(client.workspace.name)} for {plain(delivery.recipient or client.name)}.",
        "",
        *_table(
            [
                ("Version", release.version),
                ("What", f"{KINDS[build.kind]}, {build.quantization}"),
                ("Base model", plain(release.base_model.name) if release.base_model else ""),
                ("File", f"`{file}`" if file else ""),
            ]
        ),
        *_notes(release),
        "",
        "## Look whether all of it arrived",
        "",
        "`SHA256SUMS` holds the hash of every file.",
        "",
        *_code("sh", "sha256sum -c SHA256SUMS"),
        "",
        "## Run it",
    ]
    for runner in ways(release, build, file):
        lines += ["", f"### {runner.name}"]
        for sentence, command in runner.steps:
            lines += ["", sentence, *(["", *_code("sh", command)] if command else [])]
    lines += ["", "## What it is asked with", "", *_asked(release)]
    lines += [
        "",
        "## What lies beside it",
        "",
        "`MODEL_CARD.md` says what it was made of, how well it does, and on what terms it may be used.",
    ]
    lines += [f"- `{name}`" for name in files if name != file]
    return "\n".join(lines) + "\n"


def _notes(release: Release) -> list[str]:
    if not release.notes.strip():
        return []
    return ["", "## What is new", "", *_quote(release.notes)]


def _asked(release: Release) -> list[str]:
    system, numbers, stops = system_of(release), numbers_of(release), stops_of(release)
    if not (system or numbers or stops):
        return ["Nothing: its base model's own settings hold."]
    lines = ["It was tried and released with these settings. The Modelfile holds them; other programs are told them by hand."]
    if system:
        lines += ["", "Before every conversation it is told, as in `system.txt`:", "", *_code("", system)]
    rows = [(ASKED[name], f"{value:g}") for name, value in numbers.items()]
    rows += [("An answer ends at", _inline(stop) + ("" if fits(stop) else " (a Modelfile cannot hold it)")) for stop in stops]
    return [*lines, "", *_table(rows)] if rows else lines


def card(delivery: Delivery, *, evaluation: Evaluation | None, licences: Sequence[str]) -> str:
    release, build = delivery.release, delivery.build
    base, version = release.base_model, release.artifact.dataset_version
    front = [f"library_name: {'transformers' if build.kind == Build.Kind.MERGED else 'gguf'}", "pipeline_tag: text-generation"]
    if base and IDENTIFIER.fullmatch(base.license):
        front.append(f"license: {json.dumps(base.license)}")
    lines = ["---", *front, "---", "", f"# Model card of {plain(release.name)}"]
    lines += ["", "## Base model", ""]
    if base:
        rows = [("Name", plain(base.name)), ("From", plain(_place(base.source))), ("Revision", plain(base.revision))]
        lines += _table([*rows, ("SHA-256", f"`{base.sha256}`" if base.sha256 else ""), ("Licence", plain(base.license) or "not stated")])
    else:
        lines.append("It is not known here what it stands on.")
    lines += ["", "## Data", "", *_data(version)]
    lines += ["", "## How well it does", "", *_evaluated(evaluation), "", *_proved(build)]
    lines += ["", "## On what terms", "", *_terms(release, licences)]
    return "\n".join(lines) + "\n"


def _data(version: DatasetVersion | None) -> list[str]:
    if version is None:
        return ["It was not trained here, so nothing is known of its data."]
    split = (version.facts or {}).get("split", {})
    lines = _table(
        [
            ("Dataset", plain(str(version))),
            ("Rows to train on", f"{split.get('train', 0):,}"),
            ("Rows held back", f"{split.get('validation', 0):,}"),
            ("SHA-256 of the rows", f"`{version.sha256}`"),
        ]
    )
    chain = lineage_of(version)
    if len(chain) > 1:
        lines += ["", "It was made of:", ""]
        lines += [f"- {plain(str(one))}, {(one.facts or {}).get('rows', 0):,} rows, `{one.sha256}`" for one in chain[1:]]
    return lines


def lineage_of(version: DatasetVersion) -> list[DatasetVersion]:
    """The version, and those of the same client that its rows come from, one generation after the other."""
    versions = DatasetVersion.objects.filter(dataset__project__client=version.audit_client).select_related("dataset__project__client")
    found, asked = [version], {str(version.pk)}
    next_ones = _parents(version)
    while (next_ones := next_ones - asked) and len(found) < MOST_DATA:
        asked |= next_ones
        older = list(versions.filter(pk__in=next_ones).order_by("created_at"))
        found += older
        next_ones = {pk for one in older for pk in _parents(one)}
    return found[:MOST_DATA]


def _parents(version: DatasetVersion) -> set[str]:
    parts = version.origin.get("parts", []) if version.origin.get("kind") in ("mix", "split") else []
    return {str(part["version"]) for part in parts} | ({str(version.parent_id)} if version.parent_id else set())


def _evaluated(evaluation: Evaluation | None) -> list[str]:
    result = (evaluation.result or {}) if evaluation else {}
    loss = _figure(result.get("loss"), ".3f")
    if evaluation is None or not loss:
        return ["It was not measured on held-out rows before it was released."]
    rows = [("Held-out rows", plain(str(evaluation.dataset_version))), ("Rows", _figure(result.get("rows"), ",.0f"))]
    rows += [
        ("SHA-256 of the rows", f"`{evaluation.dataset_version.sha256}`"),
        (f"Loss, nats per {plain(str(result.get('unit', 'token')))}", loss),
    ]
    before = _figure(result.get("before"), ".3f")
    named = f"Loss of {evaluation.against.version}, in use then" if evaluation.against else "Loss of the one before"
    return _table([*rows, (named, before)])


def _proved(build: Build) -> list[str]:
    told: Mapping[str, Any] = build.verification or {}
    rows = [
        ("Mean KL divergence from the original, nats per token", _figure(told.get("mean_kl"), ".2g")),
        ("Largest", _figure(told.get("max_kl"), ".2g")),
        ("Perplexity", _figure(told.get("perplexity"), ".3f")),
        ("Perplexity of the original", _figure(told.get("perplexity_reference"), ".3f")),
        ("Likeliest next word is the same", _figure(told.get("top1"), ".1%")),
        ("Tokens per second where it was built", _figure(told.get("tokens_per_second"), ".0f")),
    ]
    said = ["The file was run and compared with what it was built from before it could be handed over.", "", *_table(rows)]
    return said + [line for sentence in told.get("caveats", []) for line in ("", plain(str(sentence)))]


def _terms(release: Release, licences: Sequence[str]) -> list[str]:
    """The chain: what the base is under, what the rows are under, what both together mean."""
    base, version = release.base_model, release.artifact.dataset_version
    workspace, client = release.project.client.workspace, release.project.client
    lines = []
    if base:
        terms = f"is under {plain(base.license)}" if base.license else "states no licence here; ask its maker before you pass this on"
        lines.append(f"1. The base model {plain(base.name)} {terms}. Its terms hold for this work, which is derived from it.")
        if licences:
            lines.append(f"   They lie beside this card: {', '.join(f'`{name}`' for name in licences)}.")
    for one in lineage_of(version) if version else []:
        told = f"is under {plain(one.dataset.license)}" if one.dataset.license else _came_from(one, client.name)
        lines.append(f"1. {plain(str(one))} {told}.")
    lines.append(f"1. The training is {plain(workspace.name)}'s work for {plain(client.name)}; what they agreed holds for it.")
    return lines


def _came_from(version: DatasetVersion, client: str) -> str:
    match version.origin.get("kind"):
        case "hub":
            place = f"{version.origin.get('repository', '')}@{str(version.origin.get('commit', ''))[:12]}"
            terms = (
                f"which says that it is under {plain(version.origin['license'])}" if version.origin.get("license") else "whose terms hold"
            )
            return f"comes from the dataset hub, {plain(place)}, {terms}"
        case "mix" | "split" | "revision":
            return "was made of the versions named under Data; their terms hold"
        case "object":
            return f"was fetched from a store of files; no licence is on record, so it is {plain(client)}'s own"
    return f"was uploaded; no licence is on record, so it is {plain(client)}'s own"


def _place(source: str) -> str:
    """Where everybody can find it; a folder on the server is nobody else's business."""
    return source if source.startswith(("hub:", "package:")) else ""


def plain(text: str) -> str:
    """What somebody typed, as text on one line of Markdown and nothing else."""
    return MARKS.sub(r"\\\1", UNSEEN.sub(" ", text)).strip()


def _inline(text: str) -> str:
    """A stop as JSON has it, so that breaks are seen, in a code span that it cannot end."""
    told = json.dumps(text, ensure_ascii=False).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", told)), default=0))
    return f"{fence} {told} {fence}"


def _quote(text: str) -> list[str]:
    return [f"> {plain(line)}".rstrip() for line in text.strip().splitlines()]


def _code(language: str, text: str) -> list[str]:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [f"{fence}{language}", *text.splitlines(), fence]


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows if value)]


def _figure(value: Any, form: str) -> str:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return format(value, form) if usable else ""
