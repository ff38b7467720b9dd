"""Pagination: the two query parameters of every list."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

Page = Annotated[int, Query(ge=1, le=1_000_000, description="Page, from 1.")]
Limit = Annotated[int, Query(ge=1, le=500, description="Items per page.")]
