from django.urls import path

from studio.serving import answer_views as views

app_name = "answers"
urlpatterns = [
    path("", views.answers_list, name="list"),
    path("add/", views.add, name="add"),
    path("<uuid:pk>/", views.detail, name="detail"),
    path("<uuid:pk>/judge/", views.judge, name="judge"),
    path("<uuid:pk>/delete/", views.delete, name="delete"),
    path("of/<uuid:pk>/", views.setting, name="setting"),
]
