"""Programs of torch: what is tried, in whose threads it is computed, and that it is the network still."""

from __future__ import annotations

import gc
import threading
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ziggurat
from ziggurat.optimization import torch_programs
from ziggurat.optimization.program import Recipe, Unavailable
from ziggurat.optimization.torch_programs import build, recipes
from ziggurat.view import View, largest_error


class Tiny(nn.Module):
    """Two convolutions, with what its forward pass saw."""

    def __init__(self, fails=None):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 1)
        self.fails, self.seen = fails, []

    def forward(self, images):
        if self.fails is not None:
            raise self.fails
        if not torch.compiler.is_compiling():
            self.seen.append((threading.current_thread().name, torch.get_num_threads(), tuple(images.shape)))
        maps = self.stem(images).relu()
        return self.head(maps), maps.mean((2, 3))


def images_of(batch, size=32, seed=0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def view_of(name, images, view="pyramid"):
    torch.manual_seed(0)
    return View(ziggurat.create_model(name), view).describe(images)


def outputs_of(view, images):
    with torch.no_grad():
        return view(images)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def never_twice():
    """Whatever is compiled is compiled when it is built."""
    yield lambda: torch.compiler.set_stance("fail_on_recompile")
    torch.compiler.set_stance("default")


# -------------------------------------------------------------------- what is tried


@pytest.mark.parametrize("batch, threads, parts", [
    (8, 2, [4, 2]), (2, 2, [1]), (10, 2, [5, 1]), (64, 4, [16, 4]), (10, 4, [1]), (6, 4, [2, 1]), (1, 4, []), (8, 1, []),
])
def test_parts_give_each_thread_the_same_work(batch, threads, parts):
    view = View(Tiny(), "forward")
    found = recipes("eager", view, images_of(batch), "fp32", threads)
    assert [recipe.part for recipe in found if recipe.layout == "channels_last"] == [*parts, 0]
    assert [recipe.part for recipe in found if recipe.layout == "contiguous"] == [*parts, 0][:1]
    compiled = recipes("compile", view, images_of(batch), "fp32", threads)
    assert [(recipe.part, recipe.layout) for recipe in compiled] == [((parts or [0])[0], "channels_last")]


def test_a_network_of_tokens_has_no_layout_to_choose():
    images = images_of(2, 160)
    found = recipes("eager", view_of("test_vit", images, "embed"), images, "fp32", 2)
    assert [recipe.layout for recipe in found] == ["contiguous"] * len(found)


def test_what_cannot_be_says_what_can(monkeypatch):
    view, images = View(Tiny(), "forward"), images_of(2)
    with pytest.raises(Unavailable, match=r"'eager' has no int8; take backend='openvino' or 'onnxruntime'"):
        recipes("eager", view, images, "int8", 2)
    with pytest.raises(Unavailable, match=r"'regional' compiles the repeated units of a network, and Tiny names none"):
        recipes("regional", view, images, "fp32", 2)
    monkeypatch.setenv("CXX", "no-such-compiler")
    for backend in ("compile", "regional", "aoti"):
        with pytest.raises(Unavailable, match=f"'{backend}' needs a C\\+\\+ compiler, and there is no 'no-such-compiler'"):
            recipes(backend, view, images, "fp32", 2)
    assert recipes("eager", view, images, "fp32", 2)


# -------------------------------------------------------------------- eager


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_every_recipe_is_the_network(name):
    images = images_of(4, 160 if name == "test_vit" else 64)
    view = view_of(name, images)
    expected = outputs_of(view, images)
    for recipe in recipes("eager", view, images, "fp32", 2):
        program = build(view, images, recipe, 2)
        outputs = program(images)
        assert [output.shape for output in outputs] == [output.shape for output in expected]
        assert largest_error(outputs, expected) < 1e-5
        if recipe.layout == "channels_last":
            assert all(output.is_contiguous(memory_format=torch.channels_last) for output in outputs)
        kept = [output.clone() for output in outputs]
        program(images_of(4, images.shape[-1], seed=1))
        assert all(map(torch.equal, outputs, kept))
        program.close()


def test_parts_are_computed_in_a_thread_each_and_the_callers_number_of_threads_stays():
    model = Tiny()
    view, images = View(model, "forward").describe(images_of(6)), images_of(6)
    program = build(view, images, Recipe("eager", "fp32", 2, "contiguous"), 3)
    model.seen.clear()
    torch.set_num_threads(2)  # what the threads of the pool were told lasts
    program(images)
    assert all(name.startswith("ziggurat-eager") for name, _, _ in model.seen)
    assert [(count, shape[0]) for _, count, shape in model.seen] == [(1, 2)] * 3
    assert torch.get_num_threads() == 2
    started = []
    thread = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert started == [2]
    program.close()


def test_the_whole_batch_is_computed_by_the_threads_asked_for():
    model = Tiny()
    view, images = View(model, "forward").describe(images_of(4)), images_of(4)
    program = build(view, images, Recipe("eager", "fp32", 0, "contiguous"), 1)
    model.seen.clear()
    program(images)
    assert [(name, count) for name, count, _ in model.seen] == [(threading.current_thread().name, 1)]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("part", [0, 2])
def test_outputs_are_ordinary_tensors_whatever_mode_the_caller_is_in(part):
    model = Tiny()
    view, images = View(model, "forward").describe(images_of(4)), images_of(4)
    expected = outputs_of(view, images)
    program = build(view, images, Recipe("eager", "fp32", part, "channels_last"), 2)
    weight = torch.ones((), requires_grad=True)
    with torch.inference_mode():
        same = program(images.clone())
    for outputs in (same, program(images.clone().requires_grad_()), program(images.to(memory_format=torch.channels_last))):
        assert largest_error(outputs, expected) < 1e-5
        for output in outputs:
            assert not output.is_inference() and not output.requires_grad
            (output * weight).sum().backward()
    program.close()


@pytest.mark.parametrize("part", [0, 2])
def test_an_error_comes_out_and_changes_nothing(part):
    model = Tiny()
    view, images = View(model, "forward").describe(images_of(4)), images_of(4)
    program = build(view, images, Recipe("eager", "fp32", part, "contiguous"), 1 if part == 0 else 2)
    expected = outputs_of(view, images)
    model.fails = OSError("lost")
    with pytest.raises(OSError, match="lost"):
        program(images)
    assert torch.get_num_threads() == 2
    model.fails = None
    assert largest_error(program(images), expected) < 1e-5
    program.close()


@pytest.mark.parametrize("precision, dtype, error", [("bf16", torch.bfloat16, 3e-2), ("fp16", torch.float16, 4e-3)])
def test_lower_precision_is_a_copy_that_programs_share(precision, dtype, error):
    images = images_of(2)
    view = view_of("test_resnet", images)
    weights = {name: weight.clone() for name, weight in view.state_dict().items()}
    whole, parts = (build(view, images, Recipe("eager", precision, part, "channels_last"), 2) for part in (0, 1))
    assert whole.call is parts.call is not view
    assert {p.dtype for p in whole.call.model.parameters()} == {dtype}
    assert all(torch.equal(weight, weights[name]) for name, weight in view.state_dict().items())
    outputs = parts(images)
    assert {output.dtype for output in outputs} == {torch.float32}
    assert 0 < largest_error(outputs, outputs_of(view, images)) < error
    parts.close()
    assert list(torch_programs._COPIES[view]) == [(precision, "channels_last")]
    del whole, parts
    gc.collect()
    assert not torch_programs._COPIES[view]


def test_the_mean_of_pixels_is_not_rounded():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = View(ziggurat.create_model("test_resnet"), "pyramid", pixels=True).describe(images)
    program = build(view, images, Recipe("eager", "bf16", 0, "contiguous"), 2)
    assert torch.equal(program.call.mean, view.mean) and program.call.mean.dtype == torch.float32
    assert largest_error(program(images), outputs_of(view, images)) < 3e-2


def test_what_torch_cannot_compute_is_unavailable_and_what_memory_lacks_is_not():
    model, images = Tiny(), images_of(2)
    view = View(model, "forward")
    model.fails = RuntimeError('"conv" not implemented for BFloat16')
    with pytest.raises(Unavailable, match=r"'eager', precision='bf16': torch cannot do it here .*BFloat16.* take precision='fp32'"):
        build(view, images, Recipe("eager", "bf16", 0, "contiguous"), 2)
    model.fails = MemoryError("no more")
    with pytest.raises(MemoryError, match="no more"):
        build(view, images, Recipe("eager", "fp32", 1, "contiguous"), 2)
    assert torch.get_num_threads() == 2


# -------------------------------------------------------------------- oneDNN's operators


class Varied(nn.Module):
    """Convolutions and what may follow them."""

    activations = (F.relu, F.relu6, F.leaky_relu, F.silu, F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh, F.gelu,
                   lambda x: F.gelu(x, approximate="tanh"), lambda x: x.clamp(-0.1, 0.2), lambda x: x.clamp(min=0.05),
                   lambda x: F.relu(x, inplace=True), lambda x: F.hardtanh(x, -0.2, 0.3))

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2))
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False)
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.other = nn.Conv2d(8, 8, 1)

    def forward(self, images):
        x = self.stem(images)  # read by many: stays alone
        outputs = [activation(self.grouped(x)) for activation in self.activations]
        total = self.grouped(x)
        total += x  # in place, as networks do it
        outputs += [F.relu(total), F.relu(self.other(x) + self.grouped(x)), self.other(x) + x, F.silu(x + self.other(x))]
        twice = self.other(x)
        outputs += [twice.relu() + twice, self.other(x) + x.mean((2, 3), keepdim=True), F.relu(self.same(x))]
        alone = self.other(x)
        return (*outputs, alone + alone, torch.add(self.other(x), x, alpha=2))


