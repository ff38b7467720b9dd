"""What the formats of images say about their pixels, beyond what Pillow reads."""
