"""Blobs in a bucket of a store with an S3 API."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.helpers import check_bucket_name

from db.keys import check_key, check_prefix
from ekiben.errors import BadInput, NotFound, Refusal, StorageFull, Unavailable

log = logging.getLogger(__name__)

CONNECTIONS = 16
PIECE = 256 * 1024
PART = 16 * 1024 * 1024  # of an upload in parts; three are in memory at a time
_INSUFFICIENT_STORAGE = 507  # RFC 4918
# Codes of MinIO (XMinioStorageFull, XMinioAdminBucketQuotaExceeded) and Ceph (QuotaExceeded); others send InternalError
# with the words of the system.
_FULL = ("storagefull", "quotaexceeded", "insufficientstorage", "no space left on device", "disk quota exceeded")
MAX_EXPIRES_S = 7 * 24 * 3600  # Signature Version 4 allows no more

# At most two attempts, and none once a request was sent: a store that is down fails a call within 7 s.
_RETRIES = urllib3.Retry(
    total=1, connect=1, read=0, redirect=0, backoff_factor=0.2, status_forcelist=(502, 503), raise_on_status=False
)
_TIMEOUT = urllib3.Timeout(connect=3, read=8)


class S3Store:
    """One bucket, which the first write makes if it is missing and the keys permit it. Methods: see ``BlobStore``."""

    parallel = 16

    def __init__(self, bucket: str, endpoint: str, secure: bool, region: str, access_key: str, secret_key: str) -> None:
        self.bucket = bucket
        # Not minio's own pool: it waits five minutes for a response and tries five times.
        self._http = urllib3.PoolManager(num_pools=2, maxsize=CONNECTIONS, retries=_RETRIES, timeout=_TIMEOUT)
        try:
            check_bucket_name(bucket, strict=True)
            # With a region given, minio sends no request of its own to look it up.
            self._client = Minio(
                endpoint,
                access_key=access_key or None,
                secret_key=secret_key or None,
                secure=secure,
                region=region,
                http_client=self._http,
            )
        except ValueError as error:
            raise BadInput(f"the address of the blob store is wrong: {error}") from None

    def put(self, key: str, data: bytes, mime_type: str) -> None:
        """Write a blob."""
        self._put(key, BytesIO(data), len(data), mime_type)

    def put_file(self, key: str, path: Path, mime_type: str) -> None:
        """Upload a file, in parts of 16 MiB."""
        with path.open("rb") as file:
            self._put(key, file, path.stat().st_size, mime_type)

    def get(self, key: str) -> bytes:
        """All bytes of a blob. NotFound."""
        return b"".join(self.stream(key))

    def stream(self, key: str) -> Iterator[bytes]:
        """The bytes in pieces of 256 KiB; the connection is held until the iterator ends or is closed. NotFound."""
        check_key(key)
        with _refusing(key):
            response = self._client.get_object(self.bucket, key)
        return _pieces(response, key)

    def size(self, key: str) -> int:
        """The size of a blob in bytes. NotFound."""
        check_key(key)
        with _refusing(key):
            return self._client.stat_object(self.bucket, key).size or 0

    def exists(self, key: str) -> bool:
        """Whether there is a blob under the key."""
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove a blob; a missing one is no error."""
        check_key(key)
        try:
            with _refusing(key):
                self._client.remove_object(self.bucket, key)
        except NotFound:
            pass

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that start with ``prefix``; none where the bucket does not exist yet."""
        check_prefix(prefix)
        return self._walk(prefix)

    def presigned_url(
        self, key: str, expires_s: int, filename: str | None = None, mime_type: str | None = None
    ) -> str | None:
        """A URL signed for ``expires_s`` seconds (1 s to 7 days). Whether the blob exists is not checked."""
        check_key(key)
        if not 1 <= expires_s <= MAX_EXPIRES_S:
            raise BadInput(f"an address is valid for 1 to {MAX_EXPIRES_S} seconds")
        headers: dict[str, str | list[str] | tuple[str]] = {}
        if filename is not None:
            # RFC 6266: the plain name for old clients, the encoded one for all others.
            plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in filename)
            name = quote(filename, safe="")
            headers["response-content-disposition"] = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{name}"
        if mime_type is not None:
            headers["response-content-type"] = mime_type
        with _refusing(key):
            return self._client.presigned_get_object(
                self.bucket, key, expires=timedelta(seconds=expires_s), response_headers=headers or None
            )

    def local_path(self, key: str) -> Path | None:
        """None: the blobs are not files of this machine."""
        check_key(key)
        return None

    def check(self) -> None:
        """Write, read and remove a small blob. Unavailable when that does not work."""
        key = f"checks/{uuid.uuid4().hex}"
        self.put(key, b"check", "text/plain")
        try:
            same = self.get(key) == b"check"
        except NotFound:
            same = False
        if not same:
            log.warning("the blob store gives other bytes than were written")
            raise Unavailable("the blob store is not available")
        self.delete(key)

    def remove_abandoned(self, *, everywhere: bool = False) -> int:
        """0: an upload is complete or absent; a rule of the bucket ends those that were broken off in the middle."""
        return 0

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def _put(self, key: str, source: BinaryIO, size: int, mime_type: str) -> None:
        check_key(key)
        with _refusing(key):
            try:
                self._client.put_object(self.bucket, key, source, size, content_type=mime_type, part_size=PART)
            except MinioException as error:
                if not _is_missing(error):  # of a write, only the bucket can be missing
                    raise
                self._make_bucket()
                source.seek(0)
                self._client.put_object(self.bucket, key, source, size, content_type=mime_type, part_size=PART)

    def _make_bucket(self) -> None:
        try:
            self._client.make_bucket(self.bucket)
        except S3Error as error:
            # Another process may have made it meanwhile.
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise
        log.info("made bucket %s", self.bucket)

    def _walk(self, prefix: str) -> Iterator[str]:
        try:
            with _refusing(prefix):
                for found in self._client.list_objects(self.bucket, prefix=prefix, recursive=True):
                    if found.object_name and not found.is_dir:
                        yield found.object_name
        except NotFound:  # no bucket yet
            return


def _pieces(response: urllib3.BaseHTTPResponse, key: str) -> Iterator[bytes]:
    try:
        with _refusing(key):
            yield from response.stream(PIECE)
    finally:
        response.close()
        response.release_conn()


@contextmanager
def _refusing(key: str) -> Iterator[None]:
    try:
        yield
    except (MinioException, urllib3.exceptions.HTTPError, ParseError, OSError) as error:
        raise _refusal(error, key) from None


def _refusal(error: Exception, key: str) -> Refusal:
    if _is_missing(error):
        return NotFound(f"there is no blob {key}")
    status = error.status_code if isinstance(error, ServerError) else None
    log.warning("the blob store cannot be used", extra={"cause": str(error)[:500], "status": status})
    if _is_full(error) or status == _INSUFFICIENT_STORAGE:
        return StorageFull("the blob store has no space left")
    return Unavailable("the blob store is not available")


def _is_full(error: Exception) -> bool:
    # Some stores send errors as text/xml, which minio does not parse: the codes are looked for in the text.
    return any(words in str(error).lower() for words in _FULL)


def _is_missing(error: Exception) -> bool:
    if isinstance(error, InvalidResponseError):  # some stores send errors as text/xml, which minio does not parse
        return bool(error._code == 404)
    return isinstance(error, S3Error) and error.code in ("NoSuchKey", "NoSuchObject", "NoSuchBucket")
