"""Versions of given rows, as a person uploads them and a worker reads them; and a browser that a person is signed in with."""

import json

from django.test import Client as Browser

from studio.datasets.services import Upload, create_with_version
from tests.fixtures import work_off


def upload(world, lines, name="Replies"):
    """A version of these rows, read by a worker."""
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    sent = Upload(filename="replies.jsonl", chunks=[content], size=len(content))
    version = create_with_version(world.owner, project=world.project, name=name, upload=sent)
    work_off(version.order)
    version.refresh_from_db()
    assert version.is_ready, version.order.error
    return version


def browser_of(user):
    browser = Browser()
    browser.force_login(user)
    return browser
