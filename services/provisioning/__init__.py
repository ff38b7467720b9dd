"""Provisioning: models that Ekiben knows how to make are downloaded and exported by a job."""
