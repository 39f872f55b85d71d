from django.apps import AppConfig


class BaseModelsConfig(AppConfig):
    name = "studio.basemodels"

    def ready(self) -> None:
        from studio.basemodels import kinds  # noqa: F401  (registers what its orders need)
