from django.apps import AppConfig


class ComparisonsConfig(AppConfig):
    name = "studio.comparisons"

    def ready(self) -> None:
        """Registers what its orders need, and what its rounds look after."""
        from studio.comparisons import guests, retraining_rounds, rounds
        from studio.orders.kinds import ROUNDS
        from studio.workspaces.portal import ASKED

        ROUNDS.append(rounds.advance)
        ROUNDS.append(retraining_rounds.advance)
        ASKED.append(guests.ratings)
