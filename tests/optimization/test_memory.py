"""Memory of outputs is used again when nobody reads it, and not before."""

import gc

import torch

from ziggurat.optimization.memory import KEPT, OutputMemory


def test_memory_comes_back_when_it_is_let_go_of():
    memory = OutputMemory()
    first = memory.empty((2, 3, 4, 5))
    place = first.data_ptr()
    assert first.shape == (2, 3, 4, 5) and first.dtype == torch.float32 and first.is_contiguous()
    assert memory.empty((2, 3, 4, 5)).data_ptr() != place
    view = first[1:].flatten()
    del first
    gc.collect()
    assert memory.empty((2, 3, 4, 5)).data_ptr() != place  # a view still reads it
    shared = view.numpy()
    del view
    gc.collect()
    assert memory.empty((2, 3, 4, 5)).data_ptr() != place  # and so does an array
    del shared
    gc.collect()
    places = {memory.empty((120,)).data_ptr() for _ in range(3)}
    held = [memory.empty((6, 20)) for _ in range(3)]
    assert place in {tensor.data_ptr() for tensor in held} | places


def test_layouts_and_what_outlives_the_memory():
    memory = OutputMemory()
    map = memory.empty((2, 8, 3, 3), torch.channels_last)
    assert map.shape == (2, 8, 3, 3) and map.is_contiguous(memory_format=torch.channels_last)
    map.fill_(7)
    del memory
    gc.collect()
    assert (map == 7).all()
    many = OutputMemory()
    pieces = [many.empty((10,)) for _ in range(3 * KEPT)]
    assert len({piece.data_ptr() for piece in pieces}) == len(pieces)
    del pieces
    gc.collect()
    assert len(many._back[10]) == KEPT
