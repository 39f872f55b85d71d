"""What the arms of a comparison would take before it is started: each one's forecast, what differs between them, and the sum."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studio.comparisons.arms import ArmSpec, differing
from studio.comparisons.sweeping import Sweep
from studio.errors import UserError
from studio.runs import services as runs
from studio.runs.services import Forecast
from studio.training import Span


@dataclass(frozen=True)
class ArmLine:
    """An arm as the form shows it: what makes it differ, and what one of its runs would take."""

    spec: ArmSpec
    forecast: Forecast | None
    error: str
    """Why it cannot be trained; empty where it can."""
    settings: list[str]
    """Its values of what differs, in the order of the columns."""

    @property
    def method(self) -> str:
        return runs.plugin_of(self.spec.plugin).method

    @property
    def estimate(self) -> Any:
        return self.forecast.estimate if self.forecast else None

    @property
    def fits(self) -> bool:
        return self.estimate is None or self.estimate.memory.high <= self.estimate.available


@dataclass(frozen=True)
class Outlook:
    """The arms and their sum."""

    lines: list[ArmLine]
    columns: list[str]
    """Labels of the settings that differ."""
    seeds: int
    arms: int
    """Also those that a sweep would make later."""

    @property
    def run_count(self) -> int:
        return self.arms * self.seeds

    @property
    def seconds(self) -> Span | None:
        """Of all runs one after the other; None where nobody can say."""
        known = [line.estimate.seconds for line in self.lines if line.estimate]
        if not known or len(known) < len(self.lines):
            return None
        times = self.run_count / len(self.lines)
        return Span(low=sum(span.low for span in known) * times, high=sum(span.high for span in known) * times)

    @property
    def steps(self) -> int | None:
        return next((line.estimate.steps for line in self.lines if line.estimate), None)

    @property
    def disk(self) -> int:
        return round(sum(line.estimate.disk for line in self.lines if line.estimate) * self.run_count / max(1, len(self.lines)))


def outlook_of(specs: Sequence[ArmSpec], *, seeds: int, sweep: Sweep | None) -> Outlook:
    """The outlook; an arm that cannot be trained says why."""
    asked = [asked_of(spec) for spec in specs]
    plugins = {spec.plugin: runs.plugin_of(spec.plugin) for spec in specs}
    table = differing([config for config, _, _ in asked], list(plugins.values()))
    lines = [
        ArmLine(spec, forecast, error, [values[number] for _, values in table])
        for number, (spec, (_, forecast, error)) in enumerate(zip(specs, asked, strict=True))
    ]
    count = sweep.most if sweep and sweep.by == "tpe" else len(specs)
    return Outlook(lines, [label for label, _ in table], seeds, count)


def asked_of(spec: ArmSpec) -> tuple[dict[str, Any], Forecast | None, str]:
    """(the whole config, what it would take, why it cannot be trained)"""
    try:
        config, forecast = runs.ask(spec.plugin, spec.config, base=spec.base, version=spec.version)
    except UserError as problem:
        return spec.config, None, " ".join([problem.message, *problem.fields.values()])
    return config.model_dump(mode="json"), forecast, forecast.errors[0].message if forecast.errors else ""
