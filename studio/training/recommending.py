"""Which method the advisor proposes, why, what is to be expected of each, and what nobody can know beforehand. Rules on facts alone."""

from collections.abc import Iterator, Sequence
from typing import Any

from studio.training.advicefacts import GOALS, SURPRISED, Fit, Goal, Method, Reason, Recommendation, Surveyed
from studio.training.capacity import BITS_A_PARAMETER, Capacity
from studio.training.config import TrainConfig
from studio.training.defaults import LEARNING_RATE, counted
from studio.training.facts import DatasetFacts, Estimate, HostFacts, ModelFacts
from studio.training.form import as_text

KNOWN = 0.5
"""Bits a token: below that the base says nearly the same already."""
FAR = 1.5
"""Times the loss on general rows, from which the rows count as far from what the base knows."""
USUAL_EPOCHS = TrainConfig().epochs
MOST_WHYS = 3
HASTY = 2.0
"""Times the usual learning rate, from which more forgetting is expected."""


def recommend(
    methods: Sequence[Method], *, base: ModelFacts, data: DatasetFacts, goal: Goal, clients: int, surveyed: Surveyed | None
) -> Recommendation:
    """One method. Where none fits on a worker, the one that needs the least, and the sentence says so."""
    if not methods:
        return Recommendation(method="", sentence="No way to train here learns from such rows.", reasons=[])
    there = {method.name: method for method in methods}
    usable = {name: method for name, method in there.items() if method.verdict == "fits"}
    if not usable and any(method.fits for method in methods):
        return nothing_fits(methods)
    named, why = CHOICES[goal](usable or there, data=data, clients=clients)
    settings = named.proposed | wider(named)
    reasons = [*why, *memory_reason(named, usable, there), *measured_reasons(surveyed, named)]
    return Recommendation(method=named.name, sentence=sentence_for(named, settings), reasons=reasons, settings=settings)


Chosen = tuple[Method, list[Reason]]


def for_task(found: dict[str, Method], *, data: DatasetFacts, clients: int) -> Chosen:
    """Adapters first: on sets of a client's size they learn as much (Hu et al. 2021; Schulman et al. 2025)."""
    chosen = first(found, "lora", "qlora", "dora", "full")
    if chosen.kind == "full":
        return chosen, [Reason(text="No adapter is known to be trainable here, so all weights are trained.")]
    reasons = [
        Reason(
            text="For a style or a task, adapters came out like full fine-tuning where the rows were not more than they hold.",
            sources=["lora", "without_regret"],
        )
    ]
    return chosen, [*reasons, *capacity_reasons(chosen), cheaper(chosen, found)]


def for_knowledge(found: dict[str, Method], *, data: DatasetFacts, clients: int) -> Chosen:
    """Full where the rows hold more than any adapter does (Biderman et al. 2024); else an adapter that is wide enough."""
    adapter = first(found, "lora", "qlora", "dora", "full")
    room = adapter.capacity
    if "full" in found and room is not None and room.smallest is None:
        text = f"The {counted(room.tokens)} tokens to learn hold more than an adapter of rank {room.largest}, the widest that pays."
        return found["full"], [
            Reason(text=text, sources=["capacity", "without_regret"]),
            Reason(text="With much new material full fine-tuning learnt more than adapters did.", sources=["learns_less"]),
            invents(),
        ]
    reasons = [*capacity_reasons(adapter), invents()]
    if room is None:
        reasons.insert(0, Reason(text="How much the rows hold is not known, so an adapter is tried first; it costs less."))
    return adapter, reasons


def invents() -> Reason:
    text = "Whichever it is: facts that the base does not know make it invent more. Where answers must be right, hand it the source."
    return Reason(text=text, sources=["new_facts"])


def for_quality(found: dict[str, Method], *, data: DatasetFacts, clients: int) -> Chosen:
    """Nobody knows beforehand, so both are trained and compared; full is the one that cannot be too narrow."""
    chosen = first(found, "full", "dora", "lora", "qlora")
    if chosen.kind == "full":
        return chosen, [
            Reason(
                text="Published runs disagree: equal on small sets of instructions, ahead of adapters on much code and mathematics.",
                sources=["without_regret", "learns_less"],
            ),
            Reason(text="Which method is best depended on the task and on how much data there was.", sources=["scaling"]),
            Reason(text="The last per cent has to be measured. Compare it with LoRA over several seeds before you decide."),
        ]
    return chosen, [
        Reason(text="Full fine-tuning would come first; of what can be trained here, an adapter comes next."),
        *([Reason(text="DoRA came out above LoRA of the same rank.", sources=["dora"])] if chosen.name == "dora" else []),
        *capacity_reasons(chosen),
    ]


