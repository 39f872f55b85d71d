"""What a person sees in a cell of a workbook whose value is a number: dates, leading zeros, decimals, per cent. No files."""

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta

DATES = frozenset([*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)])
"""Numbers of Excel's own formats that show a date or a time."""
OWN = {1: "0", 2: "0.00", 3: "#,##0", 4: "#,##0.00", 9: "0%", 10: "0.00%", 37: "#,##0", 38: "#,##0", 39: "#,##0.00", 40: "#,##0.00"}
OWN |= dict.fromkeys((18, 19, 20, 21, 45, 46, 47), "h:mm") | {22: "d h:mm"}
QUOTED = re.compile(r'"[^"]*"|\\.|_.|\*.|\[(?![hms]+\])[^\]]*\]')
"""Parts of a pattern that are no digit, day or hour: words, spacing, colours and currencies."""
PLAIN = re.compile(r"(?:#|#,##)?(0*)(?:\.(0+))?(%?)")
ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")
LARGEST_DATE = 2_958_466
"""The day after 9999-12-31."""
MOST_STYLES = 100_000


@dataclass
class Styles:
    """How cells are shown: `formats` by a cell's style, `own` by a format's number."""

    formats: list[int] = field(default_factory=list)
    own: dict[int, str] = field(default_factory=dict)
    from_1904: bool = False
    inside: bool = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "numFmt" and len(self.own) < MOST_STYLES:
            self.own[whole(attributes.get("numFmtId", ""))] = attributes.get("formatCode", "")[:255]
        elif name == "cellXfs":
            self.inside = True
        elif name == "xf" and self.inside and len(self.formats) < MOST_STYLES:
            self.formats.append(whole(attributes.get("numFmtId", "")))

    def end(self, name: str) -> None:
        if name == "cellXfs":
            self.inside = False

    def workbook(self, name: str, attributes: dict[str, str]) -> None:
        if name == "workbookPr":
            self.from_1904 = attributes.get("date1904", "") in ("1", "true")

    def format(self, style: str) -> tuple[int, str]:
        """The number and the pattern of the format of a cell with this style."""
        place = whole(style)
        number = self.formats[place] if place < len(self.formats) else 0
        return number, self.own.get(number, OWN.get(number, ""))


def whole(text: str) -> int:
    """The number that `text` is, or 0."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def shown_number(value: str, styles: Styles, style: str) -> str:
    """A number as its cell shows it; what is none is shown as it stands."""
    try:
        number = float(value)
    except ValueError:
        return value
    code, pattern = styles.format(style)
    pattern = QUOTED.sub("", pattern.partition(";")[0])
    if (code in DATES or re.search("[dmyhs]", pattern, re.IGNORECASE)) and 0 <= number < LARGEST_DATE:
        return _moment(number, pattern, from_1904=styles.from_1904)
    fitted = PLAIN.fullmatch(pattern.strip())
    if fitted and pattern.strip() and abs(number) < 1e15:
        whole_digits, decimals, percent = len(fitted[1]), len(fitted[2] or ""), fitted[3]
        text = f"{abs(number) * (100 if percent else 1):.{decimals}f}"
        head, dot, tail = text.partition(".")
        sign = "-" if number < 0 and text.strip("0.") else ""
        return f"{sign}{head.zfill(whole_digits)}{dot}{tail}{percent}"
    return _plain(number)


def _plain(number: float) -> str:
    """A number without a format of its own: Excel keeps fifteen digits."""
    return str(int(number)) if abs(number) < 1e15 and number.is_integer() else f"{number:.15g}"


def _moment(number: float, pattern: str, *, from_1904: bool) -> str:
    """A day and a time of day as ISO 8601 writes them; only the part that the cell shows."""
    shows_time, shows_day = re.search("[hs]", pattern, re.IGNORECASE), re.search("[dy]", pattern, re.IGNORECASE)
    seconds = round(number * 86400)
    if shows_time and not shows_day:
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    days = 1462 if from_1904 else 1 if 0 < number < 60 else 0  # Excel counts a 29th of February 1900
    try:
        moment = datetime(1899, 12, 30) + timedelta(days=days, seconds=seconds)
    except OverflowError:
        return _plain(number)
    return moment.strftime("%Y-%m-%d %H:%M:%S" if shows_time else "%Y-%m-%d")


def unescaped(text: str) -> str:
    """`text` with what Excel writes as _x000D_ as the character it stands for."""
    return ESCAPED.sub(lambda found: chr(int(found[1], 16)), text) if "_x" in text else text
