from django.apps import AppConfig


class DatasetsConfig(AppConfig):
    name = "studio.datasets"

    def ready(self) -> None:
        from studio.datasets import kinds, stored  # noqa: F401  (kinds registers what its orders need)
        from studio.orders.quotas import STORES

        STORES |= {"Datasets": stored.datasets, "Uploads": stored.uploads}
