"""The contract of a backbone as checks: for ziggurat's own families, and for yours.

    from ziggurat.testing import check_backbone
    check_backbone(lambda **kwargs: MyNet(depths=(1, 1, 1, 1), **kwargs), size=64)

Each check is a function `check_*(create, size)` that raises AssertionError: `create(**kwargs)` makes the backbone with
the arguments given, `size` is the side of a square image that it takes. `CHECKS` lists them by name.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import Backbone, group_parameters
from .backbone.measure import OUTPUT_STRIDES, run_held
from .backbone.units import named_units
from .layers.drop import DropPath

__all__ = ["CHECKS", "check_backbone"]

Create = Callable[..., Backbone]
EXPORTS_ANY_SIDE = torch.__version__ >= (2, 15)  # type: ignore[operator]


def check_backbone(create: Create, size: int = 64, skip: Collection[str] = ()) -> None:
    """Runs every check but those in `skip`; raises an AssertionError that names the check that failed."""
    for name, check in CHECKS.items():
        if name not in skip:
            try:
                check(create, size)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error


def images(model: Backbone, size: int | tuple[int, int], count: int = 2) -> Tensor:
    """A batch of random images that `model` takes, square or of a (height, width)."""
    generator = torch.Generator().manual_seed(1)
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, model.in_chans, height, width, generator=generator)


def settled(create: Create, **kwargs: Any) -> Backbone:
    """A model in evaluation, with weights and running statistics that all matter."""
    torch.manual_seed(0)
    model = create(**kwargs).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1 and not name.endswith("bias"):
                tensor.uniform_(0.5, 1.0)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


def assert_same(got: Any, wanted: Any, what: str, tolerance: float = 1e-5) -> None:
    """Equal shapes, and values within `tolerance` of the largest."""
    assert got.shape == wanted.shape, f"{what}: {tuple(got.shape)} is not {tuple(wanted.shape)}"
    largest = max(wanted.abs().max().item(), 1e-6)
    worst = (got.float() - wanted.float()).abs().max().item() / largest
    assert worst <= tolerance, f"{what} differs by {worst:.1e} of its largest value"


def check_levels(create: Create, size: int) -> None:
    """Levels on the meta device have the channels and strides declared, and modules of the names declared."""
    with torch.device("meta"):
        model = create().eval()
        x = torch.zeros(1, model.in_chans, size, size)
    run_held(model, x)
    for level in model.feature_info:
        model.get_submodule(level["module"])


@torch.no_grad()
def check_views(create: Create, size: int) -> None:
    """Scores, features, embedding, levels and pyramid agree, each alone and together."""
    model = settled(create)
    x = images(model, size)
    scores = model(x)
    features = model.forward_features(x)
    assert_same(model.forward_head(features), scores, "forward_head(forward_features(x))")
    embedding = model.embed(x)
    assert embedding.shape == (2, model.head_hidden_size), f"the embedding is {tuple(embedding.shape)}"
    assert_same(model.forward_head(features, pre_logits=True), embedding, "forward_head(pre_logits=True)")
    last, levels = model.forward_intermediates(x)
    assert_same(last, features, "the last output of forward_intermediates")
    for i, level in enumerate(levels):
        alone = model.forward_intermediates(x, indices=[i], intermediates_only=True)
        assert_same(alone[0], level, f"level {i} alone")
    together = model.extract(x, ("scores", "embedding", "pyramid"))
    assert_same(together["scores"], scores, "scores of extract")
    assert_same(together["embedding"], embedding, "embedding of extract")
    deepest = {level["reduction"]: i for i, level in enumerate(model.feature_info)}
    assert list(together["pyramid"]) == list(deepest)
    for stride, i in deepest.items():
        assert_same(together["pyramid"][stride], levels[i], f"stride {stride}")


@torch.no_grad()
def check_features_only(create: Create, size: int) -> None:
    """A pyramid up to any level holds a subset of the keys, runs nothing past it, and gives the same maps."""
    model = settled(create)
    x = images(model, size)
    levels = model.forward_intermediates(x, intermediates_only=True)
    whole = model.state_dict()
    held_before = 0
    for i in sorted({0, len(levels) // 2, len(levels) - 1}):
        part = copy.deepcopy(model)
        part.keep_levels([i])
        keys = part.state_dict()
        assert keys.keys() <= whole.keys(), "a pyramid has keys that the classifier lacks"
        assert len(keys) < len(whole), "a pyramid holds the classifier"
        assert len(keys) >= held_before
        held_before = len(keys)
        ran: list[str] = []
        with ran_modules(part, ran):
            (level,) = part(x)
        assert_same(level, levels[i], f"level {i} of a pyramid")
        idle = {n for n, m in part.named_modules() if n and any(True for _ in m.parameters(recurse=False))} - set(ran)
        assert not idle, f"held but never run for level {i}: {sorted(idle)[:3]}"
        assert list(part) == [name for name, module in part.named_children() if module is not None]
        assert len(part) == len(list(part))


@contextmanager
def ran_modules(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Collects the paths of the modules that run, and of those whose parameters others use for them."""
    hooks = []
    for name, module in model.named_modules():
        def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            inside = (f"{name}.{n}" if n else name for n, m in module.named_modules()
                      if n == "" or not list(m.children()))
            names.append(name)
            if not list(module.children()):
                names.extend(inside)
        hooks.append(module.register_forward_hook(note))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def check_classifier(create: Create, size: int) -> None:
    """The classifier can be exchanged, removed and brought back; without it the model gives the embedding."""
    model = settled(create)
    x = images(model, size)
    embedding = model.embed(x)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (2, 7)
    before = {name for name, _ in model.named_parameters()}
    model.reset_classifier(0)
    gone = before - {name for name, _ in model.named_parameters()}
    assert gone, "reset_classifier(0) removed no parameter"
    assert_same(model(x), embedding, "the output without a classifier")
    assert create(num_classes=0).eval()(x).shape == embedding.shape


