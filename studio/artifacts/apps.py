from django.apps import AppConfig


class ArtifactsConfig(AppConfig):
    name = "studio.artifacts"

    def ready(self) -> None:
        from studio.artifacts import adapter_kind, kinds  # noqa: F401  (registers what its orders need)
        from studio.artifacts.services import stored, writers
        from studio.datasets.writers import PROVIDERS
        from studio.orders.quotas import STORES

        PROVIDERS.insert(0, writers)
        STORES["Artifacts"] = stored
