"""Code written for timm, run on ziggurat: under another name, and with its submodules by name."""

import subprocess
import sys
import textwrap


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_alias_is_ziggurat():
    out = run("""
        import ziggurat.compat.timm
        ziggurat.compat.timm.install()
        import timm
        from timm.layers import DropPath, SelectAdaptivePool2d
        from timm.layers.drop import drop_path
        from timm.models import FeatureInfo, group_parameters
        from timm.models._manipulate import checkpoint_seq
        from timm.models._registry import list_models
        from timm.models.resnet import ResNet, resnet18
        import ziggurat.models.resnet
        assert timm.models.resnet.ResNet is ziggurat.models.resnet.ResNet is ResNet
        assert timm.__spec__.name == "ziggurat"
        print(type(timm.create_model("resnet18")).__module__, type(resnet18()).__module__)
    """)
    assert out.split() == ["ziggurat.models.resnet"] * 2


def test_import_as_timm():
    out = run("""
        import ziggurat as timm
        model = timm.create_model("resnet18", num_classes=10)
        config = timm.data.resolve_model_data_config(model)
        transform = timm.data.create_transform(**config, is_training=False)
        print(model.num_features, config["input_size"], timm.is_model("resnet18"), len(timm.list_models("resnet18*")))
        assert timm.models.ResNet is type(model)
        assert timm.layers.create_act_layer("relu") is not None
    """)
    assert out.startswith("512 (3, 224, 224) True")


def test_uninstall_brings_timm_back():
    out = run("""
        import ziggurat.compat.timm as alias
        alias.install()
        import timm
        assert timm.__name__ == "ziggurat"
        alias.uninstall()
        import timm
        print(timm.__name__)
    """)
    assert out.strip() == "timm"
