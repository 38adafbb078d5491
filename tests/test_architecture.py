"""The shape of the package: who may import whom, what is public, and what importing costs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ziggurat

SOURCE = Path(ziggurat.__file__).parent

# a room may import, at the top of its modules, from itself and from the rooms before it
ROOMS = ["errors", "lazy", "packages", "layers", "backbone", "models", "weights", "facts", "registry", "query", "factory", "saving",
         "data", "view", "optimization", "exporting", "extraction", "benchmarking", "testing", "compat", "cli", "__main__"]
VIEWS = {"forward_features", "forward_intermediates", "pyramid", "embed", "tokens", "extract",
         "prune_intermediate_layers", "keep_levels", "set_grad_checkpointing", "group_matcher"}


def room_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a module imports when it is itself imported."""
    found = set()
    package = ("ziggurat", *path.relative_to(SOURCE).parts[:-1])
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = [*base, *(node.module.split(".") if node.module else [])]
            if full[:1] == ["ziggurat"]:
                found |= {full[1]} if len(full) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("ziggurat.")}
    return found


MODULES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    if room == "__init__":
        return
    for other in imported_rooms(path) & set(ROOMS):
        assert ROOMS.index(other) <= ROOMS.index(room), f"{room} imports {other}"


@pytest.mark.parametrize("path", sorted((SOURCE / "models").glob("*.py")), ids=lambda p: p.stem)
def test_no_family_overrides_a_view(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            if "trunk" in methods:
                assert not methods & (VIEWS | {"forward", "forward_head", "reset_classifier"}), node.name


def test_no_star_imports_and_safe_loading():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and path != SOURCE / "__init__.py":
                assert all(alias.name != "*" for alias in node.names), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                weights_only = [k.value for k in node.keywords if k.arg == "weights_only"]
                assert weights_only and getattr(weights_only[0], "value", None) is True, f"{path}:{node.lineno}"


def test_public_names_exist():
    assert ziggurat.__all__ == sorted(ziggurat.__all__)
    for name in ziggurat.__all__:
        assert getattr(ziggurat, name) is not None
    for room in ("layers", "data", "models"):
        module = importlib.import_module(f"ziggurat.{room}")
        for name in dir(module):
            assert getattr(module, name) is not None, f"{room}.{name}"


@pytest.mark.parametrize("code", ["import ziggurat", "import ziggurat; ziggurat.list_models(pretrained=True)",
                                  "import ziggurat; ziggurat.model_info('resnet50')",
                                  "import ziggurat; ziggurat.search(stride=4, license='mit')"])
def test_listing_needs_no_torch(code):
    code += "; import sys; print([m for m in ('torch', 'torchvision', 'PIL', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_create_model_imports_one_family():
    code = ("import sys, ziggurat; ziggurat.create_model('resnet18'); "
            "print(sorted(m for m in sys.modules if m.startswith('ziggurat.models.')), 'torchvision' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['ziggurat.models.resnet'] False"


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ziggurat.no_such_name
    with pytest.raises(AttributeError):
        _ = ziggurat.models.no_such_architecture
