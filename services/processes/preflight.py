"""``python -m services.processes.preflight``: close the home to others, migrate, sweep temporary files, and print
in one line what would keep every process from starting."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

from db.blobs import open_store
from db.schema.ensure import ensure_newest
from db.schema.sqlite_file import check_database_file
from db.schema.version import NewerDatabase
from ekiben import logs
from ekiben.errors import Refusal, StorageFull
from ekiben.private_files import narrow_home, set_umask
from ekiben.settings import Settings
from services.jobs.dbos_queue import JobQueue
from services.jobs.temporary_files import sweep_temporary_files

COMPARE_S = 2.0
"""Seconds that SQLite may compare the pages of its file: about 600 MB of them."""

FULL = 75
"""Exit status while there is no space left (EX_TEMPFAIL of sysexits.h)."""


def preflight(settings: Settings) -> str | None:
    """None, or what is wrong with settings, database or store: reported once here instead of by each process.

    StorageFull where the database cannot even be opened for want of space.
    """
    if settings.grpc_port and (wrong := _certificate(settings.grpc_tls_cert, settings.grpc_tls_key)) is not None:
        return wrong
    try:
        narrow_home(settings)
    except OSError as error:
        return f"EKIBEN_HOME: {settings.home.absolute()} cannot be used: {error.strerror}"
    try:
        store = open_store(settings.resolved_store_url, settings.s3_access_key, settings.s3_secret_key)
        sweep_temporary_files(settings, store)  # first: they may be what fills the disk
        store.check()
    except StorageFull as error:  # what is stored can be read, and removed
        print(f"EKIBEN_STORE_URL: {error.message}; nothing can be stored until there is some", file=sys.stderr)
    except Refusal as error:
        return f"EKIBEN_STORE_URL: {error.message}"
    try:
        check_database_file(settings.resolved_database_url, store, COMPARE_S)
        ensure_newest(settings.resolved_database_url)
        JobQueue(settings.resolved_database_url).migrate()
    except StorageFull:
        raise
    except Refusal as error:
        return f"EKIBEN_DATABASE_URL: {error.message}"
    except NewerDatabase as error:
        return str(error)
    store.close()
    return None


def _certificate(certificate: str, key: str) -> str | None:
    if bool(certificate) != bool(key):
        return "EKIBEN_GRPC_TLS_CERT and EKIBEN_GRPC_TLS_KEY go together: one of them is not set"
    if not certificate:
        return None
    for name, path in (("EKIBEN_GRPC_TLS_CERT", certificate), ("EKIBEN_GRPC_TLS_KEY", key)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            return f"{name}: {path} cannot be read: {error.strerror}"
    try:
        # An empty password, so that OpenSSL does not prompt for one: gRPC takes no encrypted keys.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError):
        return f"EKIBEN_GRPC_TLS_CERT: {certificate} and {key} are not a certificate and its key in PEM"
    return None


if __name__ == "__main__":
    given = Settings.from_environ()
    set_umask(given)
    logs.configure(given.log_level, given.log_name)
    try:
        wrong = preflight(given)
    except StorageFull as full:
        print(f"EKIBEN_DATABASE_URL: {full.message}", file=sys.stderr)
        sys.exit(FULL)
    if wrong is not None:
        print(wrong, file=sys.stderr)
        sys.exit(1)
