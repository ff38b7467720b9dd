"""The operators of a SavedModel that TensorFlow runs when it loads the model or answers with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
RESTORING = frozenset({"RestoreV2"})
"""What else the part of a graph does that fills the variables."""


def refused_operators(meta: Any, is_allowed: Callable[[str], bool]) -> list[str]:
    """Operators that are not allowed among those that are reached, sorted. ``meta``: a MetaGraphDef.

    Reached are the functions of its objects, signatures, and what initialises and restores; not what saves.
    """
    graph = _Graph(meta.graph_def)
    wanted = {tensor.name for signature in meta.signature_def.values() for tensor in signature.outputs.values()}
    for key in _INIT_COLLECTIONS:
        if key in meta.collection_def:
            wanted.update(meta.collection_def[key].node_list.value)
    run = graph.reached(wanted, meta.object_graph_def.concrete_functions)
    restored = graph.reached({meta.saver_def.restore_op_name}, ())
    refused = {operator for operator in run if not is_allowed(operator)}
    refused.update(operator for operator in restored - RESTORING if not is_allowed(operator))
    return sorted(refused)


class _Graph:
    def __init__(self, graph_def: Any) -> None:
        self._nodes = {node.name: node for node in graph_def.node}
        self._functions = {function.signature.name: function for function in graph_def.library.function}

    def reached(self, tensors: Iterable[str], functions: Iterable[str]) -> set[str]:
        """Operators on which ``tensors`` depend, and of ``functions``, with all that they call."""
        operators: set[str] = set()
        names, calls = {_node_name(tensor) for tensor in tensors}, set(functions)
        seen: set[str] = set()
        called: set[str] = set()
        while names or calls:
            nodes = []
            if names:
                seen.add(name := names.pop())
                if name in self._nodes:
                    nodes = [self._nodes[name]]
                    names.update(_node_name(each) for each in nodes[0].input if _node_name(each) not in seen)
            else:
                called.add(name := calls.pop())
                if name in self._functions:
                    nodes = list(self._functions[name].node_def)
            for node in nodes:
                if node.op not in self._functions:
                    operators.add(node.op)
                calls.update({node.op, *_functions_of(node)} - called)
        return operators


def _node_name(tensor: str) -> str:
    return tensor.lstrip("^").split(":")[0]


def _functions_of(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)
