"""A stranger cannot fill the disk: how much of a body is received is decided before it comes, and counted while it does."""

import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from studio.workspaces import intake
from tests.fixtures import Api, World, make_key, make_member
from tests.web.conftest import Server, cookie

LARGE = 1 << 40


def knock(server: Server, path: str, *, length: int | None, headers: dict[str, str] | None = None, body: bytes = b"") -> str:
    """The first lines of the answer to a POST that announces `length` bytes (None: it sends pieces) and sends only `body`."""
    address = urlsplit(server.address)
    announced = {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
    lines = [f"{name}: {value}" for name, value in ({"Host": "localhost"} | announced | (headers or {})).items()]
    with socket.create_connection((address.hostname, address.port or 0), timeout=20) as connection:
        connection.sendall("\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode() + body)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        return answer.decode()


def status(answer: str) -> int:
    return int(answer.split()[1])


@pytest.mark.parametrize("path", ["/login/", "/healthz/", "/no/such/page/", "/api/v1/runs", "/datasets/new/", "/playground/chat/"])
def test_a_stranger_s_large_body_is_not_received(server: Server, path: str):
    answer = knock(server, path, length=LARGE)
    assert status(answer) == (302 if path == "/datasets/new/" else 413)


def test_a_stranger_s_upload_to_the_api_is_not_received(server: Server, world: World):
    path = f"/api/v1/datasets/{world.version.dataset_id}/versions"
    for headers in ({}, {"Authorization": "Bearer as_wrong"}, {"Cookie": cookie(world.owner)}):
        assert status(knock(server, path, length=LARGE, headers=headers)) == 401
        assert status(knock(server, path, length=None, headers=headers)) == 401


def test_who_may_not_upload_sends_nothing_large(server: Server, world: World):
    viewer = make_member(world.workspace, role="viewer", email="vera@example.com")
    assert status(knock(server, "/datasets/new/", length=LARGE, headers={"Cookie": cookie(viewer)})) == 404
    key = {"Authorization": f"Bearer {make_key(world.owner, scopes=['read'])}"}
    assert status(knock(server, f"/api/v1/datasets/{world.version.dataset_id}/versions", length=LARGE, headers=key)) == 404


def test_a_body_in_pieces_ends_at_the_limit(server: Server):
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    answer = knock(server, "/login/", length=None, headers={"Content-Type": "text/plain"}, body=piece * 18)
    assert status(answer) == 413


def test_more_than_the_disk_holds_is_refused_before_it_comes(server: Server, world: World, settings: Any):
    settings.MAX_UPLOAD = LARGE
    answer = knock(server, "/datasets/new/", length=LARGE - 1, headers={"Cookie": cookie(world.owner)})
    assert status(answer) == 413
    assert "has no room for" in answer
    assert "data-error-text" in answer


def test_more_than_an_upload_may_be_is_refused_before_it_comes(server: Server, world: World, settings: Any):
    settings.MAX_UPLOAD = 1 << 20
    answer = knock(server, "/datasets/new/", length=3 << 20, headers={"Cookie": cookie(world.owner)})
    assert status(answer) == 413
    assert "At most 1 MB" in answer


def test_a_file_of_several_megabytes_arrives(server: Server, world: World):
    rows = b'{"prompt": "Hello?", "completion": "Good morning."}\n' * 100_000
    key = {"Authorization": f"Bearer {make_key(world.owner)}"}
    address = f"{server.address}/api/v1/datasets/{world.version.dataset_id}/versions"
    answer = httpx.post(address, files={"file": ("rows.jsonl", rows)}, headers=key, trust_env=False, timeout=60)
    assert answer.status_code == 202, answer.text


def test_a_logo_is_received_as_far_as_one_may_go(server: Server, world: World):
    address = f"{server.address}/api/v1/clients/{world.client.pk}/logo"
    headers = {"Authorization": f"Bearer {make_key(world.owner)}"}

    def sent(size: int) -> int:
        return httpx.post(address, headers=headers, files={"file": ("logo.png", b"\0" * size)}, trust_env=False, timeout=60).status_code

    assert sent(3 << 20) == 422  # it came, and is no picture
    assert sent(6 << 20) == 413


def test_every_view_that_takes_a_file_is_known_here(acme: World):
    """A multipart form of two megabytes reaches these and no others."""
    document = Api(make_key(acme.owner)).get("openapi.json").json()
    takes_files = {
        f"api:{operation['operationId']}"
        for path in document["paths"].values()
        for operation in path.values()
        if "multipart/form-data" in operation.get("requestBody", {}).get("content", {})
    }
    assert len(takes_files) == len([name for name in (*intake.UPLOADS, *intake.LOGOS) if name.startswith("api:")])
