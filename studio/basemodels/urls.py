from django.urls import path

from studio.basemodels import views

app_name = "basemodels"
urlpatterns = [
    path("", views.base_models, name="list"),
    path("new/", views.new, name="new"),
    path("<uuid:pk>/", views.base_model, name="detail"),
    path("<uuid:pk>/tokens/", views.new_tokens, name="new_tokens"),
    path("<uuid:pk>/stop/", views.stop, name="stop"),
]
