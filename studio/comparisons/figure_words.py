"""Figures, shares and lists as words, with as many digits as they are worth."""

from collections.abc import Sequence

from studio.comparisons.figures import Figure

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
FRACTIONS = (
    (1 / 5, "a fifth as much"),
    (1 / 4, "a quarter as much"),
    (1 / 3, "a third as much"),
    (1 / 2, "half as much"),
    (2 / 3, "two thirds as much"),
    (3 / 4, "three quarters as much"),
    (2.0, "twice as much"),
    (3.0, "three times as much"),
)

NEGLIGIBLE = 0.05
"""An interval that reaches no further than this share of its figure to either side is not told in a sentence."""


def turned(figure: Figure) -> Figure:
    return Figure(value=-figure.value, low=-figure.high, high=-figure.low)


def plus_minus(figure: Figure | None) -> str:
    """1.234 ± 0.012, with as many digits as the ± is worth."""
    if figure is None:
        return "–"
    half = figure.half if figure.half > 1e-9 * abs(figure.value) else 0.0  # less is the arithmetic's own
    digits = next((place for place in range(5) if half >= 0.95 * 10**-place), 5)
    digits = min(5, digits + 1) if half else 3
    return f"{figure.value:.{digits}f} ± {half:.{digits}f}"


def share_words(figure: Figure) -> str:
    """98.7 % ± 0.6, in points of a hundred."""
    half = figure.half * 100
    digits = 0 if half >= 10 else 1
    return f"{figure.value * 100:.{digits}f} % ± {half:.{digits}f}"


def percent(share: float, half: float = 0.0) -> str:
    """31 %, 1.5 %, 0.02 %: two digits that count; 31 % ± 4 where `half` an interval is more than a little of the share."""
    size = abs(share * 100)
    digits = 0 if size >= 9.95 else 1 if size >= 0.095 else 2
    around = f"{half * 100:.{digits}f}" if half >= NEGLIGIBLE * abs(share) else ""
    return f"{size:.{digits}f} % ± {around}" if around.strip("0.") else f"{size:.{digits}f} %"


def times(ratio: float) -> str:
    """a third as much, 62 % as much, 1.6 times as much."""
    near = [words for fraction, words in FRACTIONS if abs(ratio / fraction - 1) < 0.08]
    if near:
        return near[0]
    return f"{percent(ratio)} as much" if ratio < 1 else f"{ratio:.1f} times as much"


def seeds_words(count: int) -> str:
    spelt = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{spelt} seed{'' if count == 1 else 's'}"


def listed(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)