def for_clients(found: dict[str, Method], *, data: DatasetFacts, clients: int) -> Chosen:
    """One base in memory and one small file for each client (Hu et al. 2021; Sheng et al. 2023)."""
    chosen = first(found, "lora", "qlora", "dora", "full")
    if chosen.kind == "full":
        return chosen, [Reason(text="No adapter is known to be trainable here, so each client gets a whole model.")]
    kept = f"{clients} clients take {size(chosen.storage)}" if clients > 1 else f"Each further client takes {size(chosen.variant_size)}"
    full = found.get("full")
    against = f", against {size(full.storage if clients > 1 else full.variant_size)} as whole models" if full else ""
    return chosen, [
        Reason(text=f"{kept}{against}.", sources=["lora"]),
        Reason(text="All adapters are answered by one base that stands in memory once.", sources=["many_adapters"]),
        *capacity_reasons(chosen),
    ]


def for_smallest(found: dict[str, Method], *, data: DatasetFacts, clients: int) -> Chosen:
    """What the estimates say needs the least (Dettmers et al. 2023 for a base in 4 bits)."""
    chosen = min(found.values(), key=needs)
    sources = ["qlora"] if chosen.name == "qlora" else []
    most = f"up to {size(needs(chosen))}" if needs(chosen) < float("inf") else "as far as can be told"
    reasons = [Reason(text=f"Of all that can run here it takes the least memory, {most}.", sources=sources)]
    if chosen.smallest_gpu:
        reasons.append(Reason(text=f"A GPU of {chosen.smallest_gpu} GB would do."))
    return chosen, [*reasons, *capacity_reasons(chosen)]


CHOICES = {"task": for_task, "knowledge": for_knowledge, "quality": for_quality, "clients": for_clients, "smallest": for_smallest}
assert CHOICES.keys() == GOALS.keys()


def first(found: dict[str, Method], *names: str) -> Method:
    return next((found[name] for name in names if name in found), next(iter(found.values())))


def needs(method: Method) -> float:
    """Bytes at most on its best worker; while there is none, on the common GPU that it needs the least of."""
    best = method.best
    if best and best.estimate:
        return float(best.estimate.memory.high)
    return min((float(each.memory) for each in method.gpus if each.memory), default=float("inf"))


def nothing_fits(methods: Sequence[Method]) -> Recommendation:
    """Nothing is said of memory where nobody could estimate it."""
    fits = [fit for method in methods for fit in method.fits]
    unknown = any(fit.verdict == "unknown" for fit in fits)
    if unknown or not any(fit.estimate for fit in fits):
        sentence = "Nobody can say whether one of them fits on a worker here." if unknown else "No worker here can train with one of them."
        whys = [*dict.fromkeys(fit.why for fit in fits if fit.why and not fit.estimate)]
        return Recommendation(method="", sentence=sentence, reasons=[Reason(text=why) for why in whys[:MOST_WHYS]])
    least = min((method for method in methods if any(fit.estimate for fit in method.fits)), key=needs)
    reasons = [Reason(text=fit.why) for fit in least.fits if fit.why and fit.estimate][:1]
    gpu = next((method for method in sorted(methods, key=lambda method: method.smallest_gpu or 10**6) if method.smallest_gpu), None)
    if gpu is not None:
        reasons.append(Reason(text=f"{gpu.title} would fit into a GPU of {gpu.smallest_gpu} GB."))
    reasons.append(Reason(text="A smaller base model, or shorter rows, need less."))
    return Recommendation(method="", sentence="None of them fits on a worker here.", reasons=reasons)


def sentence_for(method: Method, settings: dict[str, Any]) -> str:
    rank = settings.get("rank", method.rank)
    return f"{method.title} at rank {rank}." if rank else f"{method.title}."


def wider(method: Method) -> dict[str, Any]:
    """The smallest rank that has room, where the usual one has none; alpha grows with it, so that its strength stays."""
    room = method.capacity
    if room is None or room.enough:
        return {}
    rank = room.smallest or room.largest
    return {"rank": rank, "alpha": 2.0 * rank} if rank > room.rank else {}


def capacity_reasons(method: Method) -> list[Reason]:
    room = method.capacity
    if room is None:
        return []
    bits = f"{room.bits_a_token:.1f} bits a token, as measured" if room.measured else "an assumed 1 bit a token"
    said = f"The {counted(room.tokens)} tokens to learn hold about {counted(room.needed)} bits at {bits}"
    held = f"an adapter of rank {room.rank} holds about {counted(room.holds)}"
    if room.enough:
        text = f"{said}; {held}, which is enough."
    elif room.smallest is not None:
        text = f"{said}; {held}, which is not enough. Rank {room.smallest} is."
    else:
        text = f"{said}; {held}, and rank {room.largest}, the widest that pays, does not hold them either."
    return [Reason(text=text, sources=["capacity", "without_regret"])]


