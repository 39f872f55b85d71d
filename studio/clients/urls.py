from django.urls import path

from studio.clients.pages import erasing, life, overview
from studio.workspaces import views

app_name = "clients"
urlpatterns = [
    path("", overview.clients, name="list"),
    path("new/", views.client_new, name="new"),
    path("<uuid:pk>/", overview.client, name="detail"),
    path("<uuid:pk>/quotas/", overview.quotas, name="quotas"),
    path("<uuid:pk>/logo/", overview.logo, name="logo"),
    path("<uuid:pk>/archive/", life.archive, name="archive"),
    path("<uuid:pk>/restore/", life.restore, name="restore"),
    path("<uuid:pk>/export/", life.export, name="export"),
    path("<uuid:pk>/erase/", erasing.erase, name="erase"),
    path("certificates/<uuid:pk>/", erasing.certificate, name="certificate"),
    path("certificates/<uuid:pk>/file/", erasing.certificate_file, name="certificate_file"),
]
