"""Messages and stubs of ekiben.v1, compiled from services/rpc/ekiben/v1/ekiben.proto by `make protos`."""
