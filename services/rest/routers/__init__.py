"""The HTTP routes, one resource a file. They translate between HTTP and the services, which decide."""