def test_what_follows_a_convolution_is_computed_with_it_and_gives_the_same():
    images = images_of(4, 16)
    torch.manual_seed(0)
    view = View(Varied(), "forward").describe(images)
    program = build(view, images, Recipe("onednn", "fp32", 2, "channels_last"), 2)
    outputs, expected = program(images), outputs_of(view, images)
    for index, (output, reference) in enumerate(zip(outputs, expected, strict=True)):
        assert largest_error([output], [reference]) < 1e-5, index
    counts = Counter(str(node.target) for node in program.call.graph.nodes)
    # the stem, 14 with activations, one of the two that are added together, 4 that are left alone; padding by name is left
    assert counts["mkldnn._convolution_pointwise.default"] == 1 + 14 + 1 + 4 and counts["aten.conv2d.padding"] == 1
    assert counts["mkldnn._convolution_pointwise.binary"] == 4
    assert not set(counts) & {f"aten.{name}.default" for name in ("relu6", "hardswish", "hardsigmoid", "gelu", "tanh", "clamp")}
    program.close()


def test_onednn_says_what_it_is_for():
    images = images_of(2, 160)
    with pytest.raises(Unavailable, match=r"'onednn' is for convolutions, which VisionTransformer does not repeat"):
        recipes("onednn", view_of("test_vit", images), images, "fp32", 2)
    assert recipes("onednn", View(Tiny(), "forward"), images, "fp32", 2) == [Recipe("onednn", "fp32", 1, "channels_last")]


