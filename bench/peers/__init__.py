"""The peers: one small server (or loop) a file, each in the form that was fastest for it."""
