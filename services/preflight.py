"""``python -m services.preflight``: migrate, and say in one line what would keep every process from starting."""

from __future__ import annotations

import sys

from db.blobs import open_store
from db.migrate import NewerDatabase, migrate
from ekiben.errors import Refusal
from ekiben.settings import Settings
from services.job_queue import JobQueue


def preflight(settings: Settings) -> str | None:
    """None, or what is wrong: found here it is said once, and not by each process."""
    try:
        migrate(settings.resolved_database_url)
        JobQueue(settings.resolved_database_url).migrate()
    except Refusal as error:
        return f"EKIBEN_DATABASE_URL: {error.message}"
    except NewerDatabase as error:
        return str(error)
    try:
        store = open_store(settings.resolved_store_url, settings.s3_access_key, settings.s3_secret_key)
        store.check()
        store.close()
    except Refusal as error:
        return f"EKIBEN_STORE_URL: {error.message}"
    return None


if __name__ == "__main__":
    if (wrong := preflight(Settings.from_environ())) is not None:
        print(wrong, file=sys.stderr)
        sys.exit(1)
