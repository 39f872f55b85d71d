from django.apps import AppConfig


class ClientsConfig(AppConfig):
    """What is told of a client as a whole, so it looks at every other app and none looks at it."""

    name = "studio.clients"
