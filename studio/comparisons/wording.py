"""What the figures of a comparison say in plain words, how sure that is, and what to do next. No share is told that means nothing."""

from collections.abc import Sequence

from studio.comparisons.figures import ArmFigures, Figure, Verdict
from studio.comparisons.models import Comparison
from studio.comparisons.reckoning import FEW_ROWS
from studio.comparisons.statistics import SURE
from studio.comparisons.taken import Spread
from studio.workspaces.templatetags.studio import number

LIKELY = 0.8
"""How likely something has to be to be called likely."""
CLOSE, WIDE = 0.05, 0.25
"""Half the width of a kept share up to which it is sure, and from which it says nothing."""
SAME = 0.1
"""Arms are alike where their difference is told to this share of what training gained."""
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
    doubted(verdict)
    return verdict


def alone(verdict: Verdict, arm: ArmFigures) -> None:
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
    settle(verdict, "sure" if half <= CLOSE else "likely" if half < WIDE else "open")
    verdict.more += [kept_sentence(arm, reference) for arm in others[1:]]
    if first.kept is not None and first.kept.half < WIDE:
        cheaper = cost_of(first, reference) < 1
        verdict.choice = first.number if (first.kept.low >= 1 - SAME and cheaper) or first.kept.low > 1 else reference.number
        chosen = verdict.arm(verdict.choice)
        assert chosen is not None  # one of the two
        why = (
            "what it loses is small beside what it saves"
            if chosen is first
            else "what the other would save costs a part of what was learnt, unless the price matters more to you"
        )
        verdict.advice.append(f"Take {chosen.name}: {why}.")


def no_gain(verdict: Verdict, reference: ArmFigures, first: ArmFigures) -> None:
    verdict.reason = "no_gain"
    if reference.gain is None:
        verdict.sentence = f"What {reference.name} gained is not known, for its base model was not measured."
        return
    what = (
        "made the model worse on held-out rows"
        if reference.gain.is_below
        else "itself did not gain on held-out rows, as far as can be told"
    )
    verdict.sentence = f"{reference.name} {what}, so there is nothing to keep a share of."
    if first.gain and first.gain.is_above:
        verdict.sentence += f" {first.name} did: its loss fell by {plus_minus(first.gain)}."
        verdict.choice = first.number
    verdict.advice.append(
        f"Look at the learning rate and the rows of {reference.name} first: its steps may be too large, or the rows too few."
    )


def kept_sentence(arm: ArmFigures, reference: ArmFigures) -> str:
    """LoRA at rank 16 keeps 98.7 % ± 0.6 of full fine-tuning's gain at 31 % of the time, ...; it forgets a third as much."""
    if arm.gain and arm.gain.is_below:
        return f"{arm.name} made the model worse on held-out rows: the loss rose by {plus_minus(turned(arm.gain))}."
    if arm.kept is None or arm.kept.half >= WIDE:
        return f"How much of the gain of {reference.name} {arm.name} keeps cannot be told from this."
    verb = "gains more than" if arm.kept.low > 1 else "keeps"
    share = f"{share_words(arm.kept)} of the gain of {reference.name}"
    kept = f"{arm.name} {verb} {reference.name}, {share_words(arm.kept)} of its gain," if arm.kept.low > 1 else f"{arm.name} {verb} {share}"
    return f"{kept}{price(arm, reference)}{forgets(arm, reference)}."


