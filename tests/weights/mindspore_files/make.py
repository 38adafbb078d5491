"""Makes the checkpoints in this folder with MindSpore 2.10.0 and MindCV 0.3.0 (numpy<2): python make.py

They are MindSpore's own writing, for the reader to be held to; nothing else needs MindSpore.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindcv.utils.train_step import TrainStep
from mindspore import nn
from mindspore.train import serialization

HERE = Path(__file__).parent
KEY = b"0123456789abcdef"
TYPES = ["Bool", "Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64",
         "Float16", "BFloat16", "Float32", "Float64", "Complex64", "Complex128"]


class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.norm = nn.LayerNorm((5,))
        self.fc = nn.Dense(5, 2)

    def construct(self, x):
        return self.fc(self.norm(self.bn(self.conv(x))))


def count(parameters, sign=1):
    """The values of parameter i are 100 i, 100 i + 1, ..., so that each shows where it belongs."""
    for i, parameter in enumerate(parameters):
        values = sign * (np.arange(parameter.size, dtype=np.float32) + 100 * i)
        parameter.set_data(ms.Tensor(values.reshape(parameter.shape)))


def main(out):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    net = Net()
    count(net.get_parameters())
    optimizer = nn.Momentum(net.trainable_params(), 0.1, 0.9)
    training = TrainStep(nn.WithLossCell(net, nn.MSELoss()), optimizer,
                         scale_sense=nn.FixedLossScaleUpdateCell(1024.0), ema=True)
    count(training.ema_weight, sign=-1)
    ms.save_checkpoint(training, f"{out}/training.ckpt", append_dict={"epoch_num": 3, "note": "abc"})
    ms.save_checkpoint(net, f"{out}/net.safetensors", format="safetensors")
    for mode in ("AES-GCM", "AES-CBC"):
        name = mode.lower().replace("-", "_")
        ms.save_checkpoint(net, f"{out}/{name}.ckpt", enc_key=KEY, enc_mode=mode)

    values = []
    for name in TYPES:
        numbers = np.arange(15).reshape(3, 5)
        numbers = numbers % 2 == 0 if name == "Bool" else numbers.astype(np.float32)
        kind = ms.bool_ if name == "Bool" else getattr(ms, name.lower())
        values += [dict(name=name, data=ms.Tensor(numbers).astype(kind)),
                   dict(name=f"{name}.scalar", data=ms.Tensor(numbers[2, 4]).astype(kind))]
    ms.save_checkpoint(values, f"{out}/types.ckpt", crc_check=True)

    serialization.SLICE_SIZE = 1  # KiB: what is above it is split
    large = ms.Tensor(np.arange(700, dtype=np.float32).reshape(7, 100))
    for name in ("sync", "async"):
        parameters = [dict(name="first", data=large), dict(name="second", data=large)]
        ms.save_checkpoint(parameters, f"{out}/{name}.ckpt", async_save=name == "async")
    time.sleep(3)  # until the writer behind async_save is done


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
        for file in Path(folder).iterdir():
            shutil.copyfile(file, HERE / file.name)  # MindSpore leaves its own read-only
    os._exit(0)  # the cells' destructors fail once the interpreter is going
