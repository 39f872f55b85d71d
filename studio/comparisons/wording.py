"""What the figures of a comparison say in plain words, how sure that is, and what to do next. No share is told that means nothing."""

from collections.abc import Sequence

from studio.comparisons import choosing
from studio.comparisons.choosing import WIDE, cost_of, is_told
from studio.comparisons.figure_words import NUMBERS, listed, percent, plus_minus, seeds_words, share_words, times, turned
from studio.comparisons.figures import ArmFigures, Verdict
from studio.comparisons.models import Comparison
from studio.comparisons.reckoning import CLOSE, FEW_ROWS
from studio.comparisons.statistics import SURE
from studio.workspaces.templatetags.studio import number

LIKELY = 0.8
"""How likely something has to be to be called likely."""
SAME = 0.1
"""Arms are alike where their difference is told to this share of what training gained."""


def worded(verdict: Verdict) -> Verdict:
    """The same verdict with its words."""
    found = verdict.measured
    if not found:
        verdict.sentence, verdict.reason = "No arm has a result, so there is nothing to compare.", "nothing"
    elif len(found) == 1:
        alone(verdict, found[0])
    elif verdict.differs == Comparison.Differs.METHOD:
        against_reference(verdict)
    else:
        among_all(verdict)
    verdict.more += [f"{arm.name}: {said}" for arm in verdict.arms for said in arm.missing]
    verdict.more += notes(verdict)
    doubted(verdict)
    return verdict


def can_choose(verdict: Verdict) -> bool:
    """One seed, or a handful of rows, recommends nothing."""
    return verdict.seeds > 1 and verdict.rows >= FEW_ROWS


def take(verdict: Verdict, arm: ArmFigures | None, advice: str = "") -> None:
    """Recommends an arm, or says why none is; nothing where too little was measured to choose by."""
    if not can_choose(verdict):
        return
    verdict.choice = arm.number if arm else None
    if advice:
        verdict.advice.append(advice)


def notes(verdict: Verdict) -> list[str]:
    """What has to be known to read the figures aright."""
    found = verdict.measured
    told = []
    if len(found) > 1 and not verdict.one_machine:
        told.append(
            f"The arms were trained on different kinds of machines ({listed(verdict.machines)}), "
            "so what they took in time, memory, energy and cost is not compared."
        )
    if verdict.differs == Comparison.Differs.METHOD and (reference := verdict.arm(verdict.reference)):
        told += [said for arm in found if arm is not reference and (said := untold(arm, reference))]
    quantised = [arm.name for arm in found if arm.quantization]
    if quantised:
        told.append(
            f"{listed(quantised)} learnt on a quantised base model, but {'is' if len(quantised) == 1 else 'are'} measured "
            "on the unquantised one and beside it: a part of what is gained or forgotten is that change."
        )
    if verdict.differs == Comparison.Differs.SWEEP and verdict.reason not in ("nothing", "no_gain"):
        told.append("The best was chosen by the same held-out rows that it is measured on, so its figure is a little flattering.")
    return told


def untold(arm: ArmFigures, reference: ArmFigures) -> str:
    """What it took beside the reference that differs too much from seed to seed to be told; empty where there is nothing of the kind."""
    vague = [what for what, ratio in choosing.ratios(arm, reference).items() if not ratio.is_told]
    if not vague:
        return ""
    return f"How the {listed(vague)} of {arm.name} compares with that of {reference.name} differs too much from seed to seed to be told."


def alone(verdict: Verdict, arm: ArmFigures) -> None:
    stopped = [other for other in verdict.arms if other is not arm and other.stopped_early]
    if stopped and all(other in stopped for other in verdict.arms if other is not arm):
        others = f"{'the other was' if len(stopped) == 1 else f'the other {len(stopped)} were'} stopped for being worse at the same point"
        told = f" It lowered the loss on held-out rows by {plus_minus(arm.gain)}." if arm.gain and arm.gain.is_above else ""
        verdict.sentence = f"{arm.name} is the only one that was trained to its end: {others}.{told}"
        settle(verdict, "likely")
        if arm.gain is None or arm.gain.is_above:
            take(verdict, arm, f"Take {arm.name}.")
        return
    gained = f" It lowered the loss on held-out rows by {plus_minus(arm.gain)}." if arm.gain and arm.gain.is_above else ""
    verdict.sentence = f"Only {arm.name} has a result, so there is nothing to compare it with.{gained}"
    verdict.reason = "nothing"


