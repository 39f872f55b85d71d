from django.apps import AppConfig


class ArtifactsConfig(AppConfig):
    name = "studio.artifacts"

    def ready(self) -> None:
        from studio.artifacts import kinds  # noqa: F401  (registers what its orders need)
        from studio.artifacts.services import writers
        from studio.datasets.writers import PROVIDERS

        PROVIDERS.insert(0, writers)
