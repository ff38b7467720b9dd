"""The gRPC services: ekiben.v1, the Open Inference Protocol, health and reflection, on one port."""