@torch.no_grad()
def check_inputs(create: Create, size: int) -> None:
    """Other numbers of input channels work."""
    for channels in (1, 4):
        model = create(in_chans=channels).eval()
        assert model.in_chans == channels
        assert model(images(model, size)).shape[0] == 2


@torch.no_grad()
def check_sizes(create: Create, size: int) -> None:
    """Images of other sizes, odd and not square, give finite levels of the sizes declared, and change nothing after."""
    model = settled(create)
    x = images(model, size, count=1)
    wanted = model(x)
    for other in ((model.min_size + 1, model.min_size + 15), (size + 26, max(size - 17, model.min_size))):
        last, levels = model.forward_intermediates(images(model, other, count=1))
        for level, chs, side in zip(levels, model.feature_info.channels(), model.feature_info.sizes(*other)):
            assert tuple(level.shape) == (1, chs, *side), f"{tuple(level.shape)} for {(1, chs, *side)} at {other}"
            assert torch.isfinite(level).all(), f"a level at {other} is not finite"
        assert torch.isfinite(model.forward_head(last)).all(), f"scores at {other} are not finite"
    assert_same(model(x), wanted, "the scores after other sizes", 0)


@torch.no_grad()
def check_output_stride(create: Create, size: int) -> None:
    """Stitched output strides: at the native grid's positions the dense maps are the native maps."""
    model = settled(create)
    x = images(model, size)
    levels = model.forward_intermediates(x, intermediates_only=True)
    finest = min(model.feature_info.reduction())
    for output_stride in OUTPUT_STRIDES:
        if not model.isotropic and output_stride < finest:
            continue
        dense = create(output_stride=output_stride, output_stride_mode="stitched").eval()
        dense.load_state_dict(model.state_dict())
        maps = dense.forward_intermediates(x, intermediates_only=True)
        sizes = dense.feature_info.sizes(size, size)
        for i, (level, native) in enumerate(zip(maps, levels)):
            step = model.feature_info[i]["reduction"] // dense.feature_info[i]["reduction"]
            assert dense.feature_info[i]["reduction"] <= output_stride
            assert tuple(level.shape[2:]) == sizes[i], f"level {i} at output stride {output_stride} is {tuple(level.shape)}"
            assert_same(level[..., ::step, ::step], native, f"level {i} at output stride {output_stride}")
        default = create(output_stride=output_stride)
        assert max(default.feature_info.reduction()) <= output_stride
        assert default.state_dict().keys() == model.state_dict().keys()


