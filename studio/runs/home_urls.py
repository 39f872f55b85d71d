from django.urls import include, path

from studio.releases import views as release_views
from studio.runs import views
from studio.workspaces import views as workspace_views

projects = [
    path("", workspace_views.projects, name="list"),
    path("new/", workspace_views.project_new, name="new"),
    path("<uuid:pk>/", views.project, name="detail"),
    path("<uuid:pk>/gate/", release_views.gate, name="gate"),
]
plugins = [path("", views.plugins, name="list"), path("<slug:name>/", views.plugin, name="detail")]
urlpatterns = [
    path("", views.home, name="home"),
    path("projects/", include((projects, "projects"))),
    path("plugins/", include((plugins, "plugins"))),
    path("workers/", include(([path("", views.workers, name="list")], "workers"))),
]
