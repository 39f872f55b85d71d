from django.urls import include, path

from studio.comparisons import extraction_views as views

extractions = [
    path("artifacts/<uuid:pk>/extract/", views.new, name="new"),
    path("extractions/<uuid:pk>/", views.detail, name="detail"),
    path("extractions/<uuid:pk>/stop/", views.stop, name="stop"),
    path("extractions/<uuid:pk>/delete/", views.delete, name="delete"),
]
urlpatterns = [path("", include((extractions, "extractions")))]
