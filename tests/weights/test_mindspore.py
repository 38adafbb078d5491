"""MindSpore checkpoints: read as MindSpore wrote them, and refused in our words when they are damaged."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import ziggurat
from mindspore_writer import field, value, value_of, with_checksum
from ziggurat.errors import BadArgument, CheckpointMismatch, SourceUnavailable
from ziggurat.weights.converting import convert_checkpoint
from ziggurat.weights.mindspore import is_mindspore, parsed, read_mindspore, read_tensors
from ziggurat.weights.reading import made_by_mindspore, read_state_dict

FILES = Path(__file__).with_name("mindspore_files")  # MindSpore's own writing; make.py says how

DTYPES = {
    "Bool": torch.bool, "Int8": torch.int8, "UInt8": torch.uint8, "Int16": torch.int16, "UInt16": torch.uint16,
    "Int32": torch.int32, "UInt32": torch.uint32, "Int64": torch.int64, "UInt64": torch.uint64,
    "Float16": torch.float16, "BFloat16": torch.bfloat16, "Float32": torch.float32, "Float64": torch.float64,
    "Complex64": torch.complex64, "Complex128": torch.complex128,
}  # fmt: skip


ARRAYS = {
    "conv.weight": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
    "bn.gamma": np.array([0.5, -2], np.float16),
    "bn.beta": np.array([3, 4], np.float16),
    "mask": np.array([True, False, True]),
    "steps": np.array(7, np.int64),
}
SMALL = b"".join(value_of(name, array) for name, array in ARRAYS.items())
ENDS = [len(b"".join(value_of(name, ARRAYS[name]) for name in list(ARRAYS)[:n])) for n in range(len(ARRAYS) + 1)]


@pytest.fixture
def write(tmp_path):
    def write(data, name="x.ckpt"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def assert_is(tensor, array):
    expected = torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)
    assert type(tensor) is torch.Tensor
    assert tensor.dtype == expected.dtype
    assert tensor.shape == expected.shape
    assert torch.equal(tensor, expected)


# ------------------------------------------------------------------- what is written is read


def test_reads_what_was_written(write):
    found = read_tensors(write(SMALL))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert_is(found[name], array)


@pytest.mark.parametrize("kind", DTYPES)
def test_every_type_as_mindspore_writes_it(kind):
    found = read_tensors(FILES / "types.ckpt")  # with a checksum
    assert len(found) == 2 * len(DTYPES)
    count = torch.arange(15).reshape(3, 5)
    expected = (count % 2 == 0 if kind == "Bool" else count).to(DTYPES[kind])
    for name, numbers in ((kind, expected), (f"{kind}.scalar", expected[2, 4])):
        assert found[name].dtype == DTYPES[kind]
        assert found[name].shape == numbers.shape
        assert found[name].tolist() == numbers.tolist()


def test_four_bit_integers_stay_packed(write):
    found = read_tensors(write(value("q", b"\x21\x43", "Int4", (2,))))
    assert_is(found["q"], np.array([0x21, 0x43], np.uint8))


def test_scalars_and_nothing(write):
    data = value("scalar", np.float32(3).tobytes()) + value("also", np.float32(4).tobytes(), shape=(0,))
    found = read_tensors(write(data + value("none", b"", shape=(0, 5)) + value("empty", b"", "Int64", (0,))))
    assert {name: (tuple(t.shape), t.tolist()) for name, t in found.items()} == {
        "scalar": ((), 3.0), "also": ((), 4.0), "none": ((0, 5), []), "empty": ((0,), []),
    }  # fmt: skip


def test_text_and_generators_are_passed_over(write):
    data = value("note", "abc".encode("utf-32-le"), "str", (0,)) + value("random_op", b"\x01\x02", "random_op")
    assert list(read_tensors(write(data + SMALL))) == list(ARRAYS)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_split_tensors_are_joined(way):
    found = read_tensors(FILES / f"{way}.ckpt")
    assert list(found) == ["first", "second"]
    for tensor in found.values():
        assert_is(tensor, np.arange(700, dtype=np.float32).reshape(7, 100))


def test_parts_may_be_cut_anywhere_or_empty(write):
    array = np.arange(10, dtype=np.float32)
    content = array.tobytes()
    cuts = [0, 0, 3, 17, 17, 40, 40]
    parts = [content[a:b] for a, b in itertools.pairwise(cuts)]
    data = b"".join(value("x", part, shape=(10,)) for part in parts)
    found = read_tensors(write(data + SMALL))
    assert_is(found["x"], array)
    assert len(found) == 1 + len(ARRAYS)


def test_a_name_that_comes_again_later_replaces(write):
    other = np.ones(3, np.float32)
    assert_is(read_tensors(write(SMALL + value_of("conv.weight", other)))["conv.weight"], other)


def test_aligned_tensors_are_mapped_and_the_others_copied(write):
    array = np.arange(8, dtype=np.float32)
    data = b"".join(value_of("n" * length, array) for length in range(1, 9))
    path = write(data)
    found = read_tensors(path)
    offsets = list(starts(data, array.tobytes()))
    mapped = [offset % 4 == 0 for offset in offsets]
    assert len(mapped) == 8 and 0 < sum(mapped) < 8
    first = mapped.index(True)
    base = list(found.values())[first].data_ptr() - offsets[first]
    for tensor, offset, is_mapped in zip(found.values(), offsets, mapped):
        assert_is(tensor, array)
        assert tensor.data_ptr() % 4 == 0
        assert (tensor.data_ptr() == base + offset) is is_mapped
        tensor.zero_()
    assert path.read_bytes() == data, "the file is never written"


def starts(data, part):
    at = -1
    while (at := data.find(part, at + 1)) >= 0:
        yield at


# ------------------------------------------------------------------- networks, averages, optimizers


NAMES = ["conv.weight", "bn.running_mean", "bn.running_var", "bn.weight", "bn.bias", "norm.weight", "norm.bias",
         "fc.weight", "fc.bias"]  # fmt: skip
SHAPES = {"conv": (4, 3, 3, 3), "bn": (4,), "norm": (5,), "fc.weight": (2, 5), "fc.bias": (2,)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.norm = nn.LayerNorm(5)
        self.fc = nn.Linear(5, 2)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_training_file_of_mindcv(averaged):
    found = read_state_dict(FILES / "training.ckpt", use_ema=averaged)
    assert sorted(found) == sorted(NAMES), "neither moments nor learning rate, loss scale, steps and epochs"
    model = Net()
    missing, unexpected = model.load_state_dict(found, strict=False)
    assert set(missing) <= {"bn.num_batches_tracked"} and not unexpected
    for i, name in enumerate(NAMES):
        shape = found[name].shape
        expected = (torch.arange(shape.numel()) + 100.0 * i).reshape(shape) * (-1 if averaged else 1)
        assert torch.equal(found[name], expected), name


def test_mindspores_own_names_are_kept_where_asked():
    found = read_tensors(FILES / "training.ckpt")
    assert {"bn.gamma", "ema.bn.gamma", "moments.bn.gamma", "learning_rate", "scale_sense", "epoch_num"} <= found.keys()
    assert "note" not in found
    assert found["epoch_num"] == 3


def test_mindspores_safetensors():
    assert sorted(read_state_dict(FILES / "net.safetensors")) == sorted(NAMES)


def test_averaged_weights_only_where_there_are_any(write):
    path = write(SMALL)
    assert list(read_mindspore(path)) == ["state_dict"]
    assert "bn.weight" in read_state_dict(path, use_ema=True)
    with pytest.raises(CheckpointMismatch, match="holds no averaged"):
        read_state_dict(path, need_ema=True)
    path = write(b"".join(value_of(f"ema.{name}", array) for name, array in ARRAYS.items()))
    assert "bn.weight" in read_state_dict(path, need_ema=True)


def test_only_normalisations_are_renamed(write):
    def named(*names):
        return list(read_state_dict(write(b"".join(value_of(name, np.ones(2, np.float32)) for name in names))))

    assert named("b.gamma", "b.beta") == ["b.weight", "b.bias"]
    assert named("gamma", "beta", "moving_mean", "moving_variance") == ["weight", "bias", "running_mean", "running_var"]
    layer_scales = ["b.gamma", "b.gamma_", "b.gamma_1", "c.beta", "d.moving_mean", "gamma.weight"]
    assert named(*layer_scales) == layer_scales
    both = ["b.gamma", "b.beta", "b.weight"]
    assert named(*both) == both, "nothing is lost to a name that is taken"
    other_shape = value_of("b.gamma", np.ones(2, np.float32)) + value_of("b.beta", np.ones(3, np.float32))
    assert list(read_state_dict(write(other_shape))) == ["b.gamma", "b.beta"]


def test_layers_named_as_optimizer_states_are_kept(write):
    names = ["linear.weight", "stat.prev.bias", "moments.x", "momentum.weight", "block.weight"]
    data = b"".join(value_of(name, np.ones(2, np.float32)) for name in names)
    assert list(read_state_dict(write(data))) == names
    kept = b"".join(value_of(f"{prefix}.block.weight", np.ones(2, np.float32)) for prefix in ("moment1", "lamb_v", "vhat"))
    rates = value_of("learning_rate_group_1", np.ones(9, np.float32)) + value_of("beta1_power", np.ones(1, np.float32))
    assert list(read_state_dict(write(data + kept + rates))) == names


def test_create_model_tells_the_two_kinds_of_ckpt_apart(tmp_path):
    model = ziggurat.create_model("resnet10t")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "lightning.ckpt")
    renames = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    modules = dict(model.named_modules())
    values = []
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if leaf != "num_batches_tracked":
            leaf = renames[leaf] if isinstance(modules[owner], nn.BatchNorm2d) else leaf
            values.append(value_of(f"{owner}.{leaf}", tensor.numpy()))
    (tmp_path / "mindspore.ckpt").write_bytes(b"".join(values))
    for kind in ("lightning", "mindspore"):
        loaded = ziggurat.create_model("resnet10t", checkpoint_path=tmp_path / f"{kind}.ckpt").state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded[name], tensor), (kind, name)


def test_create_model_takes_mindspores_averaged_weights_where_asked(tmp_path):
    model = ziggurat.create_model("test_resnet")
    tensors = {name: t.numpy() for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    values = [value_of(name, array) for name, array in tensors.items()]
    values += [value_of(f"ema.net.{name}", array + 1) for name, array in tensors.items()]
    path = tmp_path / "training.ckpt"
    path.write_bytes(b"".join(values))

    def bias(**kwargs):
        return ziggurat.create_model("test_resnet", checkpoint_path=path, **kwargs).fc.bias - model.fc.bias

    assert not bias().any() and not bias(ema=False).any()
    with pytest.raises(CheckpointMismatch, match="It fills 0 of the model's"):
        bias(ema=True)
    assert torch.allclose(bias(ema=True, auto_mapping=True), torch.ones(()))


# ------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("cipher", ["AES-GCM", "AES-CBC"])
def test_encrypted_files_are_refused(cipher):
    path = FILES / f"{cipher.lower().replace('-', '_')}.ckpt"
    with pytest.raises(SourceUnavailable, match=f"is encrypted \\({cipher}\\): load it in MindSpore with its key"):
        read_state_dict(path)


X = np.arange(3, dtype=np.float32).tobytes()
TENSOR = field(1, 3) + field(2, "Float32") + field(3, X)
DAMAGED = {
    "is of type 'Float31'; known are Bool,": value("x", X, "Float31", (3,)),
    r"'x' of type Float32 and shape \(4,\) has 12 bytes": value("x", X, shape=(4,)),
    r"shape \(4611686018427387904, 4\) has 12 bytes": value("x", X, shape=(2**62, 4)),
    r"shape \(0, 4611686018427387904\) has 0 bytes": value("x", b"", shape=(0, 2**62)),
    r"shape \(3,\) has 24 bytes": value("x", X, shape=(3,)) * 2,
    "the parts of 'x' differ in shape or type": value("x", X, shape=(6,)) + value("x", X, shape=(2, 3)),
    "holds what is neither true nor false": value("x", b"\x02", "Bool"),
    "is there more than 32 times": value("x", X, shape=(1,) * 40 + (3,)),
    r"the number that ends at byte \d+ is negative or too large": value("x", X, shape=(2**64 - 3,)),
    "900 bytes are announced at byte 0 where": b"\x0a\x84\x07" + value("x", X, shape=(3,))[2:],
    "there is no field 4 of wire type 2": field(1, field(1, "x") + field(4, TENSOR)),
    "there is no field 1 of wire type 2": field(1, field(1, "x") + field(2, field(1, b"\x03") + field(2, "Float32") + field(3, X))),
    "there is no field 12 of wire type 3": value("x", X, shape=(3,)) + b"crc_nun" + bytes(10),
    "a value's name is there more than once": field(1, field(1, "x") + field(1, "y") + field(2, TENSOR)),
    "the tensor of 'x' is missing": field(1, field(1, "x")) + value("y", X, shape=(3,)),
    "the content of 'x' is missing": field(1, field(1, "x") + field(2, field(1, 3) + field(2, "Float32"))),
    "can't decode byte 0xff": value("x", X, shape=(3,)) + field(1, field(1, b"\xff") + field(2, TENSOR)),
    "a name at byte .* is 5000 bytes long": value("x" * 5000, X, shape=(3,)),
    "its checksum is 0x.* where 0x0 is stated": value("x", X, shape=(3,)) + b"crc_num" + bytes(10),
}


@pytest.mark.parametrize("cause", DAMAGED)
def test_what_the_format_does_not_have_is_named(cause, write):
    with pytest.raises(SourceUnavailable, match=rf"is a damaged MindSpore checkpoint: .*{cause}"):
        read_tensors(write(DAMAGED[cause]))


def test_a_file_of_nothing_but_values_is_given_up_soon(write, monkeypatch):
    monkeypatch.setattr("ziggurat.weights.mindspore.MAX_VALUES", 5)
    assert len(read_tensors(write(SMALL))) == 5
    with pytest.raises(SourceUnavailable, match="it has more than 5 values"):
        read_tensors(write(SMALL * 2))


def test_hash_tables_are_refused(write):
    with pytest.raises(CheckpointMismatch, match=r"holds a hash table \('table', a MapTensor\)"):
        read_state_dict(write(SMALL + field(1, field(1, "table") + field(3, field(1, TENSOR)))))


@pytest.mark.parametrize("data", [b"", b"\n", b"\n\n\n\n<html>not found</html>", b"\n<html>", b"\x0a\x05\x0a\x00abc"])
def test_other_files_are_not_taken_for_mindspores(data, write):
    assert not is_mindspore(data)
    with pytest.raises(SourceUnavailable, match=r"x\.ckpt is no checkpoint: "):
        read_state_dict(write(data))


def test_a_missing_file(tmp_path):
    with pytest.raises(SourceUnavailable, match=r"gone\.ckpt cannot be opened"):
        read_tensors(tmp_path / "gone.ckpt")


# ------------------------------------------------------------------- fuzzed


def outcome(path, data):
    """What reading a file of these bytes gives, or None with one of our errors."""
    path.write_bytes(data)
    try:
        return checked(read_state_dict(path), data)
    except (SourceUnavailable, CheckpointMismatch):
        return None


def outcome_in_memory(data):
    """The same without a file: what `read_tensors` turns into our errors is all that may be raised."""
    try:
        return checked(parsed(bytearray(data)), data)
    except (ValueError, NotImplementedError):
        return None


def checked(found, data):
    """Tensors that take no more memory than the file, and whose every byte can be read."""
    assert sum(tensor.nbytes for tensor in found.values()) <= len(data)
    for tensor in found.values():
        tensor.clone()
    return found


def test_every_truncation(tmp_path):
    for size in range(len(SMALL)):
        found = outcome(tmp_path / "x.ckpt", SMALL[:size])
        if size in ENDS[1:]:  # between values, which nothing tells from a smaller network
            assert len(found) == ENDS.index(size)
        else:
            assert found is None, size


def test_every_truncation_of_a_file_with_a_checksum(tmp_path):
    whole = with_checksum(SMALL)
    assert len(outcome(tmp_path / "x.ckpt", whole)) == len(ARRAYS)
    for size in range(len(SMALL) + 1, len(whole)):
        assert outcome(tmp_path / "x.ckpt", whole[:size]) is None, size


def test_truncations_of_a_file_of_mindspores():
    whole = (FILES / "training.ckpt").read_bytes()
    complete = parsed(bytearray(whole))
    for size in range(1, len(whole), 5):
        found = outcome_in_memory(whole[:size])
        if found is not None:
            assert all(torch.equal(tensor, complete[name]) for name, tensor in found.items())
            assert len(found) < len(complete) or whole[size:].find(b"note") >= 0, "text is last"


def test_flipped_bytes_of_a_file(tmp_path):
    for position in range(1, len(SMALL)):  # with another first byte, it is another reader's
        data = bytearray(SMALL)
        data[position] ^= 0xFF >> position % 8
        outcome(tmp_path / "x.ckpt", bytes(data))


def test_every_flipped_bit():
    survived = 0
    for position, bit in itertools.product(range(len(SMALL)), range(8)):
        data = bytearray(SMALL)
        data[position] ^= 1 << bit
        survived += outcome_in_memory(data) is not None
    contents = sum(array.nbytes for array in ARRAYS.values())
    names = sum(map(len, ARRAYS))
    assert 8 * (contents - 3) < survived < 8 * (contents + names), "numbers and names can be any, structure cannot"


def test_a_checksum_finds_every_flipped_bit():
    whole = with_checksum(SMALL)
    for position, bit in itertools.product(range(len(whole)), range(8)):
        data = bytearray(whole)
        data[position] ^= 1 << bit
        assert outcome_in_memory(data) is None, (position, bit)


def test_thousands_of_wrong_bytes_and_junk():
    chance = random.Random(0)
    whole = (FILES / "training.ckpt").read_bytes()[:700] + SMALL
    survived = 0
    for _ in range(3000):
        data = bytearray(SMALL)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        survived += outcome_in_memory(data) is not None
    for _ in range(1000):
        start, stop = sorted(chance.sample(range(len(whole)), 2))
        survived += outcome_in_memory(whole[:start] + whole[stop:]) is not None
        survived += outcome_in_memory(b"\x0a\x10\x0a" + chance.randbytes(chance.randrange(60))) is not None
    assert 100 < survived < 2500, "some hit numbers alone, most do not"


# ------------------------------------------------------------------- converted


def test_converted_to_safetensors(tmp_path):
    target = tmp_path / "new" / "net.safetensors"
    written = convert_checkpoint(FILES / "training.ckpt", target, ema=False)
    assert written == (len(NAMES), target.stat().st_size)
    found, expected = safetensors.torch.load_file(target), read_state_dict(FILES / "training.ckpt", use_ema=False)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(BadArgument, match="exists already; give another name, or overwrite=True"):
        convert_checkpoint(FILES / "training.ckpt", target)
    for ema, sign in ((True, -1), (None, 1)):  # MindSpore's own way is the last weights
        convert_checkpoint(FILES / "training.ckpt", target, ema, overwrite=True)
        assert safetensors.torch.load_file(target)["fc.bias"].tolist() == [sign * 800, sign * 801]
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_where_a_file_comes_from_is_kept(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "net.pth")
    sources = {FILES / "training.ckpt": True, FILES / "net.safetensors": True, tmp_path / "net.pth": False}
    for source, expected in sources.items():
        convert_checkpoint(source, tmp_path / "once.safetensors", overwrite=True)
        convert_checkpoint(tmp_path / "once.safetensors", tmp_path / "twice.safetensors", overwrite=True)
        files = (source, tmp_path / "once.safetensors", tmp_path / "twice.safetensors")
        assert [made_by_mindspore(path) for path in files] == [expected] * 3
        names = [read_state_dict(path).keys() for path in files]
        assert names[0] == read_state_dict(source, use_ema=None).keys() and names[1] == names[2]
        assert set(names[0]) == set(names[1])


def test_only_headers_tell_where_a_file_comes_from(write):
    assert made_by_mindspore(write(SMALL))
    assert made_by_mindspore(write(SMALL[:40])), "which is damaged further on"
    assert not made_by_mindspore(write(b"no checkpoint"))
    with pytest.raises(SourceUnavailable, match=r"there is no file .*none\.ckpt"):
        made_by_mindspore("none.ckpt")


def test_which_weights_are_taken_of_mindspores_files(write):
    last, averaged = np.zeros(2, np.float32), np.ones(2, np.float32)
    path = write(value_of("w", last) + value_of("ema.w", averaged))
    taken = {ema: read_state_dict(path, use_ema=ema)["w"].tolist() for ema in (None, False, True)}
    assert taken == {None: [0, 0], False: [0, 0], True: [1, 1]}
    path = write(value_of("ema.w", averaged))
    assert read_state_dict(path, use_ema=True)["w"].tolist() == [1, 1]
    with pytest.raises(CheckpointMismatch, match=r"holds averaged \(EMA\) weights only; ask for them \(ema=True"):
        read_state_dict(path)


def test_every_kind_of_file_is_converted(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": shared, "b": shared, "c": shared.t(), "d": shared[1], "e": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(tensors, tmp_path / "x.pth")
    np.savez(tmp_path / "x.npz", **{name: tensor.float().numpy() for name, tensor in tensors.items()})
    for source in ("x.pth", "x.npz"):
        assert convert_checkpoint(tmp_path / source, tmp_path / f"{source}.safetensors").tensors == 5
        found = safetensors.torch.load_file(tmp_path / f"{source}.safetensors")
        for name, tensor in tensors.items():
            assert torch.equal(found[name].to(tensor.dtype), tensor), (source, name)
    assert safetensors.torch.load_file(tmp_path / "x.pth.safetensors")["e"].dtype == torch.bfloat16


@pytest.mark.parametrize("source, target, error, sentence", [
    (FILES / "types.ckpt", "x.safetensors", CheckpointMismatch, "'Complex128' in complex128, which safetensors lacks"),
    (FILES / "types.ckpt", "x.pth", BadArgument, r"give a name that ends in \.safetensors"),
    (FILES / "gone.ckpt", "x.safetensors", SourceUnavailable, "there is no file"),
    (FILES / "aes_gcm.ckpt", "x.safetensors", SourceUnavailable, "is encrypted"),
    (FILES / "sync.ckpt", "file/x.safetensors", BadArgument, "cannot be written: "),
    (FILES / "sync.ckpt", "folder.safetensors", BadArgument, "exists already; give another name$"),
])
def test_what_cannot_be_converted(source, target, error, sentence, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(error, match=sentence):
        convert_checkpoint(source, tmp_path / target, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors"]


def test_a_file_without_a_network(write, tmp_path):
    with pytest.raises(CheckpointMismatch, match="holds no tensors"):
        convert_checkpoint(write(value("note", b"", "str", (0,))), tmp_path / "x.safetensors")
