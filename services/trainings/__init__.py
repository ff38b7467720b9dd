"""Trainings: service, job handler, comparison, the environment with torch."""
