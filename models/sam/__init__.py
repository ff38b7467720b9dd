"""Segment Anything at serve time: embeddings of images, masks of prompts, automatic masks."""
