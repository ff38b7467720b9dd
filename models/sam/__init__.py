"""Segment Anything at serve time: prompts in, embeddings and masks out."""
