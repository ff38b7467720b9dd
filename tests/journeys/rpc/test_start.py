"""What keeps the gRPC port from being served is said in one line, and the server does not start; no port, no gRPC."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ekiben.v1 import ekiben_pb2 as pb
from tests.journeys.rpc.grpc_calls import certificate_in, connected, failing
from tests.services.processes.test_start import start
from tests.serving import free_port, serving


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("certificates")
    certificate, key = certificate_in(folder)
    (folder / "other").mkdir()
    _, other = certificate_in(folder / "other")
    (folder / "text").write_text("no certificate")
    paths = {"certificate": certificate, "key": key, "other": other, "text": folder / "text"}
    return {**{name: str(path) for name, path in paths.items()}, "missing": str(folder / "missing"), "": ""}


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("certificate", "", "go together"),
        ("", "key", "go together"),
        ("missing", "key", "EKIBEN_GRPC_TLS_CERT: {missing} cannot be read: No such file or directory"),
        ("certificate", "missing", "EKIBEN_GRPC_TLS_KEY: {missing} cannot be read: No such file or directory"),
        ("text", "key", "{text} and {key} are not a certificate and its key"),
        ("certificate", "other", "{certificate} and {other} are not a certificate and its key"),
    ],
)
def test_a_wrong_certificate_is_said_once(
    files: dict[str, str], tmp_path: Path, certificate: str, key: str, words: str
) -> None:
    settings = {"EKIBEN_GRPC_TLS_CERT": files[certificate], "EKIBEN_GRPC_TLS_KEY": files[key]}
    status, text, seconds = start(
        tmp_path / "var", EKIBEN_PORT=str(free_port()), EKIBEN_GRPC_PORT=str(free_port()), **settings
    )
    assert status == 1
    assert words.format(**files) in text.strip().splitlines()[-1]
    assert "Traceback" not in text
    assert seconds < 30


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, text, _ = start(tmp_path / "var", EKIBEN_PORT=str(free_port()), EKIBEN_GRPC_PORT=str(port))
    assert status == 1
    assert f"the gRPC port {port} on 127.0.0.1 is taken" in text
    assert "EKIBEN_GRPC_PORT" in text


@pytest.mark.acceptance
def test_no_port_no_grpc(tmp_path: Path) -> None:
    with serving(tmp_path / "var", EKIBEN_GRPC_PORT="0") as server:
        with connected(server.grpc) as stubs:
            assert failing(lambda: stubs.models.ListModels(pb.ListModelsRequest())).code == "UNAVAILABLE"
        with server.client() as client:
            assert client.get("/v1/models").json()["items"] == []
        assert "gRPC" not in server.logs()
