from django.urls import path

from studio.datasets.pages import uploads

app_name = "uploads"
urlpatterns = [
    path("", uploads.create, name="create"),
    path("<uuid:pk>/", uploads.piece, name="piece"),
]
