"""The HTTP API: FastAPI application, middleware, routers, uploads."""
