from django.apps import AppConfig


class ComparisonsConfig(AppConfig):
    name = "studio.comparisons"

    def ready(self) -> None:
        """Registers what its orders need, and what its rounds look after."""
        from studio.comparisons import rounds
        from studio.orders.kinds import ROUNDS

        ROUNDS.append(rounds.advance)
