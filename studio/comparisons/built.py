"""How large the GGUF files are that were built of a comparison's results. Until one is, a verdict tells an estimate."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from django.db.models import F

from studio.artifacts.ladder import weights_size
from studio.artifacts.models import Build
from studio.comparisons.figures import ArmFigures, Verdict
from studio.comparisons.models import Comparison
from studio.comparisons.taken import Spread

MODEL, ADAPTER = "q8_0", "f16"
"""The types that are estimated."""
Sizes = dict[tuple[str, str], dict[int, int]]
"""(kind, type) -> seed -> bytes of the file, the newest where there are several."""


def with_built(comparison: Comparison, verdict: Verdict | None) -> Verdict | None:
    """The verdict with the sizes of files instead of estimates, where there are files that passed their proof; None of none."""
    if verdict is None:
        return None
    found = sizes(comparison)
    return verdict.model_copy(update={"arms": [arm_with(arm, found[arm.number]) for arm in verdict.arms]})


def sizes(comparison: Comparison) -> dict[int, Sizes]:
    """By the arm's number; one query, however many there are."""
    kinds = (Build.Kind.GGUF, Build.Kind.GGUF_ADAPTER)
    made = Build.objects.filter(source__order__run__arm_run__arm__comparison=comparison, kind__in=kinds, artifact__isnull=False)
    at = {"arm": F("source__order__run__arm_run__arm__number"), "seed": F("source__order__run__arm_run__seed")}
    found: dict[int, Sizes] = defaultdict(lambda: defaultdict(dict))
    builds: Iterable[Any] = made.annotate(**at).select_related("artifact").order_by("created_at")
    for build in builds:
        if build.passed:
            found[build.arm][build.kind, build.quantization][build.seed] = weights_size(build)
    return found


def arm_with(arm: ArmFigures, found: Sizes) -> ArmFigures:
    """The mean of the seeds that a file was built of: those of one arm differ by next to nothing."""
    changes: dict[str, object] = {}
    for name, key in (("gguf_size", (Build.Kind.GGUF, MODEL)), ("gguf_adapter_size", (Build.Kind.GGUF_ADAPTER, ADAPTER))):
        files = [size for seed, size in sorted(found.get(key, {}).items()) if seed in arm.seeds]
        if files:
            changes |= {name: Spread.of(files), name.replace("size", "built"): True}
    others = {
        name: max(files)
        for (kind, name), each in found.items()
        if kind == Build.Kind.GGUF and name != MODEL and (files := [size for seed, size in each.items() if seed in arm.seeds])
    }
    return arm.model_copy(update=changes | {"built": dict(sorted(others.items(), key=lambda one: -one[1]))})
