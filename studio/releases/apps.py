from django.apps import AppConfig


class ReleasesConfig(AppConfig):
    name = "studio.releases"

    def ready(self) -> None:
        from studio.releases import kinds, palette  # noqa: F401  (registers what its orders need)
        from studio.workspaces import context

        context.SOURCES.append(palette.releases)
