"""Models at serve time: decoding, preprocessing, networks and masks. No torch, no web, no database."""
