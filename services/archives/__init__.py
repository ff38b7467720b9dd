"""ZIP archives and file names."""
