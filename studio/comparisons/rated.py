"""The answers of a comparison's arms, which of them differ, what people said, and the scores that come of it. It changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from django.db.models import QuerySet

from studio.comparisons.bradley_terry import Floats, Scores, scores
from studio.comparisons.measured import Asked, answers_of, facts_of, folder_of, prompts_of, told_as_damaged
from studio.comparisons.models import Comparison, Rating
from studio.errors import UserError
from studio.orders.models import Order

Pair = tuple[int, int]
"""The numbers of two arms, the smaller one first."""
Seeds = tuple[int, int]
"""Of the trainings of a pair's arms, in their order."""


def is_open(comparison: Comparison) -> bool:
    """Whether there are answers to rate: it was measured, and nothing is at work that would replace them.

    Where measuring once more failed, or was stopped, the measurement before it stands.
    """
    order = comparison.order
    return not comparison.is_live and order is not None and order.status == Order.Status.SUCCEEDED


def ratings_of(comparison: Comparison) -> "QuerySet[Rating]":
    """Those of the answers that there are: what was said of answers of an earlier measuring is not counted."""
    order = comparison.order
    found: QuerySet[Rating] = Rating.objects.filter(comparison=comparison)
    return found.filter(created_at__gte=order.created_at) if order is not None else found.none()


def pair_of(rating: Rating) -> Pair:
    one, other = sorted((rating.left.number, rating.right.number))
    return one, other


def seeds_of(rating: Rating) -> Seeds:
    """In the order of its pair."""
    seeds = (rating.left_seed, rating.right_seed)
    return seeds if rating.left.number < rating.right.number else seeds[::-1]


@dataclass
class Rated:
    """One comparison as those who rate it need it."""

    comparison: Comparison
    texts: Mapping[tuple[int, int], Sequence[str]]
    """By arm and seed: its answer to each prompt."""
    prompts: Sequence[tuple[str, str]]
    """Each prompt as it is shown, and the answer that is expected, if any."""
    ratings: list[Rating]

    @classmethod
    def of(cls, comparison: Comparison) -> "Rated | None":
        """None where nothing was measured or can be read, or fewer than two arms answered. Reads texts alone, for every rating asks."""
        folder = folder_of(comparison)
        if not is_open(comparison) or folder is None or not (folder / "facts.json").is_file():
            return None
        asked = Asked.of(comparison)
        try:
            with told_as_damaged(comparison):
                prompts = prompts_of(folder)
                known = {(result.arm, result.seed) for result in facts_of(folder, asked).results}
                answers = answers_of(folder, known, prompts, asked)
        except UserError:  # the page of the comparison says so
            return None
        texts = {key: [answer.text for answer in said] for key, said in answers.items() if key[0] >= 0 and 0 < len(said) == len(prompts)}
        ratings = list(ratings_of(comparison).select_related("left", "right"))
        found = cls(comparison, texts, [(prompt.shown, prompt.expected) for prompt in prompts], ratings)
        return found if found.pairs else None

    @cached_property
    def arms(self) -> list[int]:
        return sorted({arm for arm, _ in self.texts})

    @cached_property
    def pairs(self) -> list[Pair]:
        return list(combinations(self.arms, 2))

    def met(self, pair: Pair) -> list[Seeds]:
        """Which of their trainings meet: those of the same seed, or all with all where there are none."""
        one, other = ([seed for arm, seed in self.texts if arm == each] for each in pair)
        return [(seed, seed) for seed in one if seed in other] or [(first, second) for first in one for second in other]

    @cached_property
    def asked(self) -> dict[tuple[Pair, int], list[Seeds]]:
        """For each pair and prompt the seeds with which the answers differ. Where none do, there is nothing to ask."""
        said = {key: [text.strip() for text in texts] for key, texts in self.texts.items()}
        found: dict[tuple[Pair, int], list[Seeds]] = {}
        for pair in self.pairs:
            for seeds in self.met(pair):
                one, other = (said[arm, seed] for arm, seed in zip(pair, seeds, strict=True))
                for prompt, (first, second) in enumerate(zip(one, other, strict=True)):
                    if first != second:
                        found.setdefault((pair, prompt), []).append(seeds)
        return found

    @cached_property
    def alike(self) -> dict[Pair, float]:
        """The share of a pair's answers that are the same, from 0 to 1."""
        differ = dict.fromkeys(self.pairs, 0)
        for (pair, _), seeds in self.asked.items():
            differ[pair] += len(seeds)
        return {pair: 1 - count / (len(self.met(pair)) * len(self.prompts)) for pair, count in differ.items()}

    @cached_property
    def counted(self) -> list[Rating]:
        """Those whose answers are still there."""
        return [rating for rating in self.ratings if (pair_of(rating), rating.prompt) in self.asked]

    @cached_property
    def wins(self) -> Floats:
        """How often each arm was preferred to each other, `(prompts, arms, arms)`, as `bradley_terry.scores` takes it.

        Equal answers are never asked, for everybody would find them equal. So each rating of a pair brings with it as many ties as there
        are equal answers for each that differs; a pair whose answers are all equal ties once on each prompt.
        """
        place = {arm: at for at, arm in enumerate(self.arms)}
        found = np.zeros((len(self.prompts), len(place), len(place)))
        for rating in self.counted:
            left, right = place[rating.left.number], place[rating.right.number]
            share = self.alike[pair_of(rating)]
            tie = share / (1 - share) / 2 + (0.5 if rating.better == "equal" else 0)
            found[rating.prompt, left, right] += tie + (rating.better == "left")
            found[rating.prompt, right, left] += tie + (rating.better == "right")
        for (one, other), share in self.alike.items():
            if share == 1:
                found[:, place[one], place[other]] += 0.5
                found[:, place[other], place[one]] += 0.5
        return found

    @cached_property
    def scores(self) -> Scores:
        return scores(self.wins)
