"""Rewrites of an ONNX graph into operators for which ONNX Runtime has faster code on a CPU; the numbers stay.

Its convolutions compute in blocks of channels (NCHWc). Maps stay in that order through pooling, sums and products of one
shape, and are put into the usual order and back for everything else, a pass over memory each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["rewrite"]

BLOCK = 8  # channels, on a CPU with AVX2
SUMMANDS = 4  # at most, for sums as additions


def rewrite(model: ir.Model) -> None:
    """Rewrites `model` in place."""
    graph = model.graph
    for node in list(graph):
        for rule in RULES.get(node.op_type, ()):
            if rule(graph, node):
                break
    model.opset_imports.setdefault("com.microsoft", 1)


def _mean_of_maps(graph: ir.Graph, node: ir.Node) -> bool:
    """The mean over height and width, as pooling; it keeps the order of channels."""
    shape, axes = _shape(node.inputs[0]), _constant(node, 1)
    if len(shape) != 4 or axes is None or sorted(axis % 4 for axis in axes.ravel()) != [2, 3] or not _flag(node, "keepdims", 1):
        return False
    _replace(graph, node, [_node("GlobalAveragePool", [node.inputs[0]])])
    return True


def _gate(graph: ir.Graph, node: ir.Node) -> bool:
    """A map (B C H W) times a number a channel (B C 1 1), as in squeeze and excitation: the numbers are spread out first.

    Then it is a product of one shape, and spreading out takes a tenth of the time of the two changes of order saved.
    """
    for x, gate in (node.inputs, node.inputs[::-1]):
        size, shape = _shape(x), _shape(gate)
        if len(size) == len(shape) == 4 and gate is not None and gate.const_value is None and shape[2:] == [1, 1] != size[2:]:
            if None in size[1:] or shape[1] != size[1] or (size[1] or 0) % BLOCK:
                return False
            break
    else:
        return False
    factors = _initializer(graph, node, "factors", np.array([1, 1, *size[2:]], np.float32))
    spread = _node("Resize", [gate, None, factors], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    _replace(graph, node, [spread, _node("Mul", [x, spread.outputs[0]])])
    return True


def _small_sum(graph: ir.Graph, node: ir.Node) -> bool:
    """The sum of two to four slices, as in split attention: added up, not reduced at a stride."""
    shape, axes = _shape(node.inputs[0]), _constant(node, 1)
    if axes is None or axes.size != 1 or len(shape) < 3 or _flag(node, "keepdims", 1):
        return False
    axis = int(axes.ravel()[0]) % len(shape)
    summands = shape[axis]
    if axis == len(shape) - 1 or summands is None or not 2 <= summands <= SUMMANDS:
        return False
    split = _node("Split", [node.inputs[0]], outputs=summands, axis=axis, num_outputs=summands)
    place = _initializer(graph, node, "axis", np.array([axis], np.int64))
    slices = [_node("Squeeze", [output, place]) for output in split.outputs]
    nodes, total = [split, *slices], slices[0]
    for other in slices[1:]:
        total = _node("Add", [total.outputs[0], other.outputs[0]])
        nodes.append(total)
    _replace(graph, node, nodes)
    return True


def _attention(graph: ir.Graph, node: ir.Node) -> bool:
    """Attention without a mask, as ONNX Runtime's own operator, which does not write the attention map to memory."""
    queries, keys, values = (_shape(value) for value in node.inputs[:3])
    if any(value is not None for value in node.inputs[3:]) or len(node.outputs) > 1 or not len(queries) == len(keys) == len(values) == 4:
        return False
    heads, width = queries[1], queries[3]
    if heads is None or width is None or any((other[1], other[3]) != (heads, width) for other in (keys, values)):
        return False
    if _flag(node, "is_causal", 0) or (node.attributes.get_float("softcap") or 0) > 0:
        return False
    flat = _initializer(graph, node, "flat", np.array([0, 0, heads * width], np.int64))
    four = _initializer(graph, node, "heads", np.array([0, 0, heads, width], np.int64))
    nodes, rows = [], []
    for value in node.inputs[:3]:
        turned = _node("Transpose", [value], perm=[0, 2, 1, 3])
        rows.append(_node("Reshape", [turned.outputs[0], flat]))
        nodes += [turned, rows[-1]]
    scale = node.attributes.get_float("scale") or width**-0.5
    attended = _node("MultiHeadAttention", [row.outputs[0] for row in rows], domain="com.microsoft", num_heads=heads, scale=scale)
    split = _node("Reshape", [attended.outputs[0], four])
    _replace(graph, node, [*nodes, attended, split, _node("Transpose", [split.outputs[0]], perm=[0, 2, 1, 3])])
    return True


RULES = {"ReduceMean": (_mean_of_maps,), "Mul": (_gate,), "ReduceSum": (_small_sum,), "Attention": (_attention,)}


# ---------------------------------------------------------------- of the graph


def _shape(value: ir.Value | None) -> list[int | None]:
    """The sizes of a value, None for those that are free; nothing where it is not known."""
    if value is None or value.shape is None:
        return []
    return [size if isinstance(size, int) else None for size in value.shape]


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _flag(node: ir.Node, name: str, default: int) -> bool:
    return bool(node.attributes.get_int(name, default))


def _initializer(graph: ir.Graph, node: ir.Node, name: str, array: np.ndarray) -> ir.Value:
    import onnx_ir as ir

    name = f"{node.outputs[0].name}/{name}"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    graph.initializers[name] = value
    return value


def _node(kind: str, inputs: Sequence[ir.Value | None], outputs: int = 1, domain: str = "", **attributes: Any) -> ir.Node:
    import onnx_ir as ir

    return ir.node(kind, inputs, attributes, domain=domain, num_outputs=outputs)


def _replace(graph: ir.Graph, node: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Puts `nodes` in the place of `node`; the last one's output is what the others read as `node`'s."""
    import onnx_ir as ir

    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.shape, new.type = old.shape, old.type
    graph.insert_before(node, nodes)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
    graph.remove(node, safe=True)
