"""Finds the figures of a comparison's arms, with their intervals, from what was measured of them. What they say in words is wording's."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from studio.comparisons.figures import ArmFigures, Figure, Verdict
from studio.comparisons.measured import Key, Measured, Set
from studio.comparisons.models import Arm, ArmRun, Comparison
from studio.comparisons.statistics import Bootstrap, Draws, Floats, best_of, kept_share, seeds_needed
from studio.comparisons.taken import Spread, Took, taken
from studio.orders.models import Order

NORMAL = 1.959964
"""The 97.5 % quantile of the normal distribution."""
Measure = Mapping[Key, Floats]
"""(arm, seed) -> a figure of each row, in the same order for all."""
CLOSE = 0.05
"""Half the width of a kept share up to which it is sure."""
FEW_ROWS = 20
"""Fewer say little, whatever the interval: they are not a sample of what people will ask."""


def verdict_of(comparison: Comparison) -> Verdict:
    """All but the words."""
    return Reckoning(comparison).verdict()


class Reckoning:
    """The figures of one comparison, in the making."""

    def __init__(self, comparison: Comparison):
        self.comparison = comparison
        self.measured = Measured.of(comparison)
        self.arms = list(Arm.objects.filter(comparison=comparison).select_related("base_model").order_by("number"))
        runs = ArmRun.objects.filter(arm__comparison=comparison).select_related("arm", "run__order").order_by("arm__number", "seed")
        self.arm_runs = list(runs)
        self.losses, self.probe = self.measured.losses("held_out"), self.measured.losses("probe")
        self.held, self.probed = Bootstrap(width(self.losses)), Bootstrap(width(self.probe))
        self.unit = "token" if self.measured.same_tokens("held_out") and self.measured.same_tokens("probe") else "character"
        self.one_base = len({arm.base_model_id for arm in self.arms}) == 1

    def verdict(self) -> Verdict:
        figures = [self.figures(arm) for arm in self.arms]
        lowest = best_of({number: loss for number in self.numbers if (loss := self.loss(number)) is not None})
        for one in figures:
            one.best = lowest.get(one.number, 0.0)
        verdict = Verdict(
            differs=self.comparison.differs,
            unit=self.unit,
            reference=self.reference,
            seeds=min((len(one.seeds) for one in figures if self.counts_seeds(one)), default=0),
            most_seeds=max((len(one.seeds) for one in figures), default=0),
            rows=self.held.rows,
            rows_of=self.measured.facts.of,
            probe_rows=self.probed.rows,
            own_probe=self.comparison.probe_id is not None,
            left_out=self.measured.facts.left_out,
            prompts=len(self.measured.prompts),
            arms=figures,
        )
        verdict.more_seeds = self.more_seeds(verdict)
        return verdict

    def counts_seeds(self, one: ArmFigures) -> bool:
        """Whether a verdict needs all seeds of an arm: of a sweep's arms not those of one that was stopped for being worse."""
        if not one.is_measured:
            return False
        is_best = one.number == min(self.numbers, key=lambda number: self.loss(number).value)
        return is_best or not one.stopped_early or self.comparison.differs != Comparison.Differs.SWEEP

    @cached_property
    def numbers(self) -> list[int]:
        """Of the arms of which a seed was measured."""
        return [arm.number for arm in self.arms if self.seeds(arm.number)]

    @cached_property
    def reference(self) -> int | None:
        """The arm that the others are held against: the one that was chosen, or the one with the lowest loss where that has no result."""
        chosen = [arm.number for arm in self.arms if arm.is_reference and arm.number in self.numbers]
        return chosen[0] if chosen else min(self.numbers, key=lambda number: self.loss(number).value, default=None)

    def seeds(self, arm: int) -> list[int]:
        return sorted(seed for number, seed in self.losses if number == arm)

    def rows(self, measure: Measure, arm: int) -> list[Floats]:
        """(rows,) of each of its seeds."""
        return [measure[arm, seed] for seed in self.seeds(arm) if (arm, seed) in measure]

    def units(self, rows: Set, arm: int) -> Floats:
        """(rows,): the tokens, or characters, of each row as this arm reads it."""
        return self.counts[rows][arm, self.seeds(arm)[0]]

    @cached_property
    def counts(self) -> dict[Set, Measure]:
        read = self.measured.tokens if self.unit == "token" else self.measured.characters
        return {"held_out": read("held_out"), "probe": read("probe")}

    def loss(self, arm: int) -> Draws:
        return self.held.mean(arm, self.rows(self.losses, arm), self.units("held_out", arm))

    def gain(self, arm: int) -> Draws | None:
        """None where its base model was not measured."""
        before = self.before(arm, self.losses, self.held, "held_out")
        return before - self.loss(arm) if before else None

    def before(self, arm: int, measure: Measure, bootstrap: Bootstrap, rows: Set) -> Draws | None:
        """The loss of its untouched base model, which no seed has part in."""
        key = (self.measured.base_of(arm), 0)
        return bootstrap.mean("base", measure[key], self.units(rows, arm)) if key in measure else None

    def figures(self, arm: Arm) -> ArmFigures:
        number = arm.number
        one = ArmFigures(number=number, name=arm.name, plugin=arm.plugin, base=arm.base_model.name)
        one.missing = [said for each in self.arm_runs if each.arm_id == arm.pk and (said := what_became(each, self.seeds(number)))]
        one.stopped_early = sum(
            bool(each.ended_early) for each in self.arm_runs if each.arm_id == arm.pk and each.seed not in self.seeds(number)
        )
        one.quantization = "" if (told_of := arm.config.get("quantization", "none")) == "none" else str(told_of)
        one.took = self.took.get(number, Took())
        if number not in self.numbers:
            return one
        one.seeds = self.seeds(number)
        one.best_seed = min(one.seeds, key=lambda seed: (float(self.losses[number, seed].sum()), seed))
        loss, gain = self.loss(number), self.gain(number)
        one.loss, one.perplexity = told(loss), told(loss.exp()) if self.unit == "token" else None
        if gain is not None:
            one.before, one.gain = gain.value + loss.value, told(gain)
        if self.reference is not None and number != self.reference:
            one.against = told(loss - self.loss(self.reference))
            reference = self.gain(self.reference)
            if gain is not None and reference is not None and self.one_base:
                one.kept = Figure.of(kept_share(gain, reference))
        self.forgetting(one)
        self.answers(one)
        self.result(one, arm)
        return one

    def forgetting(self, one: ArmFigures) -> None:
        """What it lost of what its base model knew, on rows that no arm saw."""
        if rows := self.rows(self.probe, one.number):
            after = self.probed.mean(one.number, rows, self.units("probe", one.number))
            if before := self.before(one.number, self.probe, self.probed, "probe"):
                one.forgetting = told(after - before)
        if rows := self.rows(self.measured.kl(), one.number):
            one.drift = mean_of(one.number, rows, self.measured.tokens("probe")[one.number, one.seeds[0]])

    def answers(self, one: ArmFigures) -> None:
        """How its answers scored, and how much it says word for word as the rows that it learnt from do."""
        measured = self.measured
        one.overlap = share_of(one.number, self.rows(measured.overlap(), one.number))
        one.memorised = share_of(one.number, self.rows(measured.memorised(), one.number))
        names = {name for seed in one.seeds for answer in measured.answers(one.number, seed) for name in answer.scores}
        for name in sorted(names):
            if figure := share_of(one.number, self.rows(measured.scores(name), one.number)):
                one.scores[name] = figure

    def result(self, one: ArmFigures, arm: Arm) -> None:
        """What the facts say of the files that came of it."""
        results = [each for each in self.measured.facts.results if each.arm == one.number]
        for name in ("trainable", "size", "gguf_size", "gguf_adapter_size", "first_token", "tokens_per_second"):
            setattr(one, name, Spread.of(getattr(each, name) or None for each in results))
        parameters = (arm.base_model.facts or {}).get("parameters")
        if one.trainable and parameters:
            one.trainable_share = one.trainable.mean / parameters

    @cached_property
    def took(self) -> dict[int, Took]:
        """Of the runs that were measured alone: one that was stopped early took less."""
        by_arm = taken(each for each in self.arm_runs if each.seed in self.seeds(each.arm.number))
        return {arm.number: by_arm[arm.pk] for arm in self.arms if arm.pk in by_arm}

    def more_seeds(self, verdict: Verdict) -> int | None:
        """With how many more seeds for each arm the two that matter could be told from each other, if they go on to differ as they do.

        Of methods that is the reference and the best of the others, to a twentieth of the reference's gain, which is what a verdict asks
        that is sure; of anything else the best and the second best, to the difference between them.
        """
        best = sorted(verdict.measured, key=lambda one: self.loss(one.number).value)
        if len(best) < 2:
            return None
        if self.comparison.differs == Comparison.Differs.METHOD:
            reference = verdict.arm(verdict.reference)
            if reference is None or reference.gain is None:
                return None
            pair = (next(one.number for one in best if one is not reference), reference.number)
            wanted = max(0.0, reference.gain.value * CLOSE)
        else:
            pair = (best[0].number, best[1].number)
            wanted = self.loss(pair[1]).value - self.loss(pair[0]).value
        needed = seeds_needed(wanted, self.by_seed(pair[0]), self.by_seed(pair[1]), self.rows_error(*pair))
        return needed - verdict.seeds if needed else None

    def by_seed(self, arm: int) -> list[float]:
        """The mean loss of each seed."""
        units = self.units("held_out", arm).sum()
        return [float(rows.sum() / units) for rows in self.rows(self.losses, arm)]

    def rows_error(self, one: int, other: int) -> float:
        """The standard error of the difference of two arms that the choice of rows leaves, however many seeds there are."""
        means = [self.held.mean("rows", np.mean(self.rows(self.losses, arm), axis=0), self.units("held_out", arm)) for arm in (one, other)]
        return float(np.std((means[0] - means[1]).each))