def against_reference(verdict: Verdict) -> None:
    """How much of the reference's gain the others keep, and at which price; the one that keeps most leads."""
    reference = verdict.arm(verdict.reference)
    assert reference is not None  # two arms were measured
    others = sorted((arm for arm in verdict.measured if arm is not reference), key=lambda arm: arm.loss.value if arm.loss else 0.0)
    first = others[0]
    if reference.gain is None or not reference.gain.is_above:
        no_gain(verdict, reference, first)
        verdict.more += [f"{arm.name} {changed(arm)}" for arm in others]
        return
    verdict.sentence = kept_sentence(first, reference)
    half = first.kept.half if first.kept else WIDE
    settle(verdict, "sure" if half <= CLOSE else "likely" if is_told(first) else "open")
    verdict.more += [kept_sentence(arm, reference) for arm in others[1:]]
    if is_told(first):
        take(verdict, *choosing.choice(first, reference))


def no_gain(verdict: Verdict, reference: ArmFigures, first: ArmFigures) -> None:
    verdict.reason = "no_gain"
    if reference.gain is None:
        verdict.sentence = f"What {reference.name} gained is not known, for its base model was not measured."
        verdict.advice.append("Measure again, with the untouched base model.")
        return
    if may_have_gained(reference):
        what = f"lowered the loss by {plus_minus(reference.gain)}, which may be chance, so no share of it is told."
    elif reference.gain.is_below:
        what = "made the model worse on held-out rows, so there is nothing to keep a share of."
    else:
        what = "itself did not gain on held-out rows, as far as can be told, so there is nothing to keep a share of."
    verdict.sentence = f"{reference.name} {what}"
    if first.gain and first.gain.is_above:
        verdict.sentence += f" {first.name} did gain: its loss fell by {plus_minus(first.gain)}."
        take(verdict, first, f"Take {first.name}: it gained what {reference.name} did not, as far as can be told.")
    verdict.advice.append(
        "Train more seeds and hold out more rows: that would tell whether it gained."
        if may_have_gained(reference)
        else f"Look at the learning rate and the rows of {reference.name} first: its steps may be too large, or the rows too few."
    )


def may_have_gained(arm: ArmFigures) -> bool:
    """A gain that chance alone might have given."""
    return arm.gain is not None and arm.gain.value > 0 and not arm.gain.is_above


def kept_sentence(arm: ArmFigures, reference: ArmFigures) -> str:
    """LoRA at rank 16 keeps 98.7 % ± 0.6 of full fine-tuning's gain at 31 % of the time, ...; it forgets a third as much."""
    if arm.gain and arm.gain.is_below:
        return f"{arm.name} made the model worse on held-out rows: the loss rose by {plus_minus(turned(arm.gain))}."
    if arm.kept is not None and arm.kept.low <= 0:
        return f"{arm.name} gained nothing that can be told, so it keeps no share of the gain of {reference.name} that can be told either."
    if arm.kept is None or not is_told(arm):
        return f"How much of the gain of {reference.name} {arm.name} keeps cannot be told from this."
    verb = "gains more than" if arm.kept.low > 1 else "keeps"
    share = f"{share_words(arm.kept)} of the gain of {reference.name}"
    kept = f"{arm.name} {verb} {reference.name}, {share_words(arm.kept)} of its gain," if arm.kept.low > 1 else f"{arm.name} {verb} {share}"
    return f"{kept}{price(arm, reference)}{forgets(arm, reference)}."


