from django.apps import AppConfig


class ComparisonsConfig(AppConfig):
    name = "studio.comparisons"

    def ready(self) -> None:
        """Registers what its orders need, and what its rounds look after."""
        from studio.comparisons import extraction_kind, guests, measuring_kind, needs, renewing, retraining_rounds, rounds, survey_kind
        from studio.orders.kinds import ROUNDS, SWEEPS, register
        from studio.workspaces.needs import NEEDS
        from studio.workspaces.portal import ASKED

        register(extraction_kind.ExtractionKind())
        register(survey_kind.SurveyKind())
        register(measuring_kind.MeasuringKind())
        SWEEPS.append(extraction_kind.forget_states)
        ROUNDS.append(rounds.advance)
        NEEDS.append(needs.failed)
        ROUNDS.append(retraining_rounds.advance)
        ROUNDS.append(renewing.Renewing().advance)
        ASKED.append(guests.ratings)
