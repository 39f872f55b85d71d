from django.apps import AppConfig


class ComparisonsConfig(AppConfig):
    name = "studio.comparisons"

    def ready(self) -> None:
        """Registers what its orders need, and what its rounds look after."""