# -------------------------------------------------------------------- compiled


def test_compiled_parts_are_the_network_and_are_compiled_once(never_twice):
    images = images_of(4)
    view = View(Tiny(), "forward").describe(images)
    program = build(view, images, Recipe("compile", "fp32", 2, "channels_last"), 2)
    never_twice()
    with torch.inference_mode():
        same = program(images.clone())
    torch.set_num_threads(1)
    for outputs in (same, program(images.clone().requires_grad_()), program(images.to(memory_format=torch.channels_last))):
        assert largest_error(outputs, outputs_of(view, images)) < 1e-5
        assert not any(output.is_inference() for output in outputs)
    program.close()


def test_a_package_lives_without_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_programs.tempfile, "tempdir", str(tmp_path))
    images = images_of(4)
    view = View(Tiny(), "forward").describe(images)
    (recipe,) = recipes("aoti", view, images, "fp32", 2)
    program = build(view, images, recipe, 2)
    assert not list(tmp_path.glob("ziggurat-*"))
    assert recipe.part == 2
    assert largest_error(program(images), outputs_of(view, images)) < 1e-5
    program.close()


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that torch.compile finds, which run as they are: Inductor is not what is tested."""
    found, compile = [], torch.compile

    def backend(graph, example):
        found.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda function, dynamic, **how: compile(function, dynamic=dynamic, backend=backend))
    return found


def test_units_of_one_kind_are_compiled_once(graphs, never_twice):
    images = images_of(2, 160)
    view = view_of("test_vit", images)
    (recipe,) = recipes("regional", view, images, "fp32", 2)
    program = build(view, images, recipe, 2)
    assert len(view.model.blocks) > 1 and len(graphs) == 1
    never_twice()
    assert largest_error(program(images), outputs_of(view, images)) < 1e-5
    assert not any("forward" in vars(block) for block in view.model.blocks)
    program.close()


def test_a_network_may_have_more_kinds_of_units_than_torch_keeps_of_one_function(graphs, never_twice):
    model = nn.Sequential(*[nn.Conv2d(3 + depth, 4 + depth, 1) for depth in range(10)])
    model.units = r"(\d+)"
    images = images_of(1, 4)
    view = View(model, "forward").describe(images)
    program = build(view, images, Recipe("regional", "fp32", 0, "contiguous"), 1)
    assert len(graphs) == 10
    never_twice()
    assert largest_error(program(images), outputs_of(view, images)) < 1e-5


def test_a_process_may_compile_more_networks_than_torch_keeps_of_one_function(graphs):
    for number in range(1, 11):
        images = images_of(1, number)
        view = View(nn.Conv2d(3, 4, 1), "forward").describe(images)
        program = build(view, images, Recipe("compile", "fp32", 0, "contiguous"), 1)
        assert len(graphs) == number
        assert largest_error(program(images), outputs_of(view, images)) < 1e-5
