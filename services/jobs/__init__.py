"""Durable jobs: service, queue, executor, maintenance."""