def price(arm: ArmFigures, reference: ArmFigures) -> str:
    """What it takes beside the reference, as far as seeds can tell; the ± only where it is not negligible."""
    found = choosing.ratios(arm, reference).items()
    told = [f"{percent(ratio.value, ratio.half)} of the {what}" for what, ratio in found if ratio.is_told]
    return f" at {listed(told)}" if told else ""


def forgets(arm: ArmFigures, reference: ArmFigures) -> str:
    """A clause about what was forgotten; empty where nobody looked."""
    ours, theirs = arm.forgetting, reference.forgetting
    if ours is None or theirs is None:
        return ""
    if not theirs.is_above:
        return (
            "; it forgets something, and the other nothing that can be told"
            if ours.is_above
            else "; neither forgets anything that can be told"
        )
    if not ours.is_above:
        return "; it forgets nothing that can be told"
    if ours.low <= theirs.high and theirs.low <= ours.high:
        return "; which of them forgets more cannot be told"
    return f"; it forgets {times(ours.value / theirs.value)}"


def among_all(verdict: Verdict) -> None:
    """Which arm is the best, or which are alike, where none is held against a reference."""
    found = sorted(verdict.measured, key=lambda arm: arm.loss.value if arm.loss else 0.0)
    best, second = found[0], found[1]
    many, per = NUMBERS[len(found)] if len(found) < len(NUMBERS) else str(len(found)), f"nats per {verdict.unit}"
    if all(arm.gain is not None and not arm.gain.is_above for arm in found):
        verdict.sentence = f"None of the {many} gained anything on held-out rows that can be told from chance."
        verdict.reason = "no_gain"
        if any(may_have_gained(arm) for arm in found):
            verdict.advice.append("Train more seeds and hold out more rows: that would tell whether any of them gained.")
            return
        verdict.advice.append("Look at the learning rate and the rows first: the steps may be too large or too small, or the rows too few.")
        return
    loss = f"its loss on held-out rows is {plus_minus(best.loss)} {per}"
    if best.best >= SURE and best.loss and second.loss and best.loss.value < second.loss.value:
        than = f"better than {second.name}" if len(found) == 2 else f"the best of {many}"
        verdict.sentence = f"{best.name} is {than}: {loss}, {number(second.loss.value - best.loss.value)} lower than that of {second.name}."
        settle(verdict, "sure")
        take(verdict, best, f"Take {best.name}.")
        return
    alike = [arm for arm in found if arm is best or overlapping(arm, best)]
    if within(alike, best):
        cheapest = min(alike, key=lambda arm: (cost_of(arm, best), arm.number))
        other = best if cheapest is not best else alike[1] if len(alike) > 1 else second
        whole = f"{other.name}" if len(found) == 2 else f"{other.name}, the best of {many}," if other is best else f"any of the {many}"
        verdict.sentence = f"{cheapest.name} is as good as {whole} within what {seeds_of(verdict)} can tell."
        settle(verdict, "likely")
        saved = choosing.savings(choosing.ratios(cheapest, other))
        take(verdict, cheapest, f"Take {cheapest.name}: {listed(['nothing better can be told', *saved])}.")
    elif best.best >= LIKELY:
        verdict.sentence = f"{best.name} is likely {'better than ' + second.name if len(found) == 2 else f'the best of {many}'}: {loss}."
        settle(verdict, "likely")
        take(verdict, best)
    else:
        verdict.sentence = (
            f"Which of the {many} is the best cannot be told yet: {listed([arm.name for arm in alike][:4])} lie too close together."
        )
        settle(verdict, "open")


def overlapping(arm: ArmFigures, best: ArmFigures) -> bool:
    return bool(arm.loss and best.loss and arm.loss.low <= best.loss.high)


def within(alike: Sequence[ArmFigures], best: ArmFigures) -> bool:
    """True where arms that cannot be told apart are also close: their intervals are narrow beside what training gained."""
    if best.gain is None or len(alike) < 2:
        return False
    return all(
        arm.loss is not None and best.loss is not None and max(arm.loss.half, arm.loss.value - best.loss.value) <= SAME * best.gain.value
        for arm in alike
    )


