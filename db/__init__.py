"""What the platform remembers: rows and bytes."""