def cheaper(chosen: Method, found: dict[str, Method]) -> Reason:
    """What it saves against full fine-tuning, by the estimates; that it is a small file where there is nothing to hold it against."""
    full = found.get("full")
    pair = side_by_side(chosen, full) if full else None
    if pair is None:
        return Reason(text=f"It trains {percent(chosen.share)} of the parameters, and its result is a file of {size(chosen.variant_size)}.")
    (own, mine_there), (theirs, theirs_there) = pair
    time = mine_there.seconds.high / max(1e-9, theirs_there.seconds.high)
    memory = mine_there.memory.high / max(1, theirs_there.memory.high)
    mine, other = own.settings.get("epochs", USUAL_EPOCHS), theirs.settings.get("epochs", USUAL_EPOCHS)
    reads = f", for it reads the rows {mine:g} times instead of {other:g}" if mine > other else ""
    where = f", on {own.host}" if len(chosen.fits) > 1 else ""
    return Reason(
        text=f"It is expected to take {percent(memory)} of the memory of full fine-tuning and {percent(time)} of its time{reads}{where}."
        f" Its result is {percent(chosen.variant_size / max(1, full.variant_size if full else 1))} as large."
    )


Estimated = tuple[Fit, Estimate]


def side_by_side(one: Method, other: Method) -> tuple[Estimated, Estimated] | None:
    """Both on one worker of which both have an estimate; one on which both fit goes before others. None where there is no such worker."""
    there = {fit.host: (fit, fit.estimate) for fit in other.fits if fit.estimate}
    pairs = [((fit, fit.estimate), there[fit.host]) for fit in one.fits if fit.estimate and fit.host in there]
    return min(pairs, key=lambda pair: sum(fit.verdict != "fits" for fit, _ in pair), default=None)


def memory_reason(named: Method, usable: dict[str, Method], there: dict[str, Method]) -> Iterator[Reason]:
    if not named.fits:
        yield Reason(text="No worker is running, so nobody knows yet what fits.")
    if "full" not in there:
        yield Reason(text="Nothing that is installed here trains all weights on such rows.")
    for name in ("lora", "full"):
        if name in there and name not in usable and name != named.name and named.fits:
            yield Reason(text=kept_out(there[name]))


def kept_out(method: Method) -> str:
    """Why a method is none of those that can run here, and no more than is known of it."""
    if method.verdict == "unknown":
        return f"Whether {method.title if method.kind == 'lora' else 'full fine-tuning'} fits on a worker here is not known."
    if any(fit.estimate and fit.estimate.memory.high > fit.estimate.available for fit in method.fits):
        return f"{method.title} does not fit on a worker here."
    return f"{method.title} cannot run on a worker here. {method.best.why if method.best else ''}".strip()


def measured_reasons(surveyed: Surveyed | None, named: Method) -> Iterator[Reason]:
    if surveyed is None:
        return
    share, bits = percent(surveyed.surprising), f"{surveyed.bits:.1f} bits a token"
    yield Reason(text=f"Measured: the answers surprise the base by {bits}, and {share} of the tokens by more than {SURPRISED:.0f} bits.")
    if surveyed.bits < KNOWN:
        yield Reason(text="The base says nearly the same already, so there may be little to learn. Look at its answers first.")
    if surveyed.probe_loss and surveyed.loss > FAR * surveyed.probe_loss:
        yield Reason(text="That is far more than on general rows: the task is far from what it knows.", sources=["learns_less"])
    if named.rates and not named.rates.holds(named.learning_rate):
        usual, taken = as_text(named.learning_rate), as_text(named.rates.high)
        text = f"The usual learning rate, {usual}, is above what a short test found to learn: {taken} is taken."
        yield Reason(text=text, sources=["range_test"])


def expected_quality(method: Method, *, goal: Goal, held: Capacity | None = None) -> tuple[str, list[str]]:
    """What the literature says for this case, in a sentence, with its sources, and what this case's figures say to it. `held` is what the
    rows need, as it was counted for an adapter.
    """
    room = method.capacity
    if method.kind == "full":
        text, sources = (
            "The ceiling that the others are held against. On small sets of instructions adapters reached it.",
            ["without_regret"],
        )
        if goal == "knowledge":
            text, sources = "The highest ceiling where the material was much and new.", ["learns_less"]
        if held is None:
            return text, sources
        bits = counted(BITS_A_PARAMETER * method.trainable)
        return f"{text} The rows hold about {counted(held.needed)} bits, its weights about {bits}.", [*sources, "capacity"]
    if room is None:
        return "How much the rows hold was not counted, so it is open whether it comes near full fine-tuning.", []
    figures = f" At rank {room.rank} it holds about {counted(room.holds)} bits, the rows about {counted(room.needed)}."
    text, sources = published(method, goal=goal, enough=room.enough)
    return f"{text}{figures}", [*sources, "capacity"]


