"""Ekiben measured beside fair peers, in one run on one machine: ``python -m bench``."""
