"""Store or database down: a clear 503, nothing half-recorded; up again: everything works without a restart."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from tests import servers, toy_models
from tests.conftest import publish
from tests.serving import Server, serving
from tests.waiting import eventually

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.postgres() as server:
        if server.stop is None:
            pytest.skip("the PostgreSQL of EKIBEN_TEST_PG_URL cannot be stopped")
        yield server


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[servers.Server]:
    (tmp_path / "s3").mkdir()
    with servers.rclone_s3(tmp_path / "s3") as server:
        if server.stop is None:
            pytest.skip("the S3 server of EKIBEN_TEST_S3_URL cannot be stopped")
        yield server


def objects(folder: Path) -> set[str]:
    return {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "models/" not in p.as_posix()
    }


def stop(server: servers.Server) -> None:
    assert server.stop is not None
    server.stop()


def start(server: servers.Server) -> None:
    assert server.start is not None
    server.start()


def verdict(client: httpx.Client, part: str) -> tuple[int, bool]:
    health = client.get("/healthz")
    return health.status_code, health.json()["parts"][part]["ok"]


def test_the_database_goes_and_comes_back(
    toy_artifacts: dict[str, Path], database: servers.Server, tmp_path: Path
) -> None:
    home = tmp_path / "var"
    url = database.url
    publish(home, "colours", toy_artifacts["colours"], EKIBEN_DATABASE_URL=url)
    with serving(home, EKIBEN_DATABASE_URL=url) as server, server.client() as client:
        first = client.post("/v1/classify?model=colours", content=RED)
        assert first.status_code == 200, first.text
        before = objects(home / "blobs")
        stop(database)
        refused = client.post("/v1/classify?model=colours", content=RED)
        assert refused.status_code == 503
        assert refused.json()["error"]["message"] == "the database is unreachable"
        assert int(refused.headers["retry-after"]) >= 1
        assert objects(home / "blobs") == before  # the image that was stored meanwhile is gone again
        assert client.get("/livez").status_code == 200
        eventually(lambda: client.get("/readyz").status_code == 503)
        assert verdict(client, "database") == (503, False)
        assert verdict(client, "store") == (503, True)
        # What needs no database still answers.
        assert client.post("/v1/classify?model=colours&store=false", content=RED).status_code == 200
        assert "psycopg" not in refused.text
        start(database)
        again = client.post("/v1/classify?model=colours", content=RED)
        assert again.status_code == 200, again.text
        assert client.get("/v1/predictions").json()["total"] == 2
        eventually(lambda: client.get("/readyz").status_code == 200)


def test_the_store_goes_and_comes_back(toy_artifacts: dict[str, Path], s3: servers.Server, tmp_path: Path) -> None:
    home = tmp_path / "var"
    settings = {
        "EKIBEN_STORE_URL": s3.url,
        "EKIBEN_S3_ACCESS_KEY": s3.access_key,
        "EKIBEN_S3_SECRET_KEY": s3.secret_key,
    }
    publish(home, "colours", toy_artifacts["colours"], **settings)
    publish(home, "areas", toy_artifacts["areas"], **settings)
    with serving(home, **settings) as server, server.client() as client:
        answer = client.post("/v1/segment?model=areas", content=RED)
        assert answer.status_code == 200, answer.text
        # The files are in the store; the URL of an artifact leads there, signed.
        mask = client.get(answer.json()["artifacts"]["mask"])
        assert mask.status_code == 302
        assert mask.headers["location"].startswith(s3.url.split("endpoint=")[1])
        fetched = httpx.get(mask.headers["location"])
        assert fetched.status_code == 200
        assert fetched.content.startswith(b"\x89PNG")
        assert httpx.get(mask.headers["location"].split("?")[0]).status_code in (400, 401, 403)
        image = client.get(f"/v1/images/{answer.json()['image']['id']}/content", follow_redirects=True)
        assert image.content == RED

        stop(s3)
        refused = client.post("/v1/segment?model=areas", content=RED)
        assert refused.status_code == 503, refused.text
        assert "store" in refused.json()["error"]["message"]
        assert client.get("/v1/predictions").json()["total"] == 1  # no row without its files
        assert client.get("/v1/images").json()["total"] == 1
        eventually(lambda: verdict(client, "store") == (503, False))
        assert verdict(client, "database") == (503, True)
        assert client.post("/v1/segment?model=areas&store=false", content=RED).status_code == 200
        start(s3)
        assert client.post("/v1/segment?model=areas", content=RED).status_code == 200
        # Removing an answer removes its objects.
        kept = {row["id"] for row in client.get("/v1/predictions").json()["items"]}
        for ident in kept:
            assert client.delete(f"/v1/predictions/{ident}").status_code == 204
    assert objects(tmp_path / "s3") == set()


@pytest.mark.acceptance
def test_a_kill_leaves_nothing_half_recorded(toy_home: Path) -> None:
    """kill -9 in the middle of many requests: every row that is there has its files."""

    def pound(server: Server, stop: threading.Event) -> None:
        with httpx.Client(base_url=server.url, timeout=10) as client:
            while not stop.is_set():
                try:
                    client.post("/v1/segment?model=areas", content=RED)
                except httpx.TransportError:
                    return

    with serving(toy_home) as server:
        stop = threading.Event()
        threads = [threading.Thread(target=pound, args=(server, stop)) for _ in range(4)]
        for thread in threads:
            thread.start()
        threading.Event().wait(2.0)
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join(20)
    engine = sa.create_engine(f"sqlite:///{toy_home / 'ekiben.db'}")
    with engine.connect() as connection:
        keys = (
            connection.execute(sa.text("SELECT storage_key FROM images UNION ALL SELECT storage_key FROM artifacts"))
            .scalars()
            .all()
        )
        predictions = connection.execute(sa.text("SELECT count(*) FROM predictions")).scalar_one()
        assert connection.execute(sa.text("PRAGMA integrity_check")).scalar_one() == "ok"
    assert predictions > 5
    assert len(keys) == 4 * predictions
    for key in keys:
        assert (toy_home / "blobs" / key).stat().st_size > 0
