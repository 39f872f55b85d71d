from django.urls import path

from studio.datasets import views
from studio.datasets.pages import changes, drafts, elsewhere, exports, mixes, rows, splits, synthesis, tokens, uploads

app_name = "datasets"
urlpatterns = [
    path("new/", views.new, name="new"),
    path("fetch/", elsewhere.fetch, name="fetch"),
    path("uploads/<uuid:pk>/", uploads.look, name="upload"),
    path("uploads/<uuid:pk>/preview/", uploads.preview, name="upload_preview"),
    path("uploads/<uuid:pk>/discard/", uploads.discard, name="upload_discard"),
    path("<uuid:pk>/", views.dataset, name="detail"),
    path("<uuid:pk>/versions/new/", views.version_new, name="version_new"),
    path("versions/<uuid:pk>/", views.version, name="version"),
    path("versions/<uuid:pk>/refusals/", views.refusals, name="refusals"),
    path("versions/<uuid:pk>/again/", uploads.again, name="again"),
    path("versions/<uuid:pk>/map/", views.map_columns, name="map"),
    path("versions/<uuid:pk>/stop/", views.stop, name="stop"),
    path("versions/<uuid:pk>/split/", splits.split, name="split"),
    path("versions/<uuid:pk>/leave-out/", splits.leave_out, name="leave_out"),
    path("<uuid:pk>/hold-out/", splits.hold_out, name="hold_out"),
    path("mix/", mixes.mix, name="mix"),
    path("mix/preview/", mixes.preview, name="mix_preview"),
    path("versions/<uuid:pk>/export/", exports.export, name="export"),
    path("versions/<uuid:pk>/export/file/", exports.file, name="export_file"),
    path("versions/<uuid:pk>/tokens/", tokens.tokens, name="tokens"),
    path("versions/<uuid:pk>/rows/", rows.table, name="rows"),
    path("versions/<uuid:pk>/row/", rows.row, name="row"),
    path("versions/<uuid:pk>/row/edit/", drafts.row_edit, name="row_edit"),
    path("versions/<uuid:pk>/draft/rows/", drafts.rows_changed, name="draft_rows"),
    path("versions/<uuid:pk>/draft/rule/", drafts.rule, name="draft_rule"),
    path("versions/<uuid:pk>/draft/save/", drafts.save, name="draft_save"),
    path("versions/<uuid:pk>/draft/discard/", drafts.discard, name="draft_discard"),
    path("versions/<uuid:pk>/marks/", drafts.mark, name="mark"),
    path("versions/<uuid:pk>/restore/", drafts.restore, name="restore"),
    path("versions/<uuid:pk>/write/", synthesis.new, name="synthesis_new"),
    path("written/<uuid:pk>/", synthesis.review, name="synthesis"),
    path("written/<uuid:pk>/stop/", synthesis.stop, name="synthesis_stop"),
    path("written/<uuid:pk>/decide/", synthesis.decide, name="synthesis_decide"),
    path("written/<uuid:pk>/edit/", synthesis.edit, name="synthesis_edit"),
    path("written/<uuid:pk>/save/", synthesis.save, name="synthesis_save"),
    path("versions/<uuid:pk>/changes/", changes.changes, name="changes"),
]
