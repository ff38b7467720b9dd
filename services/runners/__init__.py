"""Where models run: in this process or in a runner behind a URL."""
