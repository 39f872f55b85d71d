"""What a page has read is let go of with its answer."""

import gc
import weakref

import pytest
from django.contrib.auth.models import AnonymousUser
from django.template import TemplateDoesNotExist, engines
from django.template.loader import render_to_string


class Row:
    name = "a row"


@pytest.fixture
def request_of_nobody(rf):
    request = rf.get("/")
    request.user, request.member = AnonymousUser(), None
    return request


@pytest.mark.parametrize("way", ["file", "text"])
def test_rows_go_without_a_collection_of_garbage(request_of_nobody, way):
    row = Row()
    gone = weakref.ref(row)
    gc.disable()
    try:
        if way == "file":
            assert "<svg" in render_to_string("components/icon.html", {"name": "download", "row": row}, request_of_nobody)
        else:
            assert engines["django"].from_string("{{ row.name }}").render({"row": row}, request_of_nobody) == "a row"
        del row
        assert gone() is None
    finally:
        gc.enable()


def test_a_part_that_is_missing_is_named(request_of_nobody):
    with pytest.raises(TemplateDoesNotExist, match=r"nowhere\.html") as raised:
        engines["django"].from_string("{% include 'nowhere.html' %}").render({}, request_of_nobody)
    assert raised.value.backend is engines["django"]
