"""Testing at a larger size than trained at: the classifier at every place of a window of the trained size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adaptive_avgmax_pool import adaptive_avgmax_pool2d
from .shapes import to_2tuple

__all__ = ["TestTimePoolHead", "apply_test_time_pool"]


class TestTimePoolHead(nn.Module):
    """A convolutional model whose classifier reads averages over windows of `original_pool` positions.

    The scores of all windows are pooled by the mean of average and maximum (Chen et al. 2017, arXiv 1707.01629).
    The classifier is taken out of `base`.
    """

    __test__ = False  # the name is timm's: this is no test for pytest to collect

    def __init__(self, base: Any, original_pool: int | tuple[int, int] = 7) -> None:
        super().__init__()
        self.base = base
        self.original_pool = original_pool
        old = base.get_classifier()
        if isinstance(old, nn.Conv2d):
            self.fc = old
        else:
            place = {"device": old.weight.device, "dtype": old.weight.dtype}
            self.fc = nn.Conv2d(old.in_features, old.out_features, 1, bias=old.bias is not None, **place)
            with torch.no_grad():
                for mine, theirs in zip(self.fc.parameters(), old.parameters()):
                    mine.copy_(theirs.view_as(mine))
        base.reset_classifier(0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.base.forward_features(x)
        x = F.avg_pool2d(x, to_2tuple(self.original_pool), stride=1)
        return adaptive_avgmax_pool2d(self.fc(x)).flatten(1)


def apply_test_time_pool(model: Any, config: Mapping[str, Any], use_test_size: bool = False) -> tuple[nn.Module, bool]:
    """(the model with test-time pooling, True) where `config`'s input is larger than the pretrained one's both ways.

    Else (the model, False). The pretrained size is `input_size` of the model's `default_cfg`, or its `test_input_size`
    with `use_test_size` where it has one.
    """
    trained = getattr(model, "default_cfg", None)
    if not trained:
        return model, False
    if not isinstance(trained, Mapping):
        trained = vars(trained)
    size = (trained.get("test_input_size") if use_test_size else None) or trained["input_size"]
    if any(now <= then for now, then in zip(config["input_size"][-2:], size[-2:])):
        return model, False
    return TestTimePoolHead(model, original_pool=trained["pool_size"]), True