def check_gradients(create: Create, size: int) -> None:
    """Every parameter gets a gradient, and gradient checkpointing changes none of them."""
    x = None
    found = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = create().train()
        model.set_grad_checkpointing(enable)
        assert model.grad_checkpointing is enable
        x = images(model, size)
        torch.manual_seed(0)
        out = model(x)
        out = sum(o.mean() for o in out) if isinstance(out, (tuple, list)) else out.mean()
        out.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    idle = [name for name, grad in found[0].items() if grad is None]
    assert not idle, f"no gradient for {idle[:3]}"
    for name, grad in found[0].items():
        recomputed = found[1][name]
        assert grad is not None
        assert recomputed is not None, f"no gradient for {name} with checkpointing"
        scale = max(grad.abs().max().item(), 1e-7)
        assert (recomputed - grad).abs().max().item() <= 1e-3 * scale + 1e-7, f"checkpointing changes {name}"


def check_freezing(create: Create, size: int) -> None:
    """`freeze(upto=level)` holds exactly the parameters that the levels up to it come from, and trains the others."""
    with torch.device("meta"):
        model = create().train()
        x = torch.zeros(2, model.in_chans, size, size)
    named = dict(model.named_parameters())
    middle = len(model.feature_info) // 2
    levels = model.forward_intermediates(x, indices=range(middle + 1), intermediates_only=True)
    found = torch.autograd.grad([level.sum() for level in levels], list(named.values()), allow_unused=True)
    needed = {name for name, gradient in zip(named, found) if gradient is not None}
    model.freeze(upto=middle)
    held = {name for name, parameter in named.items() if not parameter.requires_grad}
    assert held == needed, f"level {middle}: {sorted(held ^ needed)[:3]} are frozen or not as the levels need them"


def check_units(create: Create, size: int) -> None:
    """Units exist, do not overlap, and sort all parameters by depth; drop path grows along them."""
    model = create(drop_path_rate=0.5)
    units = named_units(model, model.units)
    assert units, f"no module matches {model.units!r}"
    names = [name for name, _ in units]
    assert not any(a != b and b.startswith(a + ".") for a in names for b in names), "units lie in units"
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert groups.keys() == {name for name, _ in model.named_parameters()}, "a parameter is in no group"
        assert len(set(groups.values())) > 1
        order = [groups[next(n for n in groups if n.startswith(unit + "."))] for unit in names]
        assert order == sorted(order), "groups do not follow depth"
    rates = [m.drop_prob for _, unit in units for m in unit.modules() if isinstance(m, DropPath)]
    assert rates == sorted(rates), "drop path does not grow with depth"
    if len(rates) > 1:
        assert 0 < rates[-1] <= 0.5


@torch.no_grad()
def check_copies(create: Create, size: int) -> None:
    """Deep copies, pickles and state-dict round trips give the same outputs, checkpointing switched on or not."""
    model = settled(create)
    x = images(model, size)
    wanted = model(x)
    assert_same(copy.deepcopy(model)(x), wanted, "a deep copy", 0)
    assert_same(pickle.loads(pickle.dumps(model))(x), wanted, "a pickle", 0)
    model.set_grad_checkpointing()
    assert_same(pickle.loads(pickle.dumps(copy.deepcopy(model)))(x), wanted, "a pickle with checkpointing", 0)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = create().eval()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same(other(x), wanted, "a state dict loaded into a new model", 0)


@torch.no_grad()
def check_formats(create: Create, size: int) -> None:
    """channels_last gives the same scores, bfloat16 runs."""
    model = settled(create)
    x = images(model, size)
    wanted = model(x)
    model.to(memory_format=torch.channels_last)
    assert_same(model(x.to(memory_format=torch.channels_last)), wanted, "channels_last", 1e-4)
    half = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert torch.isfinite(half).all(), "bfloat16 gives values that are not finite"


@torch.no_grad()
def check_compile(create: Create, size: int) -> None:
    """`torch.compile(fullgraph=True)` captures scores and pyramid for any size, and a features-only model."""
    model = settled(create)
    views = ScoresAndPyramid(model)
    torch._dynamo.reset()
    compiled = torch.compile(views, fullgraph=True, dynamic=True, backend="eager")
    for x in (images(model, (size + 9, size + 26)), images(model, size)):
        wanted = views(x)
        for name, got in compiled(x).items():
            assert_same(got, wanted[name], f"the compiled {name} at {tuple(x.shape)}")
    model.keep_levels([0])
    torch._dynamo.reset()
    x = images(model, size)
    for got, level in zip(torch.compile(model, fullgraph=True, backend="eager")(x), model(x)):
        assert_same(got, level, "the compiled features-only model")
    torch._dynamo.reset()


