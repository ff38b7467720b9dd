"""Request bodies: images, archives, batches and JSON, read within bounds."""