def width(measure: Measure) -> int:
    return len(next(iter(measure.values()))) if measure else 0


def told(draws: Draws) -> Figure | None:
    return Figure.of(draws.interval())


def mean_of(arm: int, by_seed: Sequence[Floats], weights: Floats | None = None) -> Figure | None:
    """Over seeds and rows or prompts, of a figure of each, with weights where they count differently. What a seed lacks is left out."""
    if not by_seed or len({len(each) for each in by_seed}) != 1:
        return None
    table = np.stack(by_seed)
    known = np.isfinite(table).all(axis=0)
    if not known.any():
        return None
    units = np.ones(int(known.sum())) if weights is None else weights[known]
    return told(Bootstrap(len(units)).mean(arm, table[:, known] * units, units))


def share_of(arm: int, by_seed: Sequence[Floats]) -> Figure | None:
    """As mean_of, of what lies between 0 and 1. Where all are alike no resample differs, and Wilson's interval is told instead.

    Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference", which Brown, Cai & DasGupta 2001 recommend for
    few rows. Seeds answer the same prompts, so that prompts are counted once.
    """
    found = mean_of(arm, by_seed)
    if found is None or found.high - found.low > 1e-9:
        return found
    rows = int(np.isfinite(np.stack(by_seed)).all(axis=0).sum())
    share, square = min(1.0, max(0.0, found.value)), NORMAL**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    half = NORMAL / (1 + square / rows) * math.sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    return Figure(value=found.value, low=min(found.value, max(0.0, middle - half)), high=max(found.value, min(1.0, middle + half)))


def what_became(arm_run: ArmRun, measured: Sequence[int]) -> str:
    """A sentence about a seed that was not measured; empty for one that was."""
    if arm_run.seed in measured:
        return ""
    if arm_run.ended_early:
        return f"Seed {arm_run.seed} was stopped early: {arm_run.ended_early}"
    status = arm_run.run.order.status
    if status == Order.Status.FAILED:
        return f"Seed {arm_run.seed} failed: {arm_run.run.order.error or 'its log says more.'}"
    if status == Order.Status.STOPPED:
        return f"Seed {arm_run.seed} was stopped."
    return f"Seed {arm_run.seed} {'could not be measured' if status == Order.Status.SUCCEEDED else 'has not ended'}."
