"""What a report about a comparison says, for a client who trains no models: question, method, verdict, figures, recipe. Pages draw it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from studio.artifacts.models import Artifact
from studio.comparisons import verdict_table
from studio.comparisons.built import with_built
from studio.comparisons.figure_words import listed
from studio.comparisons.figures import Verdict
from studio.comparisons.marks import marks_of
from studio.comparisons.models import Arm, ArmRun, Comparison
from studio.comparisons.recipe import recipe_of
from studio.comparisons.taken import costs_of
from studio.comparisons.verdict import preferred_words
from studio.comparisons.verdict_charts import Plot, plots
from studio.errors import UserError
from studio.orders.models import Usage
from studio.workspaces.models import Logo, Member

QUESTIONS = {
    Comparison.Differs.METHOD: "Which way of training suits this task: changing the whole model, or adding a small adapter to it?",
    Comparison.Differs.RANK: "How large does the adapter have to be for this task?",
    Comparison.Differs.TARGETS: "Which parts of the model does the adapter have to reach for this task?",
    Comparison.Differs.LEARNING_RATE: "How large should the steps of training be for this task?",
    Comparison.Differs.BASE_MODEL: "Which model should this task start from?",
    Comparison.Differs.DATASET_VERSION: "Which version of the examples teaches this task best?",
    Comparison.Differs.SWEEP: "Which settings of training suit this task best?",
}
GLOSSARY = (
    ("Model", "A program that continues text. Its behaviour lies in millions of numbers, which training changes."),
    ("Full fine-tuning", "Training that may change every number of the model. The result is a whole copy of it."),
    ("LoRA, adapter", "Training that leaves the model as it is and learns a small addition to it, which is a small file."),
    ("Rank", "How large such an addition is: the higher, the more it can learn, and the larger its file."),
    ("Loss", "How surprised the model is by the right answer. Lower is better; 0 would be no surprise at all. It is counted in nats."),
    ("Token", "A piece of text as the model reads it: a short word or a part of a long one."),
    ("Held-out rows", "Examples that were put aside and that no training saw, so that learning by heart does not help."),
    ("Gain", "By how much training lowered the loss on held-out rows."),
    ("Forgetting", "By how much the model became worse on general questions that have nothing to do with the task."),
    ("Seed", "A number that decides everything that is left to chance in a training, such as the order of the rows. "
             "Several seeds show what is chance and what is not."),
    ("±", "Half of the interval in which the true figure lies in 95 of 100 such comparisons."),
)  # fmt: skip
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "unsloth")
SETTINGS = {
    "epochs": "times through the rows",
    "max_steps": "steps at most",
    "max_length": "tokens of a row",
    "effective_batch": "rows in a step",
}


@dataclass(frozen=True)
class Report:
    comparison: Comparison
    verdict: Verdict
    logo: Logo | None
    question: str
    method: list[tuple[str, str]]
    """(what, how), in the order of reading."""
    columns: list[verdict_table.Column]
    rows: list[verdict_table.Row]
    further: list[verdict_table.Turned]
    charts: list[Plot]
    preferred: str
    """What blind ratings say; empty where there are none."""
    recipe: str
    glossary: tuple[tuple[str, str], ...] = GLOSSARY

    @property
    def client(self) -> str:
        return self.comparison.project.client.name

    @property
    def at(self) -> datetime:
        """When it was found out."""
        return self.comparison.ended_at or self.comparison.created_at

    @property
    def file_name(self) -> str:
        return f"comparison-{self.at:%Y-%m-%d}"


def report_of(comparison: Comparison, member: Member) -> Report:
    """Raises UserError where there is no verdict yet. Costs stand in it only where the member may see them."""
    verdict = with_built(comparison, Verdict.of(comparison))
    if verdict is None:
        raise UserError("There is no verdict to report yet. Measure the comparison first.", code="no_verdict")
    costs = costs_of(comparison, member)
    columns, further = verdict_table.headline(verdict, costs), verdict_table.further(verdict)
    arms = list(comparison.arms.select_related("base_model", "dataset_version__dataset"))
    return Report(
        comparison=comparison,
        verdict=verdict,
        logo=Logo.objects.filter(client=comparison.project.client_id).first(),
        question=QUESTIONS[Comparison.Differs(comparison.differs)],
        method=method_of(comparison, verdict, arms),
        columns=columns,
        rows=verdict_table.rows(verdict, columns),
        further=verdict_table.turned(verdict, further),
        charts=plots(verdict, marks_of(arms), costs),
        preferred=preferred_words(comparison),
        recipe=recipe_of(comparison),
    )


def method_of(comparison: Comparison, verdict: Verdict, arms: list[Arm]) -> list[tuple[str, str]]:
    bases = list(dict.fromkeys(arm.base_model.name for arm in arms))
    versions = list(dict.fromkeys(arm.dataset_version for arm in arms))
    learnt = [f"{version} with {(version.facts or {}).get('split', {}).get('train', 0):,} rows to learn from" for version in versions]
    budget = [f"{value:,} {SETTINGS[name]}" for name, value in comparison.shared_settings.items() if name in SETTINGS and is_whole(value)]
    told = [
        ("What was compared", listed([arm.name for arm in arms])),
        ("Started from", listed(bases)),
        ("Learnt from", listed(learnt)),
        ("Alike for all", listed(budget) if budget else ""),
        ("Seeds", f"{listed([str(seed) for seed in comparison.seeds])}: each arm was trained once with each."),
        ("Measured on", measured_on(verdict)),
        ("Machine", listed(machines(comparison))),
        ("Software", listed(packages(comparison))),
        ("Intervals", intervals(verdict)),
    ]
    return [(what, how) for what, how in told if how]


def intervals(verdict: Verdict) -> str:
    """How they were found, and what has none."""
    if verdict.most_seeds < 2:
        return (
            "95 %, by a bootstrap of 4,000 resamples over held-out rows, rows paired over the arms. With one seed nothing is known "
            "of chance in training: what training took, and how large and fast the result is, has no interval."
        )
    return (
        "95 %, by a bootstrap of 4,000 resamples over seeds and held-out rows, rows paired over the arms; of what training took, and of "
        "how large and fast the result is, over seeds alone. No interval stands where all seeds are alike."
    )


def measured_on(verdict: Verdict) -> str:
    said = f"{verdict.held_out_words} that no arm learnt from"
    if verdict.probe_rows:
        said += f", and {verdict.probe_words} for what was forgotten"
    return f"{said}. {verdict.left_out:,} rows were left out, since an arm had learnt from them." if verdict.left_out else f"{said}."


def machines(comparison: Comparison) -> list[str]:
    """What kinds of workers trained: 2 × NVIDIA L4, or CPU."""
    found = Usage.objects.filter(order__run__arm_run__arm__comparison=comparison).order_by("worker_kind", "gpus")
    kinds = found.values_list("worker_kind", "gpus").distinct()
    return [f"{gpus} × {kind}" if gpus > 1 else kind for kind, gpus in kinds]


def packages(comparison: Comparison) -> list[str]:
    """As the first result that tells wrote down: torch 2.10.0."""
    orders = ArmRun.objects.filter(arm__comparison=comparison).values("run__order")
    for lineage in Artifact.objects.filter(order__in=orders).order_by("created_at").values_list("lineage", flat=True)[:20]:
        told: Any = lineage.get("packages")
        if isinstance(told, dict) and told:
            return [f"{name} {told[name]}" for name in PACKAGES if name in told]
    return []


def is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
