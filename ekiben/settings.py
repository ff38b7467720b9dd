"""Settings: read once from the environment (prefix ``EKIBEN_``) into one frozen value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from ekiben.setting_formats import WeightsAddress, listed, pairs, weights_addresses

PREFIX = "EKIBEN_"

Topology = Literal["embedded", "split"]
Device = Literal["auto", "cpu", "cuda"]
DefaultTask = Literal["classify", "segment", "masks"]
ImageFormat = Literal["jpeg", "png", "webp", "bmp", "tiff", "dicom", "nifti"]


class Settings(BaseModel):
    """All settings. The environment variable of a field is its name in capitals after ``EKIBEN_``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(default=Path("var"), description="Folder of the embedded database, blobs, downloads and caches.")
    group_access: bool = Field(
        default=False,
        description="The group of files in HOME gets the access of their owner: 0660 instead of 0600, folders 0770.",
    )
    app_name: str = Field(
        default="Ekiben",
        min_length=1,
        max_length=80,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="Name of this installation: in the API's documents, at / and, where it is set, in every log line.",
    )
    cache_dir: str = Field(
        default="",
        description="Folder of what can be had again: downloads and copies of models. Empty: HOME.",
    )
    database_url: str = Field(default="", description="SQLAlchemy URL. Empty: SQLite in HOME/ekiben.db.")
    store_url: str = Field(
        default="",
        description="A folder, or s3://bucket?endpoint=http://host:port&region=us-east-1. Empty: HOME/blobs.",
    )
    min_free_mb: int = Field(
        default=1024,
        ge=0,
        description="Free MB below which a disk (home, SQLite, store folder) is reported as nearly full. 0: never.",
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
    default_models: str = Field(
        default="classify=efficientnet_b0,segment=deeplabv3_resnet50,segment=nuclei_unet,masks=sam_vit_b",
        description="Models of requests that name none, as task=name; of a task's models the first that has a version. "
        "A task that is left out keeps its own.",
    )
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
    job_grace_s: float = Field(
        default=60.0,
        ge=0,
        description="A job's time limit is soft: nothing is begun after it, and what is under way has so long to end.",
    )
    max_image_mb: int = Field(default=50, ge=1, le=50, description="An encoded image at most, in MiB.")
    max_image_megapixels: float = Field(default=64.0, gt=0, le=64, description="A decoded image at most.")
    image_formats: str = Field(
        default="jpeg,png,webp,bmp,tiff,dicom,nifti",
        description="Formats that requests may send, comma-separated; others are refused with 415.",
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
        description="Python with torch, which trains and exports. Empty: this one, or that of .venv-torch, made when "
        "needed.",
    )
    provision_on_first_use: bool = Field(
        default=False,
        description="A request for a known model that was never exported starts the job that downloads and exports it.",
    )
    weights_url: str = Field(
        default="",
        description="Address of a mirror of the published weights, which are checked by the published SHA-256. Of "
        "single models name=address, with #sha256=... for weights of your own.",
    )
    sam_model_urls: str = Field(
        default="",
        description="Addresses of Segment Anything's weights, as vit_b=address,vit_h=address; #sha256=... as above.",
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
    redoc_url: str = Field(
        default="https://cdn.jsdelivr.net/npm/redoc@2/bundles/redoc.standalone.js",
        description="Script of ReDoc, which Ekiben does not carry, for the page /redoc: an address, or a file on this "
        "machine. Empty: no such page.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line to log."
    )
    access_log: bool = Field(default=False, description="One log line per request.")
    bento_models: str = Field(
        default="", description="Models a built Bento carries: names, comma-separated. Empty: all that are present."
    )

    @field_validator("default_models")
    @classmethod
    def _tasks_with_models(cls, value: str) -> str:
        pairs(value, get_args(DefaultTask))
        return value

    @field_validator("image_formats")
    @classmethod
    def _known_formats(cls, value: str) -> str:
        formats = listed(value)
        for name in formats:
            if name not in get_args(ImageFormat):
                raise ValueError(f"{name[:40]!r} is none of {', '.join(get_args(ImageFormat))}")
        if not formats:
            raise ValueError("it names no format")
        return value

    @field_validator("redoc_url")
    @classmethod
    def _address_or_file(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("http", "https") and not Path(value).is_file():
            raise ValueError("it is neither an http(s) address nor a file")
        return value

    @field_validator("weights_url", "sam_model_urls")
    @classmethod
    def _addresses(cls, value: str, info: ValidationInfo) -> str:
        if weights_addresses(value).mirror and info.field_name == "sam_model_urls":
            raise ValueError("each address is given as vit_b=address")
        return value

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

    @property
    def default_models_by_task(self) -> dict[str, tuple[str, ...]]:
        """Names of models by task, in order of preference; only of those tasks that the setting names."""
        given = pairs(self.default_models, get_args(DefaultTask))
        return {task: tuple(name for each, name in given if each == task) for task, _ in given}

    @property
    def formats(self) -> frozenset[str]:
        """The formats that requests may send."""
        return frozenset(listed(self.image_formats))

    @property
    def log_name(self) -> str:
        """``app_name`` for log lines: empty where it is the default."""
        return "" if self.app_name == type(self).model_fields["app_name"].default else self.app_name

    @property
    def cache_folder(self) -> Path:
        """Folder of ``models``, copies of artifacts, and ``downloads``."""
        return Path(self.cache_dir).absolute() if self.cache_dir else self.home.absolute()

    @property
    def weights_mirror(self) -> str:
        """Address of a folder with the published weights, without a slash at its end; empty for none."""
        return weights_addresses(self.weights_url).mirror

    @property
    def weights_by_name(self) -> dict[str, WeightsAddress]:
        """Addresses of the weights of single models, by the model's name."""
        sam = weights_addresses(self.sam_model_urls).by_name
        own = {name if name.startswith("sam_") else f"sam_{name}": address for name, address in sam.items()}
        return {**weights_addresses(self.weights_url).by_name, **own}
