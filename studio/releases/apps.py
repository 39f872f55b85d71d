from django.apps import AppConfig


class ReleasesConfig(AppConfig):
    name = "studio.releases"

    def ready(self) -> None:
        from studio.releases import kinds  # noqa: F401  (registers what its orders need)
