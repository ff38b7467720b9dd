"""The house keeps its order: small folders, short files, no import cycles, unique names, the field's words."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
from collections import Counter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PRODUCT = ("ekiben", "models", "db", "export", "training", "services")

MOST_MODULES = 20
MOST_LINES = 300
GENERATED = ("ekiben/v1/",)

PRIVATE_WORDS = re.compile(
    r"(?<![a-zA-Z])(pictures?|doors?|undertak(e|es|ing|ings)|workshops?|lanes?|whoever|likewise|sightings?|halting|deserted"
    r"|intake|askers?|housekeepers?|(?<!by )(?<!By )hands|in hand|(a|an|each|every|the|no) ask)(?![a-zA-Z])",
    re.IGNORECASE,
)
ELSEWHERE = re.compile(
    r"ekiben_decoded_pictures_total|jobs\.hands|\"hands\"|(COLUMN|TO|SELECT) hands"
    r"|pb\.Picture|\.Picture\b|message Picture|Picture image|\"Picture\""
)
"""The message ``ekiben.v1.Picture`` keeps its name: clients are compiled against it."""


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.split() if not path.startswith(GENERATED) and (ROOT / path).exists()]


def test_no_folder_holds_more_than_twenty_modules() -> None:
    folders = Counter(str(Path(path).parent) for path in tracked("*.py") if not path.endswith("/__init__.py"))
    assert {folder: count for folder, count in folders.items() if count > MOST_MODULES} == {}


def test_no_file_of_the_product_is_long() -> None:
    files = tracked(*(f"{room}/*.py" for room in PRODUCT))
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_no_import_cycles() -> None:
    """Imports inside functions count, too."""
    graph = grimp.build_graph(*PRODUCT, cache_dir=None)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[list[str]] = []
    numbers = itertools.count()

    def visit(module: str) -> None:
        index[module] = low[module] = next(numbers)
        stack.append(module)
        for other in graph.find_modules_directly_imported_by(module):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(component := stack[at:]) > 1:
                cycles.append(component)
            del stack[at:]

    for module in sorted(graph.modules):
        if module not in index:
            visit(module)
    assert cycles == []


def test_no_two_public_classes_share_a_name() -> None:
    """But for the client, whose values have the server's names, and the compiled messages."""
    places: dict[str, list[str]] = {}
    for path in tracked(*(f"{room}/*.py" for room in PRODUCT)):
        if path.startswith("ekiben/_client/"):
            continue
        for node in ast.parse((ROOT / path).read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_the_private_words_are_gone() -> None:
    found = []
    for path in tracked("*.py", "*.md", "*.toml", "Makefile", "*.yaml", ".env.example", "*.proto"):
        if path.startswith(("bench/results/", "tests/house/test_layout.py")) or path == "CHANGELOG.md":
            continue
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
            if PRIVATE_WORDS.search(ELSEWHERE.sub("", line)):
                found.append(f"{path}:{number}: {line.strip()[:80]}")
    assert found == []
