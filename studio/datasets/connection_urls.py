from django.urls import path

from studio.datasets.pages import connections

app_name = "connections"
urlpatterns = [
    path("", connections.connections, name="list"),
    path("<uuid:pk>/try/", connections.attempt, name="try"),
    path("<uuid:pk>/remove/", connections.remove, name="remove"),
]