def published(method: Method, *, goal: Goal, enough: bool) -> tuple[str, list[str]]:
    """Of an adapter."""
    if not enough:
        return "Below full fine-tuning at this rank: the rows hold more than the adapter does.", ["without_regret"]
    if method.name == "qlora":
        return "Like LoRA in published runs; measure it where the last per cent counts.", ["qlora"]
    if method.name == "dora":
        return "Like LoRA or a little better, at low ranks most.", ["dora"]
    if goal == "knowledge":
        return "Behind full fine-tuning on much new material; near it where the adapter has room.", ["learns_less", "without_regret"]
    return "Like full fine-tuning on a set of this size, at its own learning rate.", ["lora", "without_regret"]


TRIED = {"lora": ("0.006", "0.076"), "full": ("0.008", "0.037")}
"""Nats a token that general rows lost at the usual rate, and at five times that: the literature's `studio`."""


def expected_forgetting(method: Method, *, steps: int | None, surveyed: Surveyed | None = None) -> tuple[str, list[str]]:
    """What this studio measured once, beside the rate and the steps of the case, and Kalajdzievski 2024 where there are many of them."""
    usual = LEARNING_RATE[method.kind]
    settings = method.proposed
    own, epochs = settings.get("learning_rate", method.learning_rate), settings.get("epochs", USUAL_EPOCHS)
    less, more = TRIED[method.kind]
    here = (
        f"Here {counted(steps)} step{'s' if steps != 1 else ''} at {as_text(own)}." if steps else f"Here a learning rate of {as_text(own)}."
    )
    test = (
        f"In this studio’s one small test (91 rows, 3 epochs, a model of 135 M) general rows lost {less} nats a token at {as_text(usual)}"
    )
    said, sources = [here, f"{test}, and {more} at five times that."], ["studio"]
    if own > HASTY * usual:
        said.append(f"The rate is {own / usual:.0f} times the usual one, so more is to be expected.")
    if epochs > HASTY * USUAL_EPOCHS:
        said.append(f"The rows are read {epochs:g} times, so more is to be expected.")
    if method.kind == "lora" and len(said) > 2:
        said.append("With LoRA, too, forgetting grew with the steps and with how much was learnt.")
        sources.append("forgetting_laws")
    if method.rates is not None and not method.rates.cut:
        said.append(f"A range test found these rows to be learnt at rates up to {as_text(method.rates.high)}.")
    if surveyed is not None and surveyed.probe_loss is not None:
        said.append(f"General rows cost this base {surveyed.probe_loss:.2f} nats a token before.")
    return " ".join(said), sources


def what_is_unknown(
    methods: Sequence[Method],
    *,
    base: ModelFacts,
    data: DatasetFacts,
    hosts: Sequence[HostFacts],
    surveyed: Surveyed | None,
    left_out: Sequence[str] = (),
) -> Iterator[str]:
    """Sentences about what this advice does not know."""
    if not hosts:
        yield "No worker has said what machine it runs on, so memory, time and cost are not known."
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        names = f"{', '.join(left_out[:3])}{more}"
        yield f"Whether {names} will train it all the same: the queue gives a run to whichever worker can take it first."
    if data.tokens is None:
        yield f"The rows were not yet read with {base.name}'s tokenizer, so their lengths and what they hold are guessed or left out."
    if surveyed is None:
        yield "Nobody has looked yet how surprising the rows are to this base: 1 bit a token is an assumption. Measure it first."
    else:
        if surveyed.probe_loss is None:
            yield "The base was not measured on general rows, so how far the task is from what it knows is not known."
        for kind, name in (("lora", "an adapter"), ("full", "full fine-tuning")):
            if kind not in surveyed.rates:
                yield f"No range test was made for {name}, so its learning rate is the usual one."
    yield "How good the answers will be. Losses of other models on other rows are all that was published; a comparison measures it here."
    yield "How much it will forget of what nobody tested. The probe rows show a part of it."
    if any(method.name == "qlora" and method.verdict == "fits" for method in methods):
        yield "What 4 bits cost in quality on these rows: small in published runs, and not measured here."


def percent(share: float) -> str:
    """0.3 %, 12 %, 150 %: as people read a share."""
    value = 100 * share
    return f"{value:.1f} %" if value < 9.95 else f"{value:,.0f} %"


def size(value: float) -> str:
    """98 MB, 1.2 GB: powers of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.0f} TB" if value >= 10 else f"{value:.1f} TB"
