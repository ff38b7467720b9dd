"""What a model is at serve time: no torch, no web, no database."""
