"""Which operators of a SavedModel run when it is loaded or answers; its saver's do not."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from tensorboard.compat.proto.meta_graph_pb2 import MetaGraphDef

from export.keras.reached_operators import refused_operators

ALLOWED = {"Placeholder", "Relu", "StatefulPartitionedCall", "If", "NoOp", "Identity", "AssignVariableOp"}

# As TensorFlow 2 writes it: the signature calls "serve", which calls "inner"; saving and restoring are apart.
PLAIN = """
graph_def {
  node { name: "images" op: "Placeholder" }
  node { name: "answer" op: "StatefulPartitionedCall" input: "images"
         attr { key: "f" value { func { name: "serve" } } } }
  node { name: "init" op: "NoOp" }
  node { name: "save" op: "StatefulPartitionedCall" attr { key: "f" value { func { name: "saving" } } } }
  node { name: "restore" op: "StatefulPartitionedCall" attr { key: "f" value { func { name: "restoring" } } } }
  library {
    function { signature { name: "serve" }
      node_def { name: "r" op: "Relu" } node_def { name: "c" op: "If"
        attr { key: "branches" value { list { func { name: "inner" } func { name: "inner" } } } } } }
    function { signature { name: "inner" } node_def { name: "i" op: "Identity" } }
    function { signature { name: "resource" } node_def { name: "n" op: "NoOp" } }
    function { signature { name: "saving" } node_def { name: "s" op: "SaveV2" } }
    function { signature { name: "restoring" } node_def { name: "r" op: "RestoreV2" }
      node_def { name: "a" op: "AssignVariableOp" } }
  }
}
saver_def { save_tensor_name: "save:0" restore_op_name: "restore" }
signature_def { key: "serving_default" value { outputs { key: "y" value { name: "answer:0" } } } }
object_graph_def { concrete_functions { key: "resource" value {} } }
"""


def refused(graph: str) -> list[str]:
    meta: Any = text_format.Parse(graph, MetaGraphDef())
    return refused_operators(meta, ALLOWED.__contains__)


def test_saving_and_restoring_are_no_part_of_an_answer() -> None:
    assert refused(PLAIN) == []


@pytest.mark.parametrize(
    ("place", "hostile"),
    [
        ('name: "r" op: "Relu"', 'name: "r" op: "SaveV2"'),
        ('name: "i" op: "Identity"', 'name: "i" op: "SaveV2"'),
        ('name: "n" op: "NoOp"', 'name: "n" op: "SaveV2"'),  # what makes or fills a resource
        ('name: "images" op: "Placeholder"', 'name: "images" op: "SaveV2"'),
        ('name: "a" op: "AssignVariableOp"', 'name: "a" op: "SaveV2"'),
        ('op: "If"', 'op: "saving"'),  # a function as operator
        ('func { name: "serve" }', 'func { name: "saving" }'),
        ("signature_def {", 'signature_def { key: "init" value { outputs { value { name: "save" } } } } '
         "signature_def {"),
        ("signature_def {", 'collection_def { key: "legacy_init_op" value { node_list { value: "save" } } } '
         "signature_def {"),
        ('input: "images"', 'input: "images" input: "^save"'),
    ],
)  # fmt: skip
def test_what_loading_or_an_answer_runs_is_found(place: str, hostile: str) -> None:
    assert PLAIN.count(place) == 1
    assert refused(PLAIN.replace(place, hostile)) == ["SaveV2"]


def test_restoring_is_no_answer_and_circles_end() -> None:
    assert refused(PLAIN.replace('name: "i" op: "Identity"', 'name: "i" op: "RestoreV2"')) == ["RestoreV2"]
    assert refused(PLAIN.replace('name: "i" op: "Identity"', 'name: "i" op: "serve"')) == []
