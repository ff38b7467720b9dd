"""Settings: read once from the environment (prefix ``EKIBEN_``) into one frozen value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX = "EKIBEN_"

Topology = Literal["embedded", "split"]
Device = Literal["auto", "cpu", "cuda"]


class Settings(BaseModel):
    """All settings. The environment variable of a field is its name in capitals after ``EKIBEN_``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(default=Path("var"), description="Folder of the embedded database, blobs, downloads and caches.")
    group_access: bool = Field(
        default=False,
        description="The group of files in HOME gets the access of their owner: 0660 instead of 0600, folders 0770.",
    )
    database_url: str = Field(default="", description="SQLAlchemy URL. Empty: SQLite in HOME/ekiben.db.")
    store_url: str = Field(
        default="",
        description="A folder, or s3://bucket?endpoint=http://host:port&region=us-east-1. Empty: HOME/blobs.",
    )
    s3_access_key: str = Field(default="", description="Access key of the S3 store.")
    s3_secret_key: str = Field(default="", repr=False, description="Secret key of the S3 store.")
    model_memory_mb: int = Field(default=4096, ge=16, description="Memory budget of loaded models, per process.")
    cache_mb: int = Field(default=512, ge=0, description="Memory for embeddings of images, per process; 10 MB each.")
    queue_mb: int = Field(
        default=256,
        ge=1,
        description="Images that may wait, per process; more is refused with 503. All open requests: four times.",
    )
    image_memory_mb: int = Field(
        default=1024,
        ge=64,
        description="Memory of images that are decoded, computed and drawn, per process; large ones wait their turn.",
    )
    timeout_s: float = Field(default=30.0, gt=0, description="Deadline of one request.")
    auto_timeout_s: float = Field(default=300.0, gt=0, description="Deadline of a request for automatic masks.")
    preload: str = Field(default="", description="Models to load at start and keep (pinned): names, comma-separated.")
    device: Device = Field(default="auto", description="auto: CUDA where ONNX Runtime offers it, else CPU.")
    threads: int = Field(default=0, ge=0, description="Inference threads per process. 0: one per core.")
    runtime: Literal["onnx", "torchscript"] = Field(default="onnx", description="torchscript needs torch installed.")
    topology: Topology = Field(
        default="embedded", description="embedded: models in the gateway process. split: in a runner process."
    )
    runner_url: str = Field(
        default="", description="split: address of a running runner. Empty: one is started beside the gateway."
    )
    gateways: int = Field(default=1, ge=1, le=64, description="Gateway processes that share the port.")
    workers: int = Field(
        default=1,
        ge=0,
        le=64,
        description="Worker processes for jobs beside the gateway. More: python -m services.worker.",
    )
    worker_nice: int = Field(
        default=19, ge=0, le=19, description="Niceness of workers; 19: only what nobody else wants of the processor."
    )
    items_at_once: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Images a worker answers at once. 0: four per core; of automatic masks one per two cores.",
    )
    job_timeout_s: float = Field(
        default=1800.0, gt=0, description="Time limit of a job from its start, unless it names its own."
    )
    volume_mb: int = Field(
        default=512, ge=50, le=2048, description="A NIfTI or DICOM volume in a request at most; it is held in memory."
    )
    batch_mb: int = Field(default=4096, ge=1, description="Upload of one batch at most.")
    dataset_mb: int = Field(default=4096, ge=1, description="Upload or download of one dataset at most.")
    dataset_memory_mb: int = Field(
        default=0, ge=0, description="Memory of an import's process. 0: four fifths of what is free when it starts."
    )
    private_urls: bool = Field(
        default=False,
        description="Datasets may be fetched from, and webhooks sent to, this machine and private networks.",
    )
    training_timeout_s: float = Field(
        default=86_400.0, gt=0, description="Time limit of a training from its start, unless it names its own."
    )
    trainings_at_once: int = Field(
        default=1, ge=0, le=16, description="Trainings that a worker works on at once; 0 where there is no torch."
    )
    training_memory_mb: int = Field(
        default=0, ge=0, description="Memory of a training's process. 0: four fifths of what is free when it starts."
    )
    training_python: str = Field(
        default="",
        description="Python that trains. Empty: this one, or that of .venv-torch, made when needed.",
    )
    webhook_secret: str = Field(
        default="", repr=False, description="Key that signs webhooks; whsec_... is base64. Empty: webhooks are refused."
    )
    host: str = Field(default="127.0.0.1", description="Address to serve on.")
    port: int = Field(default=3000, ge=0, le=65535, description="Port to serve on; make serve PORT= sets it.")
    header_timeout_s: float = Field(
        default=15.0, gt=0, description="For the headers of an HTTP request, and until a new connection sends any."
    )
    keep_alive_s: float = Field(default=5.0, gt=0, description="An HTTP connection without a request is closed then.")
    max_connections: int = Field(
        default=0,
        ge=0,
        description="Open HTTP connections per process; more get 503. 0: what the limit of open files has room for.",
    )
    grpc_port: int = Field(
        default=3001, ge=0, le=65535, description="Port to serve gRPC on, shared by all gateways. 0: no gRPC."
    )
    grpc_tls_cert: str = Field(
        default="", description="File with the certificate chain (PEM) of the gRPC port. Empty: no TLS."
    )
    grpc_tls_key: str = Field(default="", description="File with the private key (PEM) of that certificate.")
    keep_days: float = Field(
        default=7, gt=0, description="Days that finished jobs, what they made, and images nobody needs are kept."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line to log."
    )
    access_log: bool = Field(default=False, description="One log line per request.")
    bento_models: str = Field(
        default="", description="Models a built Bento carries: names, comma-separated. Empty: all that are present."
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings from ``EKIBEN_*`` variables. Raises SystemExit that names every invalid or unknown one."""
        given = {k[len(PREFIX) :].lower(): v for k, v in environ.items() if k.startswith(PREFIX)}
        # Test harnesses use EKIBEN_TEST_*; they are not settings.
        given = {k: v for k, v in given.items() if not k.startswith("test_")}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            lines = [f"{PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
            raise SystemExit("settings: " + "; ".join(lines)) from None

    @property
    def resolved_database_url(self) -> str:
        """SQLAlchemy URL of the database; SQLite in the home folder by default."""
        return self.database_url or f"sqlite:///{self.home.absolute() / 'ekiben.db'}"

    @property
    def resolved_store_url(self) -> str:
        """Folder or s3:// URL of the blob store; a folder in the home folder by default."""
        return self.store_url or str(self.home.absolute() / "blobs")

    @property
    def preloaded(self) -> tuple[str, ...]:
        """Names of the models to load at start."""
        return tuple(name.strip() for name in self.preload.split(",") if name.strip())
