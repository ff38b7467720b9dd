"""Datasets: from an uploaded archive to checked, prepared samples."""
