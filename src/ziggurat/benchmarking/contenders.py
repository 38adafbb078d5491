"""The contenders: ways to have one view of one network computed, ours and those that others assemble.

Each is made in a process of its own (`worker`) from a `Case`, which says what is computed, and a `Kit`, where weights,
images and right answers lie in files, the same for all.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .. import registry
from ..errors import BadArgument, MissingExtra
from ..factory import create_model
from ..optimization.openvino_conversion import import_openvino, unreported
from ..optimization.optimizing import BACKENDS
from ..optimization.program import PRECISIONS, Unavailable
from ..optimization.timing import interleaved
from ..packages import is_installed, require_packages
from ..weights.adapting import without_joints, without_prefix

__all__ = ["OURS", "PEERS", "Built", "Case", "Kit", "assembled", "check_backend", "import_first", "network_of", "normalised", "peers_of", "split"]

VIEWS = ("classify", "embed", "pyramid")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Case:
    """What is computed: `view` of `network` for `batch` images of `size` pixels a side (None: the network's own) in `precision`.

    With `pixels`, images are bytes, and normalising them is part of the work: ours have it in the graph, in torch where a
    network is run as it is, and peers do it in torch before their runtime. A network named with a tag ('resnet50.a1_in1k')
    has its published weights, any other random ones. Raises `BadArgument`.
    """

    network: str
    view: str = "classify"
    batch: int = 8
    precision: str = "fp32"
    size: int | None = None
    pixels: bool = False

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise BadArgument(f"view={self.view!r}: what is timed are {', '.join(VIEWS)}")
        if self.precision not in PRECISIONS:
            raise BadArgument(f"precision={self.precision!r}: there are {', '.join(PRECISIONS)}")
        if self.batch < 1 or (self.size is not None and self.size < 1):
            raise BadArgument(f"batch={self.batch}, size={self.size}: both are numbers of 1 or more")

    @property
    def architecture(self) -> str:
        return registry.split_model_name_tag(self.network)[0]

    def __str__(self) -> str:
        at = f" at {self.size} px" if self.size else ""
        return f"{self.network}, {self.view}, batch {self.batch}{at}, {self.precision}" + (", from bytes" if self.pixels else "")


@dataclass(frozen=True)
class Kit:
    """What all contenders of a case share, paths as text: made once by `references.prepare`."""

    weights: str  # a safetensors file, names as in ours
    images: str  # a safetensors file: 'images' (B C H W), and 'output_0', 'output_1' ... of ours in eager fp32
    size: int  # pixels a side
    arguments: dict[str, Any] = field(default_factory=dict)  # of create_model, ours and timm's alike
    strides: tuple[int, ...] = ()  # of a pyramid
    indices: tuple[int, ...] = ()  # of the levels that a pyramid has, one a stride
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    flops: int = 0  # of the batch, two a multiply-add
    layers: tuple[tuple[int, int], ...] = ()  # see costs.Layer, of the batch


@dataclass
class Built:
    """A contender that is ready: `call()` computes the batch; `note` says what it settled on."""

    call: Callable[[], Any]
    note: str = ""

    def outputs(self) -> list[Tensor]:
        """The outputs, in the order of the levels."""
        return [torch.as_tensor(leaf).float().cpu() for leaf in tree_leaves(self.call())]


def normalised(images: Tensor, kit: Kit) -> Tensor:
    """Bytes as users normalise them: to 0..1, less the mean, by the standard deviation."""
    mean, std = (images.new_tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in (kit.mean, kit.std))
    return (images.float() / 255 - mean) / std


def arguments_of(case: Case, kit: Kit, **levels: tuple[int, ...]) -> dict[str, Any]:
    """What `create_model`, ours or timm's, is given for the view; a pyramid is of `levels`, which each library names its way."""
    own: dict[str, dict[str, Any]] = {"classify": {}, "embed": {"num_classes": 0}, "pyramid": {"features_only": True, **levels}}
    return own[case.view] | kit.arguments


# ---------------------------------------------------------------- ours


def network_of(case: Case, kit: Kit, device: str = "cpu") -> nn.Module:
    """Our network for the case, in evaluation, with what the view needs alone; without its weights on the meta device."""
    model: nn.Module = create_model(case.architecture, device=device, **arguments_of(case, kit, out_strides=kit.strides))
    if device != "meta":
        fill(model.state_dict(), kit)
    return model.eval().requires_grad_(False)


def fill(own: Mapping[str, Tensor], kit: Kit) -> None:
    """Writes the weights of the kit into tensors of these names."""
    from safetensors import safe_open

    with safe_open(kit.weights, framework="pt") as weights:
        lacking = own.keys() - set(weights.keys())
        if lacking:
            raise BadArgument(f"{len(lacking)} of its tensors are not among our weights: {', '.join(sorted(lacking)[:3])}")
        for name, tensor in own.items():
            tensor.copy_(weights.get_tensor(name))


def eager(case: Case, kit: Kit, images: Tensor, how: Place) -> Built:
    """The network as `create_model` gives it."""
    return in_torch(network_of(case, kit).to(how.device), case, kit, images, how)


def optimized(case: Case, kit: Kit, images: Tensor, how: Place, backend: str = "auto") -> Built:
    """`ziggurat.optimize`, the choice made anew."""
    from .. import optimize

    is_random = not registry.split_model_name_tag(case.network)[1]
    model = network_of(case, kit).to(how.device)
    images = images.to(how.device)
    # quantising leaves random weights further from where they were than trained ones, and speed is asked for
    tolerance = 1.0 if case.precision == "int8" and is_random else None
    fast = optimize(model, images, backend, case.precision, tolerance, calibration=images if case.precision == "int8" else None,
                    threads=how.threads, verbose=False, cache=False)

    def call() -> Any:
        outputs = fast(images)
        if how.is_cuda:
            torch.cuda.synchronize(how.device)
        return outputs

    return Built(call, str(fast.recipe))


# ---------------------------------------------------------------- timm, as its users assemble it


def timm_network(case: Case, kit: Kit) -> nn.Module:
    """timm's network with our weights; of a pyramid, the levels that ours has."""
    import timm

    model: nn.Module = timm.create_model(case.architecture, **arguments_of(case, kit, out_indices=kit.indices))
    ours = create_model(case.architecture, device="meta", **kit.arguments).state_dict()
    fill(without_joints(without_prefix(model.state_dict(), ours), ours), kit)  # timm's wrappers rename
    return model.eval().requires_grad_(False)


def timm_eager(case: Case, kit: Kit, images: Tensor, how: Place, layout: torch.memory_format = torch.contiguous_format) -> Built:
    model = timm_network(case, kit).to(how.device).to(memory_format=layout)
    return in_torch(model, case, kit, images, how, layout)


def timm_compile(case: Case, kit: Kit, images: Tensor, how: Place, mode: str = "reduce-overhead") -> Built:
    """torch.compile: on a CPU with Inductor's freezing, on a GPU in channels_last with CUDA graphs."""
    model = timm_network(case, kit)
    if how.is_cuda:
        layout = torch.channels_last
        return in_torch(model.to(how.device).to(memory_format=layout), case, kit, images, how, layout,
                        partial(torch.compile, mode=mode, dynamic=False))
    return in_torch(model, case, kit, images, how, compiled=partial(torch.compile, options={"freezing": True}, dynamic=False))


def timm_onnxruntime(case: Case, kit: Kit, images: Tensor, how: Place) -> Built:
    """torch.onnx.export and a session, both as they are by default."""
    require_packages("timm-onnxruntime", ["onnxruntime", "onnxscript"], "onnx")
    import onnxruntime

    provider = "CUDAExecutionProvider" if how.is_cuda else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise Unavailable(f"this ONNX Runtime has no {provider}; pip install onnxruntime-gpu")
    if case.precision == "bf16":
        raise Unavailable("NumPy, in which ONNX Runtime takes images, has no bf16")
    model = timm_network(case, kit).to(DTYPES[case.precision])
    example = (normalised(images, kit) if case.pixels else images).to(DTYPES[case.precision])
    path = how.folder / "timm.onnx"
    torch.onnx.export(model, (example,), str(path), dynamo=True, input_names=["images"], verbose=False)
    options = onnxruntime.SessionOptions()
    if how.threads:
        options.intra_op_num_threads = how.threads
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    ready = example.numpy()
    if case.pixels:
        return Built(lambda: session.run(None, {"images": normalised(images, kit).to(example.dtype).numpy()}))
    return Built(lambda: session.run(None, {"images": ready}))


def timm_openvino(case: Case, kit: Kit, images: Tensor, how: Place) -> Built:
    """openvino.convert_model and compile_model, both as they are by default."""
    if how.is_cuda:
        raise Unavailable("OpenVINO computes on no GPU of NVIDIA's")
    openvino = import_openvino()
    core = openvino.Core()
    if case.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable("OpenVINO has no bf16 on this CPU, which lacks the instructions")
    if case.precision == "fp16" and "FP16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable("OpenVINO has no fp16 on this CPU, which lacks the instructions")
    example = normalised(images, kit) if case.pixels else images
    model = openvino.convert_model(timm_network(case, kit), example_input=example, input=[tuple(example.shape)])
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "fp16": "f16"}.get(case.precision, case.precision)}
    if how.threads:
        options["INFERENCE_NUM_THREADS"] = how.threads
    compiled = core.compile_model(model, "CPU", options)
    ready = example.numpy()

    def call() -> list[Any]:
        found = compiled(normalised(images, kit).numpy() if case.pixels else ready)
        return [found[index] for index in range(len(compiled.outputs))]

    return Built(call)