def settle(verdict: Verdict, sureness: str) -> None:
    verdict.sureness = sureness
    verdict.reason = "" if sureness == "sure" else "chance"


def doubted(verdict: Verdict) -> None:
    """What speaks against taking it for sure, and what would settle it."""
    lost = [arm for arm in verdict.measured if arm.missing]
    if lost and verdict.reason != "nothing":
        of = listed([f"{arm.name}: {len(arm.seeds)} of {len(arm.seeds) + len(arm.missing)}" for arm in lost][:4])
        verdict.sentence += f" This is of the seeds that got to their end ({of})."
        if verdict.sureness == "sure":
            settle(verdict, "likely")
    if verdict.reason == "nothing":
        verdict.sureness, verdict.sureness_words = "open", "There is nothing to be sure of."
        return
    if verdict.seeds == 1:
        verdict.sureness, verdict.reason = "open", "one_seed"
        verdict.sureness_words = (
            "One seed says nothing about chance: another one might turn it round. The intervals tell of the rows alone."
        )
        verdict.advice.insert(0, "Train at least two more seeds of each arm.")
        return
    if verdict.rows < FEW_ROWS:
        verdict.sureness, verdict.reason = "open", "few_rows"
        verdict.sureness_words = f"The rows are too few: {verdict.rows} held-out rows are no fair sample of what the model will be asked."
        verdict.advice.insert(0, f"Hold out at least {FEW_ROWS} rows, better 100, and compare again.")
        return
    if verdict.reason == "no_gain":
        verdict.sureness = "open"
        verdict.sureness_words = no_gain_words(verdict)
        return
    by = f"{seeds_of(verdict)} and {verdict.held_out_words}"
    if verdict.sureness == "sure":
        verdict.sureness_words = f"Sure: {by} agree. What stands behind each ± is half of a 95 % interval."
        return
    if verdict.sureness == "likely":
        verdict.sureness_words = f"Likely, but not sure, from {by}."
        if lost:
            verdict.sureness_words += " Seeds that did not get to their end might have told otherwise."
    else:
        verdict.sureness_words = f"Not enough seeds to tell: {by} leave it open."
    if verdict.more_seeds:
        seeds = "seed" if verdict.more_seeds == 1 else "seeds"
        verdict.sureness_words += f" About {verdict.more_seeds} more {seeds} for each arm would settle it."
        if verdict.sureness == "open":
            verdict.advice.insert(0, f"Train {verdict.more_seeds} more {seeds} of each arm.")
    elif verdict.sureness == "open":
        verdict.sureness_words += " More seeds alone would hardly settle it: the difference is small beside what rows and seeds vary."
        verdict.advice.insert(0, "Compare on more held-out rows.")


def no_gain_words(verdict: Verdict) -> str:
    """Gained, but not surely; gained nothing; or nobody knows."""
    arms = [arm for arm in [verdict.arm(verdict.reference)] if arm] if verdict.differs == Comparison.Differs.METHOD else verdict.measured
    if all(arm.gain is None for arm in arms):
        return "Without the untouched base model’s loss nothing can be said of a gain."
    if any(may_have_gained(arm) for arm in arms):
        return f"Something may have been gained, but not more than chance gives, by {seeds_of(verdict)} and {verdict.held_out_words}."
    return "As sure as the rows allow: nothing was gained that could be shared."


def seeds_of(verdict: Verdict) -> str:
    """three seeds, or two to three seeds where arms differ in number."""
    if verdict.most_seeds <= verdict.seeds:
        return seeds_words(verdict.seeds)
    fewest = NUMBERS[verdict.seeds] if verdict.seeds < len(NUMBERS) else str(verdict.seeds)
    return f"{fewest} to {seeds_words(verdict.most_seeds)}"


def changed(arm: ArmFigures) -> str:
    if arm.gain is None:
        return "was measured without its base model."
    if arm.gain.is_above:
        return f"lowered the loss by {plus_minus(arm.gain)}."
    return f"raised the loss by {plus_minus(turned(arm.gain))}." if arm.gain.is_below else "changed nothing that can be told."
