"""The commits of a test's database, counted."""

from __future__ import annotations

import pytest
import sqlalchemy as sa


@pytest.fixture
def commits(engine: sa.Engine) -> list[sa.Connection]:
    """One entry for each commit."""
    seen: list[sa.Connection] = []
    sa.event.listen(engine, "commit", seen.append)
    return seen