def price(arm: ArmFigures, reference: ArmFigures) -> str:
    pairs = (
        ("time", arm.took.seconds, reference.took.seconds),
        ("memory", arm.took.memory, reference.took.memory),
        ("storage", arm.size, reference.size),
    )
    told = [f"{percent(one.mean / other.mean)} of the {what}" for what, one, other in pairs if one and other and other.mean > 0]
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
        verdict.advice.append("Look at the learning rate and the rows first: the steps may be too large or too small, or the rows too few.")
        return
    loss = f"its loss on held-out rows is {plus_minus(best.loss)} {per}"
    if best.best >= SURE:
        than = f"better than {second.name}" if len(found) == 2 else f"the best of {many}"
        apart = f", {number(second.loss.value - best.loss.value)} lower than that of {second.name}" if second.loss and best.loss else ""
        verdict.sentence, verdict.choice = f"{best.name} is {than}: {loss}{apart}.", best.number
        settle(verdict, "sure")
        verdict.advice.append(f"Take {best.name}.")
        return
    alike = [arm for arm in found if arm is best or overlapping(arm, best)]
    if within(alike, best):
        cheapest = min(alike, key=lambda arm: (cost_of(arm, best), arm.number))
        verdict.choice = cheapest.number
        other = best if cheapest is not best else alike[1] if len(alike) > 1 else second
        whole = f"{other.name}" if len(found) == 2 else f"{other.name}, the best of {many}," if other is best else f"any of the {many}"
        verdict.sentence = f"{cheapest.name} is as good as {whole} within what {seeds_words(verdict.seeds)} can tell."
        settle(verdict, "likely")
        saving = f", and it takes {percent(cost_of(cheapest, other))} of the time" if cost_of(cheapest, other) < 0.95 else ""
        verdict.advice.append(f"Take {cheapest.name}: nothing better can be told{saving}.")
    elif best.best >= LIKELY:
        verdict.sentence = f"{best.name} is likely {'better than ' + second.name if len(found) == 2 else f'the best of {many}'}: {loss}."
        verdict.choice = best.number
        settle(verdict, "likely")
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


def cost_of(arm: ArmFigures, other: ArmFigures) -> float:
    """What it takes beside the other: its time, or its size where the time was not told."""
    for ours, theirs in ((arm.took.seconds, other.took.seconds), (arm.size, other.size)):
        if ours and theirs and theirs.mean > 0:
            return ours.mean / theirs.mean
    return 1.0


def settle(verdict: Verdict, sureness: str) -> None:
    verdict.sureness = sureness
    verdict.reason = "" if sureness == "sure" else "chance"


def doubted(verdict: Verdict) -> None:
    """What speaks against taking it for sure, and what would settle it."""
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
        verdict.sureness_words = "As sure as the rows allow: nothing was gained that could be shared."
        return
    by = f"{seeds_words(verdict.seeds)} and {verdict.rows:,} held-out rows"
    if verdict.sureness == "sure":
        verdict.sureness_words = f"Sure: {by} agree. What stands behind each ± is half of a 95 % interval."
        return
    if verdict.sureness == "likely":
        verdict.sureness_words = f"Likely, but not sure, from {by}."
    else:
        verdict.sureness_words = f"Not enough seeds to tell: {by} leave it open."
    if verdict.more_seeds:
        seeds = "seed" if verdict.more_seeds == 1 else "seeds"
        verdict.sureness_words += f" About {verdict.more_seeds} more {seeds} for each arm would settle it."
        if verdict.sureness == "open":
            verdict.advice.insert(0, f"Train {verdict.more_seeds} more {seeds} of each arm.")
    elif verdict.sureness == "open":
        verdict.sureness_words += " More seeds alone would hardly settle it: the difference is small beside what rows and seeds vary."
        verdict.advice.insert(0, "Take whichever is cheaper, or compare on more held-out rows.")


def changed(arm: ArmFigures) -> str:
    if arm.gain is None:
        return "was measured without its base model."
    if arm.gain.is_above:
        return f"lowered the loss by {plus_minus(arm.gain)}."
    return f"raised the loss by {plus_minus(turned(arm.gain))}." if arm.gain.is_below else "changed nothing that can be told."


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


def percent(share: float) -> str:
    """31 %, 1.5 %, 0.02 %: two digits that count."""
    size = abs(share * 100)
    return f"{size:.0f} %" if size >= 9.95 else f"{size:.1f} %" if size >= 0.095 else f"{size:.2f} %"


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


def spread_words(spread: Spread | None) -> str:
    return "–" if spread is None else number(spread.mean)
