"""Blind rating: what somebody is asked next, casting what they say, taking it back, and letting a client's guests rate.

Answers of two arms stand beside each other without a name. The page holds its question encrypted and bound to who is asked, since what is
only signed can be read: nobody learns or chooses whose answers they are.
"""

import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar

import orjson
from cryptography.fernet import InvalidToken
from django.db import transaction
from django.http import Http404
from django.utils import timezone

from studio.audit.services import record
from studio.comparisons.models import Comparison, Rating
from studio.comparisons.rated import Pair, Rated, is_open, pair_of, ratings_of, seeds_of
from studio.errors import UserError
from studio.workspaces.models import Member, hold
from studio.workspaces.secrets import lock_for

PURPOSE = b"adapter studio: answers that are rated blindly"
LASTS = 24 * 3600
"""Seconds in which a question can be answered."""
TAKEN_BACK = timedelta(minutes=10)
"""After this a rating stays."""
PADDED = 256
"""Bytes of every question, so that the length of its seal tells nothing of it."""
SIDES = ("left", "right", "equal")
CHANCE = secrets.SystemRandom()

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """Two arms' answers to one prompt, and on which side each stands."""

    prompt: int
    left: int
    right: int
    left_seed: int
    right_seed: int

    @property
    def pair(self) -> Pair:
        return min(self.left, self.right), max(self.left, self.right)


def left_for(member: Member, rated: Rated) -> list[tuple[Pair, int]]:
    """The pairs and prompts that they have not rated."""
    done = {(pair_of(rating), rating.prompt) for rating in rated.ratings if rating.user_id == member.user_id}
    return [asked for asked in rated.asked if asked not in done]


def next_question(member: Member, rated: Rated, *, chance: random.Random = CHANCE) -> Question | None:
    """Of the pair that was rated least often; of several, the one whose scores are closest, where a rating tells most; then by chance.

    Its prompt and seeds are those that were rated least often, and the sides are drawn. None where this member has rated everything.
    """
    left = left_for(member, rated)
    if not left:
        return None
    times = Counter(pair_of(rating) for rating in rated.counted)
    place = {arm: at for at, arm in enumerate(rated.arms)}

    def gap(pair: Pair) -> float:
        one, other = (rated.scores.strengths[place[arm]] for arm in pair)
        return round(abs(float(one - other)), 6)

    pair = least({pair for pair, _ in left}, lambda pair: (times[pair], gap(pair)), chance)
    of_pair = [rating for rating in rated.counted if pair_of(rating) == pair]
    prompts = Counter(rating.prompt for rating in of_pair)
    prompt = least((prompt for of, prompt in left if of == pair), lambda prompt: prompts[prompt], chance)
    trained = Counter(seeds_of(rating) for rating in of_pair if rating.prompt == prompt)
    seeds = least(rated.asked[pair, prompt], lambda seeds: trained[seeds], chance)
    sides = list(zip(pair, seeds, strict=True))
    chance.shuffle(sides)
    (arm, seed), (other, other_seed) = sides
    return Question(prompt, arm, other, seed, other_seed)


def least(these: Iterable[T], key: Callable[[T], Any], chance: random.Random) -> T:
    """Any of those for which `key` is least."""
    there = list(these)
    lowest = min(key(each) for each in there)
    return chance.choice([each for each in there if key(each) == lowest])


def sealed(member: Member, comparison: Comparison, question: Question) -> str:
    told = asdict(question) | {"member": member.pk, "comparison": comparison.pk.hex, "order": str(comparison.order_id)}
    return lock_for(PURPOSE).encrypt(orjson.dumps(told).ljust(PADDED)).decode()


def opened(member: Member, comparison: Comparison, token: str) -> Question:
    """Raises UserError for what was not asked of them, or not of these answers, or too long ago."""
    try:
        told = orjson.loads(lock_for(PURPOSE).decrypt(token.encode(), ttl=LASTS))
    except (InvalidToken, ValueError):
        told = {}
    bound = [told.pop(name, None) for name in ("member", "comparison", "order")]
    if bound != [member.pk, comparison.pk.hex, str(comparison.order_id)]:
        raise UserError("This question is no longer open, so nothing was rated. Here is another one.")
    return Question(**told)


def cast(member: Member, comparison: Comparison, *, token: str, better: str) -> Rating:
    """What they said of the question that the token holds, with its audit record, which names no arm."""
    if better not in SIDES:
        raise UserError("Choose the better answer, or that they are equally good.")
    with transaction.atomic():
        held = still_open(member, comparison)
        question = opened(member, held, token)
        arms = {arm.number: arm for arm in held.arms.all()}
        mine = ratings_of(held).filter(user=member.user_id, prompt=question.prompt).select_related("left", "right")
        if any(pair_of(rating) == question.pair for rating in mine):
            raise UserError("You have rated these two answers already. Here are others.")
        made: Rating = Rating.objects.create(
            comparison=held,
            prompt=question.prompt,
            left=arms[question.left],
            right=arms[question.right],
            left_seed=question.left_seed,
            right_seed=question.right_seed,
            better=better,
            by_guest=member.role == Member.Role.GUEST,
            user=member.user,
        )
        record(member, "rating.cast", made, change={"better": [None, better]})
    return made


def last_of(member: Member, comparison: Comparison) -> Rating | None:
    """Their latest rating, as long as it can be taken back."""
    found: Rating | None = (
        ratings_of(comparison).filter(user=member.user_id).select_related("left", "right").order_by("-created_at").first()
    )
    return found if found and found.created_at > timezone.now() - TAKEN_BACK else None


def undo(member: Member, comparison: Comparison) -> Question:
    """Takes their latest rating back, and answers with the same question, as it stood there."""
    with transaction.atomic():
        held = still_open(member, comparison)
        last = last_of(member, held)
        if last is None:
            raise UserError("There is nothing to undo. A rating can be undone for ten minutes.")
        record(member, "rating.undo", last, change={"better": [last.better, None]})
        last.delete()
    return Question(last.prompt, last.left.number, last.right.number, last.left_seed, last.right_seed)


def still_open(member: Member, comparison: Comparison) -> Comparison:
    """The row as it stands now, held: of two requests at once the second sees what the first said, and none counts once it is unshared."""
    hold(comparison)
    found: Comparison | None = (
        Comparison.objects.for_action(member, "comparison.rate").select_related("order").filter(pk=comparison.pk).first()
    )
    if found is None:
        raise Http404
    if not is_open(found):
        raise UserError("There are no answers to rate at the moment. Come back once it has been measured.")
    return found


def share(member: Member, comparison: Comparison) -> None:
    """Lets the client's guests rate its answers."""
    with transaction.atomic():
        hold(comparison)
        comparison.refresh_from_db()
        if comparison.shared_at:
            raise UserError("It is shared with the client's people already.")
        if not is_open(comparison):
            raise UserError("There are no answers to rate yet. Share it once it has been measured.")
        comparison.shared_at = timezone.now()
        comparison.save(update_fields=["shared_at"])
        record(member, "comparison.share", comparison, change={"shared": [False, True]})


def unshare(member: Member, comparison: Comparison) -> None:
    """From now on it is not there for them. What they rated stays."""
    with transaction.atomic():
        hold(comparison)
        comparison.refresh_from_db()
        if not comparison.shared_at:
            raise UserError("It is not shared with the client's people.")
        comparison.shared_at = None
        comparison.save(update_fields=["shared_at"])
        record(member, "comparison.unshare", comparison, change={"shared": [True, False]})
