from django.urls import include, path

from studio.serving import prompt_views, trial_beside_views, trial_views

prompts = [
    path("", prompt_views.sets, name="list"),
    path("new/", prompt_views.new, name="new"),
    path("<uuid:pk>/", prompt_views.detail, name="detail"),
    path("<uuid:pk>/edit/", prompt_views.edit, name="edit"),
    path("<uuid:pk>/copy/", prompt_views.copy, name="copy"),
    path("<uuid:pk>/delete/", prompt_views.delete, name="delete"),
    path("<uuid:pk>/prompts.jsonl", prompt_views.download, name="download"),
]
trials = [
    path("", trial_views.trials, name="list"),
    path("new/", trial_views.new, name="new"),
    path("<uuid:pk>/", trial_views.detail, name="detail"),
    path("<uuid:pk>/beside/", trial_beside_views.beside, name="beside"),
    path("<uuid:pk>/stop/", trial_views.stop, name="stop"),
    path("<uuid:pk>/delete/", trial_views.delete, name="delete"),
    path("<uuid:pk>/download/", trial_views.download, name="download"),
]
urlpatterns = [
    path("prompts/", include((prompts, "prompts"))),
    path("trials/", include((trials, "trials"))),
]
