"""Networks that were not written for ziggurat, behind the same interface."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import BadArgument
from .base import Backbone
from .observing import Form, Observed, disorder, few, meta_copy, observe
from .plan import FeatureInfo, check_choice, take_strides
from .tracing import Part, Untraceable, cut
from .units import named_units

__all__ = ["Foreign", "as_backbone"]


def as_backbone(
    module: nn.Module,
    levels: Sequence[str] | None = None,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    out_strides: int | Sequence[int] | None = None,
    in_chans: int | None = None,
    input_size: int | tuple[int, int] = 224,
    layout: str | None = None,
) -> Foreign:
    """Any `nn.Module` that takes images as a `Backbone`: torchvision's, timm's, one's own.

        model = ziggurat.as_backbone(torchvision.models.resnet50(), ["layer1", "layer2", "layer3", "layer4"])
        model.pyramid(images)       # {4: ..., 8: ..., 16: ..., 32: ...}

    - `levels`: paths of the submodules whose outputs are the levels, in the order that they run. Left out, they are
      those that the module's own `feature_info` names: a sequence of dicts with `module`, `num_chs` and `reduction`
      (timm) or `name`, `chs` and `reduction` (MindCV). Of a module with `is_rewritten = True` they are what its forward
      returns, a list of maps that `feature_info` names in order.
    - `features_only`, `out_indices`, `out_strides`: as in `create_model`.
    - `in_chans`: channels of the images, where the first convolution does not tell.
    - `input_size`: an image size that the module takes.
    - `layout`: NCHW, NHWC or NLC (tokens), where the outputs' sizes leave that open.

    Channels, strides and layouts are found by running a copy on the meta device. The module itself is taken over: its
    parameters and keys are the backbone's, and `features_only` removes what is not needed from it; hand in
    `copy.deepcopy(module)` to keep the whole. What it gives is described in `Foreign`.

    Raises `BadArgument` for a level that is no submodule, does not run just once and in the order given, or puts out
    no map, or another one than `feature_info` states; and where no input channels or size are found that the module
    takes. Warns where MindCV, which reads such a `feature_info` as a list of modules to call in order of registration,
    would compute something else than the module's forward, which is what counts here.
    """
    facts = _own_levels(module) if levels is None else []
    if facts:
        names = tuple(fact.get("module") or fact["name"] for fact in facts)
    else:
        names = tuple([levels] if isinstance(levels, str) else levels or ())
    if layout not in (None, "NCHW", "NHWC", "NLC"):
        raise BadArgument(f"layout={layout!r}: give 'NCHW', 'NHWC' or 'NLC', or leave it out")
    check_choice(features_only, out_indices, out_strides)
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    returned = bool(facts) and bool(getattr(module, "is_rewritten", False))
    observed = observe(module, names, in_chans, size, layout, returned, "feature_info" if facts else "levels")
    if facts:
        _check_statements(module, facts, names, observed.forms)
        if not returned and not any("module" in fact for fact in facts):
            _warn_of_disorder(module, names, observed)
    model = Foreign(module, names, observed)
    if features_only:
        if out_strides is not None:
            out_indices = take_strides(model.feature_info.reduction(), out_strides)
        model.keep_levels(len(names) if out_indices is None else out_indices)
    return model


class Foreign(Backbone):
    """A module taken over as a backbone: what `as_backbone` makes.

    `wrapped` is the module; its children, parameters and buffers are this backbone's own, so state-dict keys are the
    module's, in every view.

    - `forward` gives the module's own output. `embed` gives what its classifier reads: the linear layer whose output
      is the module's; or the module's output, where that is its last level pooled.
    - `forward_features` gives the last level as the module lays it out, or, where what follows reads other values too
      (a U-Net's skips), the tuple of them; `forward_head` takes it on from there.
    - `pyramid` and its kin give the sizes that the module does: where they are no whole multiples of a stride, these may
      be one less than `feature_info.sizes` says.
    - Units of gradient checkpointing are the members of levels that are sequences, and other levels made of parts.

    The forward pass is traced by torch.fx through the modules that hold a level and no further. Where that cannot be
    done (control flow that asks for values or sizes, parts under `no_grad`), `untraced` says why and levels are caught by
    hooks: then only a features-only model stops behind its last level; there are no features (what
    `forward_intermediates` gives in their place is the finished pass, which `forward_head` takes); and the backbone
    neither compiles with `fullgraph=True` nor exports. A child of the module that has the name of a method here (`embed`,
    `pool`) works, but torch.export does not find it: rename it for that.
    """

    wrapped: nn.Module

    def __init__(self, module: nn.Module, levels: Sequence[str], observed: Observed) -> None:
        path = observed.classifier
        layer = module.get_submodule(path) if path is not None else None
        super().__init__(layer.out_features if isinstance(layer, nn.Linear) else 0, observed.in_chans, global_pool="")
        # in __dict__, past nn.Module's registration: as a child it would prefix all keys
        self.__dict__["wrapped"] = module
        for kind in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[kind] = module.__dict__[kind]
        self.training = module.training
        self.min_size = 1  # the module's own affair
        self._returned = observed.returned
        self._projects = observed.projects
        self._forms = observed.forms
        for name, form in zip(levels, observed.forms):
            self.plan.mark(form.channels, name, form.stride)
        self.num_features = observed.forms[-1].channels
        self.classifiers = () if path is None else (path,)
        self._hidden = layer.in_features if isinstance(layer, nn.Linear) else None
        self._headless = False
        self.untraced: str | None = None
        self._parts: dict[bool, list[Part]] = {}
        shell = meta_copy(module)
        try:
            if observed.returned and any(form.is_overwritten for form in observed.forms):
                raise Untraceable("it changes levels in place after it made them")
            for mode in (False, True):
                self._parts[mode] = cut(shell.train(mode), levels, path, observed.returned)
            starts, otherwise = self._starts_of_parts(), len(levels) + 1
            if observed.guarded & starts.keys():
                raise Untraceable("it runs parts without gradients, or in autocast")
        except Untraceable as reason:
            self._parts, self.untraced = {}, str(reason)
            starts, otherwise = observed.starts, None
        self._when = dict(_subtrees(module, starts, otherwise, 0))
        """Modules and parameters that run as one, and the number of levels complete before they do."""

    def _finish(self) -> None:
        self.feature_info = FeatureInfo(self.plan.levels)
        self._strides, self._boundaries = tuple(form.stride for form in self._forms), ()
        self._depth = len(self.plan.levels)
        self._has_norm = False

    def _starts_of_parts(self) -> dict[str, int]:
        """Paths that the traced parts call or read, and the first level that they are read for."""
        starts: dict[str, int] = {}
        for parts in self._parts.values():
            for k, part in enumerate(parts):
                for path in part.paths():
                    starts[path] = min(k, starts.get(path, k), len(self._forms))
        return starts

    # ---------------------------------------------------------------- running it

    def trunk(self, x: Tensor, *args: Any, **inputs: Any) -> Iterator[Any]:
        height, width = x.shape[-2:]
        if self.untraced is not None:
            maps, outcome = self._watched(x)
            yield from maps
            if outcome is not None:
                yield outcome
            return
        values: list[Any] = [x]
        for form, part in zip(self._forms, self._parts[self.training]):
            level, *values = part(self, *values)
            yield form.as_map(level, height, width)
        yield values[0] if len(values) == 1 else tuple(values)

    def forward_features(self, x: Tensor, **inputs: Any) -> Any:
        """The last level as the module lays it out; with what else `forward_head` reads, as a tuple, where it does."""
        if self.untraced is not None and not self._headless:
            raise self._not_divided("forward_features")
        return super().forward_features(x, **inputs)

    def forward(self, x: Tensor) -> Any:
        if self.out_indices is not None:
            return super().forward(x)
        return self.forward_head(self._run(x, (), to_end=True)[1])

    def forward_head(self, x: Any, pre_logits: bool = False) -> Any:
        """The module's output for what `forward_features` gave; the embedding if `pre_logits`."""
        if self._headless:
            return x
        if self.untraced is not None:
            if not isinstance(x, _Outcome):
                raise self._not_divided("forward_head")
            if pre_logits and x.embedding is not None:
                return x.embedding
            output = x.output
        else:
            values = x if isinstance(x, tuple) else (x,)
            tail = self._parts[self.training][len(self._forms) :]
            if self.classifiers:
                embedding, *values = tail[0](self, *values)
                if pre_logits:
                    return embedding
            output = tail[-1](self, *values)
        if pre_logits and (self._projects or not isinstance(output, Tensor) or output.ndim != 2):
            raise BadArgument(f"{type(self.wrapped).__name__} does not end in a linear layer, nor in pooling alone, so it "
                              "has no embedding; average a level of pyramid(x) over its positions")
        return output

    def _check_outputs(self, outputs: Sequence[str]) -> None:
        if self.untraced is not None and not self._headless and "features" in outputs:
            raise self._not_divided("features")
        super()._check_outputs(outputs)

    def _watched(self, x: Tensor) -> tuple[list[Tensor], _Outcome | None]:
        """All levels held as maps, and the module's output unless the pass could end with the last of them."""
        if self._returned:
            returned = self.wrapped(x)
            return [form.as_map(level, *x.shape[-2:]) for form, level in zip(self._forms, returned)], _Outcome(returned)
        paths = self.feature_info.module_name(range(self._depth))
        maps: dict[str, Tensor] = {}
        embedding: list[Tensor] = []
        ends_there = self._stops_at is not None
        thread = threading.get_ident()

        def catch(path: str, index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                if threading.get_ident() == thread:
                    maps[path] = self._forms[index].as_map(output, *x.shape[-2:])
                    if ends_there and len(maps) == len(paths):
                        raise _Enough
            return hook

        def read(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == thread:
                embedding.append(args[0])

        hooks = [self.get_submodule(path).register_forward_hook(catch(path, i)) for i, path in enumerate(paths)]
        hooks += [self.get_submodule(path).register_forward_pre_hook(read) for path in self.classifiers]
        output: Any = None
        try:
            output = self.wrapped(x)
        except _Enough:
            ends_there = True
        finally:
            for handle in hooks:
                handle.remove()
        missed = [path for path in paths if path not in maps]
        if missed:
            raise BadArgument(f"{type(self.wrapped).__name__} did not call its level {missed[0]!r} for these images")
        return [maps[path] for path in paths], None if ends_there else _Outcome(output, *embedding[-1:])

    def _not_divided(self, what: str) -> BadArgument:
        return BadArgument(f"{type(self.wrapped).__name__} has no {what}, because its forward pass cannot be divided "
                           f"({self.untraced}); call the model, embed, pyramid, extract or forward_intermediates")

    # ---------------------------------------------------------------- what it holds

    def get_submodule(self, target: str) -> nn.Module:
        """The module at the path `target`. (A module of one's own may have a child called `pool` or `trunk`.)"""
        return self.wrapped.get_submodule(target) if target else self

    def _part(self, path: str) -> Any:
        return self.get_submodule(path)

    def train(self, mode: bool = True) -> Foreign:
        """Sets training or evaluation mode; what `freeze` has frozen stays in evaluation."""
        super().train(mode)
        self.wrapped.training = mode
        return self

    @property
    def has_embedding(self) -> bool:
        """True: whether it pools is the module's own affair."""
        return True

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh linear layer of `num_classes` in the classifier's place; 0 gives the embedding.

        Raises `BadArgument` for `global_pool`, which is the module's own affair, and where no classifier was found.
        """
        if global_pool is not None:
            raise BadArgument(f"global_pool={global_pool!r}: {type(self.wrapped).__name__} pools as it does; leave it out")
        if not self.classifiers:
            raise BadArgument(f"{type(self.wrapped).__name__} has no linear layer that gives its output, so no classifier")
        assert self._hidden is not None
        like = next(self.parameters())
        with like.device:
            fresh = nn.Linear(self._hidden, num_classes, dtype=like.dtype) if num_classes else nn.Identity()
        self._drop(self.classifiers[0], fresh.train(self.training))
        self.num_classes = num_classes

    def drop_head(self) -> None:
        """Leaves the last level as what `forward` gives."""
        self._headless = True
        self.classifiers = ()
        self.num_classes = 0

    def _head_modules(self) -> set[str]:
        return set()  # they go with all else that runs after the last level

    def _registered_after(self, path: str) -> list[str]:
        """Paths of the modules and parameters that run after the level at `path` only."""
        level = [fact["module"] for fact in self.plan.levels].index(path)
        return [name for name, when in self._when.items() if when > level and self._holds(name)]

    def _holds(self, path: str) -> bool:
        owner_path, _, name = path.rpartition(".")
        owner: Any = self.get_submodule(owner_path)
        return any(held.get(name) is not None for held in (owner._modules, owner._parameters, owner._buffers))

    def _drop(self, path: str, instead: nn.Module | None = None) -> None:
        owner_path, _, name = path.rpartition(".")
        owner = self.get_submodule(owner_path)
        for held in (owner._parameters, owner._buffers):
            if name in held:
                held[name] = None
                return
        super()._drop(path, instead)

    # ---------------------------------------------------------------- from outside, unit by unit

    @property
    def units(self) -> str:  # type: ignore[override]
        """Paths of the members, made of parts, of levels that are sequences, and of the other levels made of parts.

        As one pattern. Of a module that returns its levels, its children stand for them.
        """
        found: list[str] = []
        children = [name for name, _ in self.wrapped.named_children()]
        for path in children if self._returned else self.feature_info.module_name(range(self._depth)):
            level = self.get_submodule(path)
            is_row = isinstance(level, nn.Sequential | nn.ModuleList)
            members = [name for name, member in level.named_children() if list(member.children())] if is_row else []
            if members:
                found += [f"{path}.{name}" for name in members]
            elif list(level.children()) and not isinstance(level, nn.ModuleList):
                found.append(path)
        return "|".join(f"({part})" for part in map(_escaped, found)) or "(?!)"

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As for every backbone; raises `BadArgument` where the levels are single layers, so that nothing is saved."""
        if enable and not named_units(self, self.units):
            raise BadArgument(f"{type(self.wrapped).__name__} cannot be checkpointed by its levels, which are single "
                              "layers; name the modules that hold them as levels")
        super().set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters by depth: a group for what each level adds, and one for what follows."""
        groups: dict[str, list[str]] = {}
        for path, when in sorted(self._when.items(), key=lambda item: item[1]):
            if self._holds(path):
                groups.setdefault(f"level{when}" if when < self._depth else "head", []).append(_escaped(path))
        return {name: rf"^(?:{'|'.join(paths)})(?:\.|$)" for name, paths in groups.items()}


class _Outcome(NamedTuple):
    """The end of a forward pass that could not be divided."""

    output: Any
    embedding: Any = None


class _Enough(BaseException):
    """Leaves a forward pass behind its last level. (Not an Exception: the module may catch those.)"""


def _escaped(path: str) -> str:
    return path.replace(".", r"\.")


def _own_levels(module: nn.Module) -> list[Mapping[str, Any]]:
    """What a module's own `feature_info` says of its levels: dicts with `module` (timm) or `name` (MindCV)."""
    facts = list(getattr(module, "feature_info", None) or ())
    if not facts or not all(isinstance(fact, Mapping) and (fact.get("module") or fact.get("name")) for fact in facts):
        raise BadArgument(f"{type(module).__name__} has no feature_info that names its levels, a list of dict(chs=, "
                          "reduction=, name=); give it one, or give as_backbone levels=, paths of submodules, from "
                          f"{few([name for name, _ in module.named_children()])}")
    return facts


def _check_statements(
    module: nn.Module, facts: Sequence[Mapping[str, Any]], names: Sequence[str], forms: Sequence[Form]
) -> None:
    """Raises `BadArgument` where channels or strides that a `feature_info` states are not those of its levels."""
    for fact, name, form in zip(facts, names, forms):
        stated = (fact.get("chs", fact.get("num_chs", form.channels)), fact.get("reduction", form.stride))
        if stated != (form.channels, form.stride):
            raise BadArgument(f"feature_info of {type(module).__name__}: {name!r} is said to have {stated[0]} channels at "
                              f"stride {stated[1]}; it puts out {form.channels} at stride {form.stride}. Correct it")


def _warn_of_disorder(module: nn.Module, levels: Sequence[str], observed: Observed) -> None:
    found = disorder(module, bool(getattr(module, "flatten_sequential", False)), levels[-1], observed.calls)
    if found:
        warnings.warn(
            f"{type(module).__name__} does not call each of its modules once and in order of registration: "
            f"{'; '.join(found)}. Its own forward is what runs here, and right; MindCV would run the modules as they are "
            "registered",
            stacklevel=4,
        )


def _subtrees(
    module: nn.Module, starts: dict[str, int], otherwise: int | None, inherited: int, prefix: str = ""
) -> Iterator[tuple[str, int]]:
    """Paths of the largest modules whose parts all start together, and of the parameters beside them, with the start.

    What is not in `starts` starts at `otherwise`, or with the module that holds it.
    """
    unknown = inherited if otherwise is None else otherwise
    for name in (*module._parameters, *module._buffers):
        yield prefix + name, starts.get(prefix + name, unknown)
    for name, child in module.named_children():
        path = prefix + name
        inside = {when for other, when in starts.items() if other == path or other.startswith(path + ".")}
        if len(inside) < 2:
            yield path, inside.pop() if inside else unknown
        else:
            yield from _subtrees(child, starts, otherwise, starts.get(path, unknown), path + ".")
