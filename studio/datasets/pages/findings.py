"""What a person should look at in a version before training: a card for each finding, and small charts of turns, roles and languages."""

from dataclasses import dataclass
from typing import Any

from studio.datasets import drafting
from studio.datasets.findings import TURNS
from studio.datasets.flags import FINDINGS, Finding
from studio.datasets.models import DatasetVersion
from studio.workspaces.models import Member

BARS = 6
"""Of a small chart; what is left is one more."""
SIDES = {
    "duplicate": "Dropping them leaves the first of each.",
    "near_duplicate": "Dropping them leaves the first of each group.",
    "conflict": "Dropping them drops every answer to such a question: look at them first, and keep the better one.",
    "leakage": "Dropping them takes them out of validation.",
}
"""What dropping leaves, where that is not plain."""
LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian",
    "nl": "Dutch", "no": "Norwegian", "nb": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
ROLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


@dataclass(frozen=True)
class Card:
    finding: Finding
    rows: int
    share: float
    examples: list[dict[str, Any]]
    names: list[str]
    """Of placeholders, to fill in."""
    side: str
    rule: str
    """What the person's draft does with these rows: drop, fix, or nothing yet."""

    @property
    def width(self) -> float:
        """Of the bar, out of 100."""
        return round(max(1.0, 100 * self.share), 1)

    @property
    def fixes(self) -> bool:
        return "fix" in self.finding.remedies and (self.finding.name != "placeholder" or bool(self.names))


@dataclass(frozen=True)
class Bar:
    label: str
    rows: int
    share: float
    width: float


def overview(member: Member, version: DatasetVersion) -> dict[str, Any]:
    """`cards`, `charts` and the `warnings` that are no card's, for the page of a version that is ready."""
    facts: dict[str, Any] = version.facts or {}
    told = set(facts.get("said", ()))
    repeated = "% duplicates: "
    return {
        "cards": cards(member, version),
        "charts": charts(facts),
        "warnings": [warning for warning in facts["warnings"] if warning not in told and repeated not in warning],
        "may_draft": member.may("dataset.create"),
    }


def cards(member: Member, version: DatasetVersion) -> list[Card]:
    facts: dict[str, Any] = version.facts or {}
    changes = drafting.changes_of(drafting.draft_of(member, version))
    found: list[Card] = []
    for finding in FINDINGS:
        rows = facts.get("findings", {}).get(finding.name, 0)
        if rows:
            rule = changes.rule_for(finding.name)
            found.append(
                Card(
                    finding=finding,
                    rows=rows,
                    share=rows / facts["rows"],
                    examples=facts.get("examples", {}).get(finding.name, []),
                    names=facts.get("placeholders", []) if finding.name == "placeholder" else [],
                    side=SIDES.get(finding.name, ""),
                    rule=rule.do if rule else "",
                )
            )
    return found


def charts(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Each a title and bars; only what has something to compare."""
    statistics = facts.get("statistics", {})
    languages = facts.get("languages", {})
    looked = languages.get("looked_at", 0)
    sampled = f"of {looked:,} rows looked at" if looked < facts["rows"] else ""
    spoken = [(LANGUAGES.get(code, code) if code else "Could not be told", rows) for code, rows in languages.get("rows", {}).items()]
    turns = [(_messages(int(number)), rows) for number, rows in statistics.get("turns", {}).get("rows", {}).items()]
    roles = [(ROLES.get(role, role), number) for role, number in statistics.get("roles", {}).items()]
    found = [
        {
            "title": "Languages of the answers",
            "aside": sampled,
            "bars": _bars(spoken),
        },
        {"title": "Messages in a row", "aside": "", "bars": _bars(turns)},
        {"title": "Messages by role", "aside": "", "bars": _bars(roles)},
    ]
    return [chart for chart in found if len(chart["bars"]) > 1]


def _messages(number: int) -> str:
    return f"{number}{' or more' if number == TURNS else ''} message{'' if number == 1 else 's'}"


def _bars(counts: list[tuple[str, int]]) -> list[Bar]:
    ranked = sorted(counts, key=lambda each: -each[1])
    if rest := sum(number for _, number in ranked[BARS:]):
        ranked = [*ranked[:BARS], ("Others", rest)]
    total = sum(number for _, number in ranked) or 1
    return [Bar(label, number, number / total, round(max(0.5, 100 * number / total), 1)) for label, number in ranked if number]
