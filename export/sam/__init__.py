"""Segment Anything: published or seeded weights in, three graphs and their proof out."""
