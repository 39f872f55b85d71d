"""The order that looks at a dataset's rows with a base model, before anything is trained."""

from pathlib import Path
from typing import Any

from studio.comparisons.models import Survey
from studio.orders.kinds import OrderKind
from studio.orders.models import Order
from studio.training.advisor import Surveyed
from studio.training.orders import SurveyPayload


class SurveyKind(OrderKind):
    kind = "survey"
    called = "Surveys"
    time_limit = 1800

    def payload(self, order: Order) -> dict[str, Any]:
        survey = survey_of(order)
        version, base = survey.dataset_version, survey.base_model
        return SurveyPayload(
            rows=str(version.rows_path),
            train=version.dataset_facts(None).train,
            base=str(base.folder),
            model=base.model_facts,
        ).model_dump(mode="json")

    def target(self, order: Order) -> Path:
        return Path(order.folder, "result")  # it leaves no files

    def title(self, order: Order) -> str:
        return str(survey_of(order))

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        if "loss" not in result:  # it was stopped before it had measured anything
            return
        survey = survey_of(order)
        told = {name: value for name, value in result.items() if name in Surveyed.model_fields}
        survey.result = Surveyed.model_validate(told).model_dump(mode="json")
        survey.save(update_fields=["result"])


def survey_of(order: Order) -> Survey:
    found: Survey = Survey.objects.select_related("dataset_version__dataset", "base_model").get(order=order)
    return found