# ---------------------------------------------------------------- what both use


@dataclass(frozen=True)
class Place:
    """Where a contender computes: `threads` None leaves them to the runtime; `folder` is for its files, and goes afterwards."""

    device: str
    threads: int | None
    folder: Path

    @property
    def is_cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"


def in_torch(
    model: nn.Module, case: Case, kit: Kit, images: Tensor, how: Place, layout: torch.memory_format = torch.contiguous_format,
    compiled: Callable[[nn.Module], Callable[[Tensor], Any]] | None = None,
) -> Built:
    """`model` run by torch, or by what `compiled` makes of it; below fp32 the faster of autocast and weights of that type."""
    dtype = DTYPES.get(case.precision)
    if dtype is None:
        raise Unavailable("torch has no int8 of its own to run it in")
    images = images.to(how.device)

    def ready(model: nn.Module, weights: torch.dtype) -> Callable[[], Any]:
        call = compiled(model) if compiled else model
        fixed = None if case.pixels else images.to(weights, memory_format=layout)

        @torch.inference_mode()
        def once() -> Any:
            given = fixed if fixed is not None else normalised(images, kit).to(weights, memory_format=layout)
            if how.is_cuda and compiled:
                torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(torch.device(how.device).type, dtype, enabled=weights != dtype):
                outputs = call(given)
            if how.is_cuda:
                torch.cuda.synchronize(how.device)
            return outputs

        return once

    if dtype == torch.float32:
        return Built(ready(model, dtype))
    ways = {"autocast": ready(model, torch.float32), f"{case.precision} weights": ready(copy.deepcopy(model).to(dtype), dtype)}
    seconds = {name: min(found) for name, found in interleaved(ways, 2).items()}
    fastest = min(seconds, key=seconds.__getitem__)
    return Built(ways[fastest], fastest)


