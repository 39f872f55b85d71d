"""The API's part about blind ratings: what they come to. They are cast on a page alone, where nobody knows whose answers they see."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Router, Schema

from studio.comparisons.bradley_terry import Share
from studio.comparisons.preferred import Preference
from studio.comparisons.rated import Rated
from studio.comparisons.rating_views import found_for

router = Router(tags=["Comparisons"])


class ShareOut(Schema):
    """From 0 to 1, ties counted half, with its 95 % interval."""

    value: float
    low: float
    high: float


class ArmScoreOut(Schema):
    arm: UUID
    name: str
    ratings: int
    """Of its answers."""
    preferred: ShareOut
    """To the other arms, on average."""


class PairScoreOut(Schema):
    arm: UUID
    against: UUID
    better: int
    worse: int
    equal: int
    alike: float
    """The share of their answers that are the same: nobody is asked about these, and they count as equal as often as they come up."""
    preferred: ShareOut
    """`arm` to `against`, by the scores of all arms."""


class RatingsOut(Schema):
    ratings: int
    by_guests: int
    """Of these."""
    sentence: str
    settled: bool
    """Whether the most preferred arm is told from the one after it."""
    more: int
    """About how many more ratings would tell, as far as it stays like this; 0 where it is settled."""
    arms: list[ArmScoreOut]
    """The most preferred first; [] before two arms have answers."""
    pairs: list[PairScoreOut]


@router.get("/comparisons/{uuid:pk}/ratings", response=RatingsOut, url_name="comparison_ratings")
def get_comparison_ratings(request: HttpRequest, pk: UUID) -> dict[str, Any]:
    """Bradley-Terry scores of the arms, of what people said without knowing whose answers they saw."""
    rated = Rated.of(found_for(request, "comparison.view", str(pk)))
    if rated is None:
        return {
            "ratings": 0,
            "by_guests": 0,
            "sentence": "Nothing was measured yet.",
            "settled": False,
            "more": 0,
            "arms": [],
            "pairs": [],
        }
    found = Preference(rated)
    return {
        "ratings": found.ratings,
        "by_guests": found.by_guests,
        "sentence": found.sentence,
        "settled": found.is_settled,
        "more": found.more,
        "arms": [
            {"arm": each.arm.pk, "name": each.arm.name, "ratings": each.ratings, "preferred": out(each.figure.share)} for each in found.arms
        ],
        "pairs": [
            {
                "arm": pair.first.pk,
                "against": pair.second.pk,
                "better": pair.wins[0],
                "worse": pair.wins[1],
                "equal": pair.wins[2],
                "alike": pair.alike,
                "preferred": out(pair.figure.share),
            }
            for pair in found.pairs
        ],
    }


def out(share: Share) -> dict[str, float]:
    return {"value": share.value, "low": share.low, "high": share.high}
