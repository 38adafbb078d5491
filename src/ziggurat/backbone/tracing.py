"""A foreign module's forward pass, traced by torch.fx and cut into parts at its levels.

Only the modules that contain a level are traced through; a level and everything beside it stays a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["Part", "Untraceable", "cut"]


class Untraceable(Exception):
    """A forward pass that torch.fx cannot write down; the text says why."""


class Part:
    """Consecutive operations of a traced forward pass, as a function of the values alive before them.

    `part(owner, *values)` gives what the part is for (a level, say), then the values that later parts read. Modules
    and parameters are looked up in `owner.wrapped` at every call: what is moved or exchanged there counts here.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._run = _function(graph)

    def __call__(self, owner: Any, *values: Any) -> Any:
        return self._run(owner, *values)

    def paths(self) -> set[str]:
        """Paths of the modules called and of the parameters and buffers read."""
        return {str(n.target).removeprefix("wrapped.") for n in self.graph.nodes if n.op in ("call_module", "get_attr")}

    def __getstate__(self) -> list[tuple[Any, ...]]:
        # a graph is a linked list, which pickle would follow to the recursion limit
        def named(value: Any) -> Any:
            return fx.node.map_arg(value, lambda node: _Name(node.name))

        return [(n.name, n.op, n.target, named(n.args), named(n.kwargs)) for n in self.graph.nodes]

    def __setstate__(self, rows: list[tuple[Any, ...]]) -> None:
        self.graph = fx.Graph()
        made: dict[str, fx.Node] = {}

        def found(value: Any) -> Any:
            return fx.node.map_aggregate(value, lambda part: made[part] if isinstance(part, _Name) else part)

        for name, op, target, args, kwargs in rows:
            made[name] = self.graph.create_node(op, target, found(args), found(kwargs), name)
        self._run = _function(self.graph)


class _Name(str):
    """What stands for a node of a graph while it is pickled."""


def _function(graph: fx.Graph) -> Callable[..., Any]:
    # what fx.GraphModule does, without its references to modules: they would be stale once one is exchanged
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<a part traced by ziggurat>", "exec"), names)
    return names["forward"]


def cut(module: nn.Module, levels: Sequence[str], classifier: str | None, returned: bool = False) -> list[Part]:
    """The forward pass of `module`, a copy on the meta device, in the mode that it is in.

    A part for each level; with a `classifier`, one that gives what it reads; and one that gives the output. Levels are
    submodules, or, where they are `returned`, the members of the list that is the output. Raises `Untraceable`.
    """
    watched = () if returned else tuple(levels)
    tracer = _Tracer(module, (*watched, classifier) if classifier else watched)
    try:
        graph = tracer.trace(_Alone(module))
    except Untraceable:
        raise
    except Exception as error:  # user code fed with proxies raises whatever it likes
        raise Untraceable(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    nodes = list(graph.nodes)
    for node in nodes:
        _check(node)
    place = {node: i for i, node in enumerate(nodes)}
    missed = tracer.watched - tracer.outputs.keys()
    if missed:
        raise Untraceable(f"with training={module.training} it does not call {', '.join(sorted(missed))}")
    if returned:
        results = _members(nodes[-1].args[0])
        if len(results) != len(levels):
            raise Untraceable(f"with training={module.training} it does not put {len(levels)} levels in a list itself")
        stops = list(accumulate((place[node] + 1 for node in results), max))
    else:
        results = [tracer.outputs[path] for path in levels]
        stops = [place[node] + 1 for node in results]
    if classifier is not None:
        call = tracer.outputs[classifier]
        results.append(call.all_input_nodes[0])
        stops.append(place[call])
    if sorted(stops) != stops:
        raise Untraceable(f"with training={module.training} the levels run in another order")

    def alive(stop: int, done: int) -> list[fx.Node]:
        """Values made before `stop` that are read from there on, when the first `done` results are out."""
        later = set(results[done:])
        return [n for n in nodes[:stop] if n in later or any(place[user] >= stop for user in n.users)]

    parts = []
    start, before = 1, [nodes[0]]
    for done, (result, stop) in enumerate(zip(results, stops), 1):
        after = alive(stop, done)
        parts.append(_part(nodes[start:stop], before, (result, *after)))
        start, before = stop, after
    parts.append(_part(nodes[start:-1], before, nodes[-1].args[0]))
    return parts


def _members(output: Any) -> list[fx.Node]:
    """The values in the list that a forward pass returns; none where it is no list of values."""
    is_list = isinstance(output, list | tuple) and all(isinstance(member, fx.Node) for member in output)
    return list(output) if is_list else []


def _part(nodes: Sequence[fx.Node], before: Sequence[fx.Node], output: Any) -> Part:
    graph = fx.Graph()
    new = {node: graph.placeholder(node.name) for node in before}
    for node in nodes:
        new[node] = graph.node_copy(node, new.__getitem__)
    graph.output(fx.node.map_arg(output, new.__getitem__))
    return Part(graph)


def _check(node: fx.Node) -> None:
    """Raises `Untraceable` for a value of the meta copy that was written into the graph."""
    if node.op == "get_attr" and not str(node.target).startswith("wrapped."):
        raise Untraceable("it computes with a tensor that is neither parameter nor buffer")

    def look(value: Any) -> Any:
        if isinstance(value, torch.device | Tensor):
            raise Untraceable("it asks for the device of a parameter")
        return value

    fx.node.map_aggregate((node.args, node.kwargs), look)


class _Alone(nn.Module):
    """A module called with an image and nothing else, so that its other arguments keep their defaults."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.training = wrapped.training

    def forward(self, x: Tensor) -> Any:
        return self.wrapped(x)


class _Tracer(fx.Tracer):
    """Traces through the modules that contain a path in `watched`, and notes what the watched ones put out."""

    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, watched: Sequence[str]) -> None:
        super().__init__()
        self.watched = set(watched)
        self.path_of = {id(module.get_submodule(path)): path for path in watched}
        inner = {".".join(path.split(".")[:n]) for path in watched for n in range(path.count(".") + 1)}
        self.opened = {id(module.get_submodule(path)) for path in ("", *inner)}
        self.outputs: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self.opened

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        path = self.path_of.get(id(m))
        if path is not None:
            if path in self.outputs or not isinstance(output, fx.Proxy):
                raise Untraceable(f"with training={m.training} it calls {path} twice, or for no tensor")
            self.outputs[path] = output.node
        return output
