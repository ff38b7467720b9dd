"""The cache of embeddings: bounded in bytes, found by file and by pixels, apart by owner and model."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from models.images import DecodedImage
from models.model_key import ModelKey
from models.results import ImageInfo
from models.sam.embedding_cache import Embedding, EmbeddingCache, FileKey, file_hash, pixels_hash
from models.sam.graphs import Features

MODEL = ModelKey("ann", "sam", 1)
JPEG, PNG = ImageInfo(64, 48, "image/jpeg"), ImageInfo(64, 48, "image/png")
UNIT = 1000


class Counted:
    """What a cache tells its observer."""

    def __init__(self) -> None:
        self.hits = self.misses = 0
        self.bytes: list[int] = []

    def __call__(self, hit: bool | None, used: int) -> None:
        self.hits += hit is True
        self.misses += hit is False
        self.bytes.append(used)


def embedding(pixels: str, units: int = 1, info: ImageInfo = JPEG) -> Embedding:
    tokens = np.zeros(UNIT // 8 * units, np.float32)
    return Embedding(info, Features((tokens, tokens.copy())), 12.5, pixels)


def key(file: str, owner: str = "ann", model: ModelKey = MODEL) -> FileKey:
    return FileKey(owner, model, file)


def put(cache: EmbeddingCache, *names: str, units: int = 1) -> None:
    for name in names:
        cache.put(key(f"file {name}"), embedding(name, units))


def held(cache: EmbeddingCache, *names: str) -> list[str]:
    return [name for name in names if cache.by_file(key(f"file {name}")) is not None]


def test_the_sizes_of_these_tests() -> None:
    assert embedding("a").features.nbytes == UNIT and embedding("a", 3).features.nbytes == 3 * UNIT


def test_a_file_is_found_by_its_bytes() -> None:
    seen = Counted()
    cache = EmbeddingCache(10 * UNIT, seen)
    one = embedding("pixels")
    assert cache.by_file(key("f")) is None and (seen.hits, seen.misses) == (0, 0)
    assert cache.by_pixels(key("f"), "pixels", JPEG) is None and (seen.hits, seen.misses) == (0, 1)
    cache.put(key("f"), one)
    assert seen.bytes[-1] == cache.used_bytes == UNIT and len(cache) == 1
    assert cache.by_file(key("f")) is one
    assert (seen.hits, seen.misses) == (1, 1)


def test_other_bytes_with_the_same_pixels_are_found_with_their_own_facts() -> None:
    seen = Counted()
    cache = EmbeddingCache(10 * UNIT, seen)
    one = embedding("pixels")
    cache.put(key("f.jpg"), one)
    assert cache.by_file(key("f.png")) is None
    found = cache.by_pixels(key("f.png"), "pixels", PNG)
    assert found is not None and found.features is one.features
    assert (found.info, found.encode_ms, found.pixels) == (PNG, 12.5, "pixels")
    assert (seen.hits, seen.misses) == (1, 0)
    again, first = cache.by_file(key("f.png")), cache.by_file(key("f.jpg"))
    assert again is not None and first is not None
    assert again.info == PNG and first.info == JPEG
    assert seen.hits == 3 and cache.used_bytes == UNIT and len(cache) == 1


def test_the_least_recently_used_goes_first() -> None:
    cache = EmbeddingCache(3 * UNIT)
    put(cache, "a", "b", "c")
    assert cache.used_bytes == 3 * UNIT
    assert cache.by_file(key("file a")) is not None  # used
    put(cache, "d")
    assert held(cache, "a", "b", "c", "d") == ["a", "c", "d"]
    assert cache.by_pixels(key("another"), "a", PNG) is not None
    put(cache, "e")
    assert held(cache, "a", "b", "c", "d", "e") == ["a", "d", "e"]
    put(cache, "d")  # put again: as good as used
    put(cache, "f")
    assert held(cache, "a", "d", "e", "f") == ["d", "e", "f"]
    assert cache.used_bytes == 3 * UNIT and len(cache) == 3


def test_as_many_go_as_are_needed_and_never_more_is_held() -> None:
    seen = Counted()
    cache = EmbeddingCache(10 * UNIT, seen)
    random = np.random.default_rng(0)
    for number in range(300):
        units = int(random.integers(1, 12))
        put(cache, str(number % 40), units=units)
        entries = sum(e.features.nbytes for e in cache._entries.values())
        assert cache.used_bytes == entries <= 10 * UNIT
    assert max(seen.bytes) <= 10 * UNIT and min(seen.bytes) > 0


def test_one_larger_than_the_bound_is_not_kept_and_drives_nobody_out() -> None:
    cache = EmbeddingCache(3 * UNIT)
    put(cache, "a", "b")
    put(cache, "large", units=4)
    assert held(cache, "a", "b", "large") == ["a", "b"] and cache.used_bytes == 2 * UNIT
    put(cache, "just", units=3)
    assert held(cache, "a", "b", "just") == ["just"] and cache.used_bytes == 3 * UNIT


def test_a_bound_of_nothing_keeps_nothing() -> None:
    cache = EmbeddingCache(0)
    put(cache, "a")
    assert held(cache, "a") == [] and (len(cache), cache.used_bytes) == (0, 0)


def test_the_same_image_twice_counts_once() -> None:
    cache = EmbeddingCache(3 * UNIT)
    put(cache, "a", "a")
    cache.put(key("other file"), embedding("a", info=PNG))
    assert (cache.used_bytes, len(cache)) == (UNIT, 1)
    assert [one.info for one in (cache.by_file(key("other file")), cache.by_file(key("file a"))) if one] == [PNG, JPEG]


def test_owners_never_share() -> None:
    seen = Counted()
    cache = EmbeddingCache(10 * UNIT, seen)
    cache.put(key("f"), embedding("pixels"))
    bob = key("f", "bob")
    assert cache.by_file(bob) is None and cache.by_pixels(bob, "pixels", JPEG) is None
    assert (seen.hits, seen.misses) == (0, 1)
    cache.put(bob, embedding("pixels"))
    assert cache.used_bytes == 2 * UNIT and len(cache) == 2
    mine, his = cache.by_file(key("f")), cache.by_file(bob)
    assert mine is not None and his is not None and mine.features is not his.features


def test_models_and_versions_never_share_and_are_dropped_alone() -> None:
    cache = EmbeddingCache(20 * UNIT)
    models = [
        ModelKey("ann", "sam", 1),
        ModelKey("ann", "sam", 2),
        ModelKey("ann", "other", 1),
        ModelKey("bob", "sam", 1),
    ]
    for number, model in enumerate(models):
        assert cache.by_pixels(key("f", model=model), "pixels", JPEG) is None
        cache.put(key("f", model=model), embedding("pixels", number + 1))
        cache.put(key("f", "eve", model), embedding("pixels"))
    cache.drop(models[1])
    assert [cache.by_file(key("f", model=model)) is not None for model in models] == [True, False, True, True]
    assert cache.by_file(key("f", "eve", models[1])) is None and cache.by_file(key("f", "eve")) is not None
    assert cache.used_bytes == (1 + 3 + 4 + 3) * UNIT
    assert cache.by_pixels(key("f", model=models[1]), "pixels", JPEG) is None
    for model in models:
        cache.drop(model)
    assert (cache.used_bytes, len(cache), len(cache._files)) == (0, 0, 0)


def test_a_file_whose_embedding_went_is_forgotten() -> None:
    cache = EmbeddingCache(UNIT)
    put(cache, "a", "b")
    assert len(cache._files) == 2
    assert cache.by_file(key("file a")) is None and len(cache._files) == 1
    put(cache, "a")
    assert held(cache, "a", "b") == ["a"]


def test_names_of_files_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddingCache, "MAX_FILES", 5)
    cache = EmbeddingCache(10 * UNIT)
    cache.put(key("0"), embedding("pixels"))
    for number in range(1, 20):
        assert cache.by_file(key("0")) is not None
        assert cache.by_pixels(key(str(number)), "pixels", JPEG) is not None
    assert len(cache._files) == 5 and len(cache) == 1
    assert [n for n in range(20) if cache.by_file(key(str(n)))] == [0, 16, 17, 18, 19]


def test_many_threads_at_once() -> None:
    seen: list[int] = []
    cache = EmbeddingCache(7 * UNIT, lambda hit, used: seen.append(used))
    wrong: list[str] = []
    start = threading.Barrier(6)

    def hammer(seed: int) -> None:
        random = np.random.default_rng(seed)
        start.wait()
        for _ in range(400):
            name, owner = str(random.integers(12)), str(random.integers(2))
            one = key(f"file {name}", owner)
            found = cache.by_file(one) or cache.by_pixels(one, name, PNG)
            if found is None:
                cache.put(one, embedding(name, 1 + int(name) % 3))
            elif (found.pixels, found.features.nbytes) != (name, UNIT * (1 + int(name) % 3)):
                wrong.append(name)
            if random.integers(100) == 0:
                cache.drop(MODEL)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(hammer, seed) for seed in range(6)]:
            done.result(30)
    assert wrong == []
    assert cache.used_bytes == sum(e.features.nbytes for e in cache._entries.values()) <= 7 * UNIT
    assert min(seen) >= 0 and max(seen) <= 7 * UNIT
    cache.drop(MODEL)
    assert (cache.used_bytes, len(cache)) == (0, 0)


def test_hashes_are_of_content() -> None:
    assert file_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    image = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
    turned = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(4, 3, 3))
    assert image.tobytes() == turned.tobytes()
    hashes = {pixels_hash(DecodedImage(one, "image/png")) for one in (image, turned)}
    assert len(hashes) == 2
    assert pixels_hash(DecodedImage(image.copy(), "image/jpeg")) in hashes