@torch.no_grad()
def check_export(create: Create, size: int) -> None:
    """`torch.export` takes scores and pyramid with any number, height and width of images larger than `size`.

    Smaller ones may have maps, or blocks of a map, that are one cell wide, for which PyTorch makes programs of their own.
    Before 2.15 its max pooling ties a program to the parity of each map: sides are multiples of 32 there.
    """
    model = settled(create)
    views = ScoresAndPyramid(model)
    sides: dict[int, Any] = {}
    if EXPORTS_ANY_SIDE:
        sizes = [(size + 40, size + 24), (size + 1, size + 63), (2 * size, 2 * size)]
        sides = {i: torch.export.Dim(name, min=size + 1, max=8 * size) for i, name in ((2, "height"), (3, "width"))}
    else:
        sizes = [(size + 32, size + 64), (2 * size, size + 32), (size + 96, 2 * size)]
        sides = {i: 32 * torch.export.Dim(name, min=size // 32 + 1, max=size) for i, name in ((2, "rows"), (3, "columns"))}
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(views, (images(model, sizes[0]),), dynamic_shapes=({0: batch, **sides},))
    for x in (images(model, sizes[1], count=3), images(model, sizes[2], count=1)):
        wanted = views(x)
        for name, got in program.module()(x).items():
            assert_same(got, wanted[name], f"the exported {name} at {tuple(x.shape)}", 1e-4)


class ScoresAndPyramid(nn.Module):
    """What a backbone gives, by name: 'scores', and a map for each stride."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.model.extract(x, ("scores", "pyramid"))
        return {"scores": found["scores"]} | {f"stride {s}": level for s, level in found["pyramid"].items()}


@torch.no_grad()
def check_pruning(create: Create, size: int) -> None:
    """Pruned models give the levels of whole ones, and keep their scores where only the last level is kept."""
    model = settled(create)
    x = images(model, size)
    levels = model.forward_intermediates(x, intermediates_only=True)
    last = len(levels) - 1
    kept = copy.deepcopy(model)
    kept.prune_intermediate_layers([last], prune_head=False)
    assert_same(kept(x), model(x), "scores after pruning nothing")
    for i in sorted({0, max(last - 1, 0), last}):
        part = copy.deepcopy(model)
        take = part.prune_intermediate_layers([i], prune_norm=True)
        assert take == (i,)
        assert_same(part.forward_intermediates(x, indices=take, intermediates_only=True)[0], levels[i], f"level {i}")
        part.forward_features(x)


@torch.no_grad()
def check_norm(create: Create, size: int) -> None:
    """Levels pass the final norm where `norm=True` asks for it and it fits; `feature_info` says which of them did."""
    model = settled(create)
    x = images(model, size)
    plain = model.forward_intermediates(x, norm=False, intermediates_only=True)
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    for norm, levels in ((False, plain), (True, normed)):
        part = copy.deepcopy(model)
        part.keep_levels(range(len(levels)), norm=norm)
        for i, (got, wanted) in enumerate(zip(part(x), levels)):
            assert_same(got, wanted, f"level {i} with norm={norm}")
        said = part.feature_info.get("norm")
        done = [not torch.equal(a, b) for a, b in zip(plain, levels)]
        assert said == done, f"with norm={norm} feature_info says {said}, and {done} is what happened"


CHECKS: dict[str, Callable[[Create, int], None]] = {
    "levels": check_levels,
    "views": check_views,
    "features_only": check_features_only,
    "norm": check_norm,
    "classifier": check_classifier,
    "inputs": check_inputs,
    "sizes": check_sizes,
    "output_stride": check_output_stride,
    "gradients": check_gradients,
    "freezing": check_freezing,
    "units": check_units,
    "copies": check_copies,
    "formats": check_formats,
    "compile": check_compile,
    "export": check_export,
    "pruning": check_pruning,
}
