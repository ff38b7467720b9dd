"""Trainings: service, job handler, comparison."""
