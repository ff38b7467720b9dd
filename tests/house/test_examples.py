"""The Python of the documents: it compiles, and the client has every method, option and answer that it names."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, Unpack, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from ekiben._client.records import Page
from ekiben.client import AsyncClient, Client
from tests.serving import ROOT

PAGES = [
    page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if "```python" in page.read_text()
]
CLIENTS = (Client, AsyncClient)
OF_ONE_CALL = {"store", "timeout_s", "image", "image_id"}
"""Arguments of an operation that are no option of an image in a batch."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


@dataclass
class Reader(ast.NodeVisitor):
    """Reads code with what is known of its names' types. What it does not know it lets pass."""

    known: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    checked: int = 0

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module and node.module.split(".")[0] == "ekiben":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                self.known[alias.asname or alias.name] = getattr(module, alias.name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self.bind(target, self.type_of(node.value))

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.bind(node.target, element(self.type_of(node.iter)))
        for each in node.body:
            self.visit(each)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self.bind(item.optional_vars, self.type_of(item.context_expr))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and self.type_of(node.func.value) in CLIENTS:
            self.check_call(node, node.func.attr)
        elif isinstance(node.func, ast.Name) and self.known.get(node.func.id) in CLIENTS:
            self.accepts(self.known[node.func.id], node, [], set())

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self.type_of(node.value)
        if owner in CLIENTS or answers(owner):
            self.checked += 1
            if not hasattr(owner, node.attr) and node.attr not in get_type_hints(owner):
                self.wrong.append(f"{owner.__name__} has no {node.attr}")

    def check_call(self, node: ast.Call, name: str) -> None:
        method = getattr(Client, name, None)
        if method is None:
            return
        operation = node.args[0] if node.args and name in ("submit", "batch") else None
        options = names_of(getattr(Client, str(operation.value))) if isinstance(operation, ast.Constant) else set()
        self.accepts(method, node, [None], options if name == "submit" else set())
        for each in node.keywords:
            if name == "batch" and each.arg == "parameters" and isinstance(each.value, ast.Dict):
                given = {str(key.value) for key in each.value.keys if isinstance(key, ast.Constant)}
                self.wrong += [
                    f"{ast.unparse(node)}: no option {key}" for key in (given - options) | (given & OF_ONE_CALL)
                ]

    def accepts(self, called: Callable[..., Any], node: ast.Call, first: list[None], more: set[str]) -> None:
        self.checked += 1
        keywords = {each.arg: None for each in node.keywords if each.arg}
        try:
            inspect.signature(called).bind(*first, *node.args, **keywords)
        except TypeError as error:
            self.wrong.append(f"{ast.unparse(node)}: {error}")
            return
        known = names_of(called) | more
        self.wrong += [f"{ast.unparse(node)}: no option {each}" for each in keywords if each not in known]

    def bind(self, target: ast.expr, kind: Any) -> None:
        if isinstance(target, ast.Name):
            self.known[target.id] = kind  # also when it is not known: the name means something else now

    def type_of(self, node: ast.expr) -> Any:
        """The type of an expression; None where it is not known."""
        if isinstance(node, ast.Await):
            return self.type_of(node.value)
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            return attribute(self.type_of(node.value), node.attr)
        if isinstance(node, ast.Subscript):
            return element(self.type_of(node.value))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self.known.get(node.func.id) if self.known.get(node.func.id) in CLIENTS else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = self.type_of(node.func.value)
            return returned(getattr(Client, node.func.attr, None)) if owner in CLIENTS else None
        return None


def answers(kind: Any) -> bool:
    return inspect.isclass(kind) and kind.__module__.startswith("ekiben._client")


def hint(described: Any, name: str) -> Any:
    """One annotation, looked up by itself: others of the same function may be aliases that are text."""
    text = described.__annotations__.get(name)
    return eval(text, vars(sys.modules[described.__module__])) if isinstance(text, str) else text


def names_of(called: Any) -> set[str]:
    """The arguments of a function, of a class those of its making; with the keys of ``**options``."""
    called = called.__init__ if inspect.isclass(called) else called
    named = {name: each for name, each in inspect.signature(called).parameters.items() if name != "self"}
    found = {name for name, each in named.items() if each.kind is not inspect.Parameter.VAR_KEYWORD}
    for name in named.keys() - found:
        kind = hint(called, name)
        inner = get_args(kind)[0] if get_origin(kind) is Unpack else None
        found |= set(get_type_hints(inner)) if inner is not None and is_typeddict(inner) else set()
    return found


def returned(method: Any) -> Any:
    """What a method of the client gives: of ``Steps[X]``, which it is made of, X."""
    kind = hint(method, "return") if method is not None else None
    arguments = get_args(kind)
    return single(arguments[2] if len(arguments) == 3 else kind)


def single(kind: Any) -> Any:
    """Of what may be None the rest; of other choices nothing is known."""
    if get_origin(kind) in (Union, UnionType):
        rest = [each for each in get_args(kind) if each is not NoneType]
        return rest[0] if len(rest) == 1 else None
    return kind


def element(kind: Any) -> Any:
    """Of a tuple or a page what is in it."""
    return single(get_args(kind)[0]) if get_origin(kind) in (tuple, Page) else None


def attribute(kind: Any, name: str) -> Any:
    if not answers(kind):
        return None
    member = inspect.getattr_static(kind, name, None)
    if isinstance(member, property):
        return single(hint(member.fget, "return"))
    return single(get_type_hints(kind).get(name))


def read(code: str, reader: Reader) -> None:
    tree = compile(code, "example", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    reader.visit(tree)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_client_has_what_the_page_uses(page: Path) -> None:
    reader = Reader()
    for block in blocks(page):
        read(block, reader)
    assert not reader.wrong
    assert reader.checked or "ekiben.client" not in "".join(blocks(page))


def wrongs() -> Iterator[tuple[str, str]]:
    yield "client.clasify('a.jpg')", "Client has no clasify"
    yield "client.classify('a.jpg', topk=3)", "topk"
    yield "client.auto_masks('a.jpg', points_per_sides=3)", "points_per_sides"
    yield "client.segment('a.jpg').classmap", "Segmentation has no classmap"
    yield "answer = client.masks('a.jpg', box=b)\nanswer.best[0].aray", "Mask has no aray"
    yield "for each in client.predictions():\n    each.modell", "Prediction has no modell"
    yield "client.submit('segment', 'a.jpg', top_k=1)", "no option top_k"
    yield "client.batch('segment', 'photos', parameters={'topk': 1})", "no option topk"
    yield "Client('localhost', time_out=3)", "time_out"
    yield "async def f():\n    async with AsyncClient() as c:\n        await c.wait(job, bar=True)", "bar"


@pytest.mark.parametrize(("code", "wrong"), list(wrongs()))
def test_what_the_client_does_not_have_is_found(code: str, wrong: str) -> None:
    reader = Reader()
    read("from ekiben.client import AsyncClient, Client\nclient = Client()\n" + code, reader)
    assert len(reader.wrong) == 1
    assert wrong in reader.wrong[0]
