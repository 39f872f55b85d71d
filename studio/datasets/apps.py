from django.apps import AppConfig


class DatasetsConfig(AppConfig):
    name = "studio.datasets"

    def ready(self) -> None:
        from studio.datasets import kinds  # noqa: F401  (registers what its orders need)
