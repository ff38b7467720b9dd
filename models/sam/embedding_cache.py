"""Image embeddings, cached by content within a bound of bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from models.images import DecodedImage
from models.model_key import ModelKey
from models.results import ImageInfo
from models.sam.graphs import Features


@dataclass(frozen=True, slots=True)
class Embedding:
    """The encoder's features of an image, with the size that prompts and masks refer to.

    ``encode_ms``: milliseconds of the encoder's run. ``pixels``: hash of the decoded image (see pixels_hash).
    """

    info: ImageInfo
    features: Features
    encode_ms: float
    pixels: str


class FileKey(NamedTuple):
    """An uploaded file under one owner and one version of a model (which fixes the precision too)."""

    owner: str
    model: ModelKey
    sha256: str


class EmbeddingCache:
    """A cache that drops the least recently used entry; look-ups are by a file's bytes or by its decoded pixels.

    Keys hold the owner and hashes of content, so no entry can be reached by a name. Images themselves are not kept.
    ``observe(hit, used_bytes)`` is called after every look-up, and with hit None after every change. Thread-safe.
    """

    MAX_FILES = 100_000
    """Hashes of files that are remembered for entries (about 300 bytes each)."""

    def __init__(self, max_bytes: int, observe: Callable[[bool | None, int], None] | None = None) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._observe = observe or (lambda hit, used: None)
        self._entries: OrderedDict[FileKey, Embedding] = OrderedDict()  # by pixels: FileKey with the pixels' hash
        self._files: OrderedDict[FileKey, tuple[str, ImageInfo]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def by_file(self, key: FileKey) -> Embedding | None:
        """The embedding of this file, if it is cached. A miss is not observed: ``by_pixels`` follows."""
        with self._lock:
            known = self._files.get(key)
            if known is None:
                return None
            found = self._get(key, known[0])
            if found is None:
                del self._files[key]
                return None
            self._files.move_to_end(key)
        self._observe(True, self.used_bytes)
        return found if found.info == known[1] else _with_info(found, known[1])

    def by_pixels(self, key: FileKey, pixels: str, info: ImageInfo) -> Embedding | None:
        """The embedding of another file with equal pixels; from now on ``by_file`` finds it for ``key`` too."""
        with self._lock:
            found = self._get(key, pixels)
            if found is not None:
                self._remember(key, pixels, info)
        self._observe(found is not None, self.used_bytes)
        return None if found is None else _with_info(found, info)

    def put(self, key: FileKey, embedding: Embedding) -> None:
        """Cache the embedding of the file ``key``; older entries make room. One larger than the bound is not cached."""
        size = embedding.features.nbytes
        if size > self.max_bytes:
            return
        name = key._replace(sha256=embedding.pixels)
        with self._lock:
            if name not in self._entries:
                self.used_bytes += size
                self._entries[name] = embedding
            self._entries.move_to_end(name)
            while self.used_bytes > self.max_bytes:
                _, gone = self._entries.popitem(last=False)
                self.used_bytes -= gone.features.nbytes
            self._remember(key, embedding.pixels, embedding.info)
        self._observe(None, self.used_bytes)

    def drop(self, model: ModelKey) -> None:
        """Drop the embeddings of a model that was unloaded."""
        with self._lock:
            for name in [name for name in self._entries if name.model == model]:
                self.used_bytes -= self._entries.pop(name).features.nbytes
            for key in [key for key in self._files if key.model == model]:
                del self._files[key]
        self._observe(None, self.used_bytes)

    def _get(self, key: FileKey, pixels: str) -> Embedding | None:
        name = key._replace(sha256=pixels)
        found = self._entries.get(name)
        if found is not None:
            self._entries.move_to_end(name)
        return found

    def _remember(self, key: FileKey, pixels: str, info: ImageInfo) -> None:
        self._files[key] = (pixels, info)
        self._files.move_to_end(key)
        if len(self._files) > self.MAX_FILES:
            self._files.popitem(last=False)


def _with_info(found: Embedding, info: ImageInfo) -> Embedding:
    return Embedding(info, found.features, found.encode_ms, found.pixels)


def file_hash(data: bytes) -> str:
    """SHA-256 of the bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def pixels_hash(image: DecodedImage) -> str:
    """SHA-256, in hexadecimal, of the size and RGB bytes of a decoded image."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(np.asarray(image.rgb).data)
    return digest.hexdigest()
