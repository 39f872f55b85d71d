"""What people's ratings say, in figures and words: how often each arm is preferred, how sure that is, how many more ratings would tell."""

from dataclasses import dataclass
from functools import cached_property

from studio.comparisons.bradley_terry import Share, more_for
from studio.comparisons.marks import marks_of
from studio.comparisons.models import Arm, Comparison
from studio.comparisons.rated import Rated, pair_of

UNEVEN = 0.03
"""Where an interval's sides differ by more than this share, both ends are told instead of one ±."""
SHOWN = 40
"""Pairs on a page."""
FEW_MORE = 300
"""Whoever would need more ratings than this is told that the arms are about as good."""


@dataclass(frozen=True)
class Figure:
    """A share as it is drawn and told."""

    share: Share

    @property
    def text(self) -> str:
        """`58 % ± 12`, or both ends where they are not alike."""
        value, low, high = (round(100 * each) for each in (self.share.value, self.share.low, self.share.high))
        if abs((self.share.high - self.share.value) - (self.share.value - self.share.low)) > UNEVEN:
            return f"{value} % ({low} to {high})"
        return f"{value} % ± {round(100 * self.share.half)}"

    @property
    def width(self) -> float:
        return self.share.high - self.share.low


@dataclass(frozen=True)
class ArmScore:
    arm: Arm
    figure: Figure
    """How often it is preferred to the others on average, ties counted half."""
    ratings: int
    """Of its answers."""
    dot: int
    """Of its colour."""


@dataclass(frozen=True)
class PairScore:
    """Two arms that met, the one that is preferred first."""

    first: Arm
    second: Arm
    wins: tuple[int, int, int]
    """Ratings for the first, for the second, and for neither."""
    alike: float
    """The share of their answers that are the same, and were not asked."""
    figure: Figure
    """How often the first is preferred, by the scores of all arms."""

    @property
    def ratings(self) -> int:
        return sum(self.wins)


@dataclass(frozen=True)
class Preference:
    """What the ratings of a comparison come to."""

    rated: Rated

    @cached_property
    def ratings(self) -> int:
        return len(self.rated.counted)

    @cached_property
    def by_guests(self) -> int:
        return sum(rating.by_guest for rating in self.rated.counted)

    @property
    def by_people(self) -> int:
        """Of the workshop itself."""
        return self.ratings - self.by_guests

    @cached_property
    def raters(self) -> int:
        return len({rating.user_id for rating in self.rated.counted})

    @cached_property
    def _named(self) -> dict[int, Arm]:
        return {arm.number: arm for arm in self.rated.comparison.arms.all()}

    @cached_property
    def arms(self) -> list[ArmScore]:
        """The most preferred first."""
        marks = marks_of(self._named.values())
        found = []
        for place, number in enumerate(self.rated.arms):
            ratings = sum(number in pair_of(rating) for rating in self.rated.counted)
            found.append(ArmScore(self._named[number], Figure(self.rated.scores.share_of(place)), ratings, marks[number].dot))
        return sorted(found, key=lambda each: -each.figure.share.value)

    @cached_property
    def pairs(self) -> list[PairScore]:
        """Every two arms, those that were rated most often first."""
        found = []
        rank = {score.arm.number: place for place, score in enumerate(self.arms)}
        place = {number: at for at, number in enumerate(self.rated.arms)}
        for pair in self.rated.pairs:
            first, second = sorted(pair, key=lambda number: rank[number])
            met = [rating for rating in self.rated.counted if pair_of(rating) == pair]
            won = [rating.left.number if rating.better == "left" else rating.right.number for rating in met if rating.better != "equal"]
            figure = Figure(self.rated.scores.share(place[first], place[second]))
            wins = (won.count(first), won.count(second), len(met) - len(won))
            found.append(PairScore(self._named[first], self._named[second], wins, self.rated.alike[pair], figure))
        return sorted(found, key=lambda each: -each.ratings)

    @property
    def first_pairs(self) -> list[PairScore]:
        """As many as a page shows."""
        return self.pairs[:SHOWN]

    @cached_property
    def ahead(self) -> PairScore:
        """The most preferred arm and the one after it."""
        best = {self.arms[0].arm.number, self.arms[1].arm.number}
        return next(pair for pair in self.pairs if {pair.first.number, pair.second.number} == best)

    @property
    def is_settled(self) -> bool:
        """Whether the most preferred arm is told from the one after it."""
        return self.ahead.figure.share.is_settled

    @property
    def sentence(self) -> str:
        """`Full is preferred to LoRA in 58 % ± 12 of cases: too close to tell.`"""
        if not self.ratings:
            return "Nobody has rated yet."
        ahead = self.ahead
        if round(100 * ahead.figure.share.value) == 50:
            told = f"{ahead.first.name} and {ahead.second.name} are preferred equally often, {ahead.figure.text}"
        else:
            told = f"{ahead.first.name} is preferred to {ahead.second.name} in {ahead.figure.text} of cases"
        return f"{told}{'.' if self.is_settled else ': too close to tell.'}"

    @property
    def more(self) -> int:
        """About how many more ratings would tell the first two apart, if their shares stay what they are; 0 where they are told apart."""
        share = self.ahead.figure.share
        return 0 if share.is_settled else more_for(share, self.ratings, precise=0)

    @property
    def advice(self) -> str:
        """How many more ratings would settle it, as a sentence; empty where it is settled."""
        if not self.ratings or self.is_settled:
            return ""
        if self.more > FEW_MORE:
            return "They are so close that more ratings would hardly tell them apart."
        return f"About {self.more} more rating{'s' if self.more != 1 else ''} would tell, if it stays like this."


def preference(comparison: Comparison) -> Preference | None:
    """What the ratings come to; None where nothing was measured or rated."""
    rated = Rated.of(comparison)
    found = Preference(rated) if rated else None
    return found if found and found.ratings else None
