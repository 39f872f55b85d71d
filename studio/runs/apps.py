from django.apps import AppConfig


class RunsConfig(AppConfig):
    name = "studio.runs"

    def ready(self) -> None:
        from studio.runs import kinds  # noqa: F401  (registers what its orders need)
