from django.urls import path

from studio.clients.pages import lineage

app_name = "lineage"
urlpatterns = [
    path("versions/<uuid:pk>/", lineage.version, name="version"),
    path("versions/<uuid:pk>/rows/<int:number>/", lineage.row, name="row"),
    path("runs/<uuid:pk>/", lineage.run, name="run"),
    path("artifacts/<uuid:pk>/", lineage.artifact, name="artifact"),
    path("releases/<uuid:pk>/", lineage.release, name="release"),
]
