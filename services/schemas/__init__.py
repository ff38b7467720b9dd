"""Requests and responses of the public API, as pydantic models."""