def import_first(backend: str) -> None:
    """Imports what the contender is made with, if it is installed, so that this is not in the time that making it takes."""
    for word, packages in (("timm", ["timm"]), ("onnxruntime", ["onnxruntime", "onnxscript"]), ("openvino", ["openvino"])):
        for package in packages if word in backend else []:
            if is_installed(package):
                with unreported("openvino"):
                    importlib.import_module(package)


Make = Callable[[Case, Kit, Tensor, Place], Built]

OURS: dict[str, Make] = {
    "eager": eager,
    "optimize": optimized,
    "optimize-eager": partial(optimized, backend="eager"),
    **{name: partial(optimized, backend=name) for name in BACKENDS if name != "eager"},
}
PEERS: dict[str, Make] = {
    "timm-eager": timm_eager,
    "timm-channels_last": partial(timm_eager, layout=torch.channels_last),
    "timm-compile": timm_compile,
    "timm-autotune": partial(timm_compile, mode="max-autotune"),
    "timm-onnxruntime": timm_onnxruntime,
    "timm-openvino": timm_openvino,
}
ON_GPU_ALONE = frozenset({"timm-autotune"})


def peers_of(name: str) -> list[str]:
    """The peers that are meant by 'timm', all that run on a CPU, or by the name of one."""
    return [peer for peer in PEERS if peer not in ON_GPU_ALONE] if name == "timm" else [name]


def split(backend: str) -> tuple[str, str | None]:
    """The name of a contender, and the precision behind an @ in it, which is then its own and not the case's."""
    name, _, precision = backend.partition("@")
    return name, precision or None


def check_backend(backend: str) -> None:
    """Raises `BadArgument` for what is no contender, and `MissingExtra` for a peer whose package is not installed."""
    name, precision = split(backend)
    if precision not in (None, *PRECISIONS):
        raise BadArgument(f"{backend}: behind the @ stands one of {', '.join(PRECISIONS)}")
    if name not in OURS and name not in PEERS:
        raise BadArgument(f"no backend {name!r}: ours are {', '.join(OURS)}; peers are {', '.join(PEERS)}")
    if name in PEERS and not is_installed("timm"):
        raise MissingExtra(f"{name} is timm's, which is not installed: pip install timm")


def assembled(
    backend: str, case: Case, kit: Kit, images: Tensor, device: str, threads: int | None, folder: str | os.PathLike[str]
) -> Built:
    """The contender called `backend`, made; whatever hinders it is raised."""
    backend, precision = split(backend)
    case = replace(case, precision=precision or case.precision)
    if case.precision == "int8" and backend in PEERS:
        raise Unavailable("timm has no int8 of its own")
    place = Place(device, threads, Path(folder))
    if backend in ON_GPU_ALONE and not place.is_cuda:
        raise Unavailable("a way for GPUs")
    return (OURS | PEERS)[backend](case, kit, images, place)
