"""The contract of every backbone: a family says how an image becomes its levels, this class does the rest.

Letters in shapes: B images, C channels, H W height and width, N tokens, D classes or embedding width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadArgument, UnsupportedStride
from ..layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from ..layers.classifier import ClassifierHead
from .freezing import Frozen, freeze_modules, hold_still, unfreeze_modules, without_modules
from .levels import Levels
from .plan import Plan, take_indices, take_strides
from .units import MATCH_PREV_GROUP, as_number, checkpoint_units, named_units, schedule_drop_path

__all__ = ["Backbone"]


draws_weights: ContextVar[bool] = ContextVar("draws_weights", default=True)
"""False while models are built whose weights are loaded next: their own need not be drawn."""


class _Finished(type):
    """Calls `_finish` once the family's constructor is through."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        model = super().__call__(*args, **kwargs)
        model._finish()
        return model


class Backbone(Levels, metaclass=_Finished):
    """A vision backbone: class scores, an embedding, tokens and a feature pyramid from one set of weights.

    A family writes a constructor (modules named as published checkpoints name them, `self.plan.mark` where a level is
    made, `make_head` at the end) and `trunk`, a generator that yields each level as it is made and last what the
    head reads. Everything else is here, once, for all architectures.

    Keyword arguments of every architecture (families pass theirs on):

    - `num_classes` (1000): width of the classifier; 0 leaves it out and the model returns the embedding.
    - `in_chans` (3): channels of the input.
    - `global_pool` (the family's own, mostly 'avg'): how the last map becomes a vector; '' leaves it a map.
    - `output_stride` (None): the coarsest stride allowed, 4, 8 or 16, say. Later strides become dilation (Chen et al.
      2017, arXiv 1706.05587) where the field does so; elsewhere phases of the input are shifted, run as a batch and
      stitched together, which every architecture can (`backbone/stitching.py`).
    - `output_stride_mode` ('auto'): 'dilated' or 'stitched' insists on one of them. At the native grid's positions a
      stitched map is the native map; a dilated one is not where a layer pools its whole input (squeeze and excite) or
      blurs before it strides. 'dilated' raises `UnsupportedStride` where dilation does not reach.
    - `drop_rate` (0.0): dropout before the classifier.
    - `drop_path_rate` (0.0): stochastic depth at the last unit, growing linearly from the first.
    """

    units: str = ""
    """Regular expression over module paths: the repeated units, their numbers (or letters) captured."""
    default_out_indices: ClassVar[int | tuple[int, ...] | None] = None
    """Levels that `features_only` gives unless told: all; the last n; or these."""
    dilates_to: ClassVar[int | None] = None
    """The smallest output stride that dilation serves by default; below it, and where None, maps are stitched."""
    drop_path_reaches_rate: ClassVar[bool] = True
    """Whether the last unit's drop path is the full `drop_path_rate` (see `schedule_drop_path`)."""
    not_decayed: ClassVar[frozenset[str]] = frozenset()
    """Parameters (paths, `*` allowed) that weight decay leaves alone."""
    classifier_bias: bool = True
    """Whether the classifier has a bias."""
    head_modules: ClassVar[tuple[str, ...]] = ()
    """Top-level modules that pooling uses, beside `global_pool`: they stay and go with the classifier."""

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride_mode: str = "auto",
    ) -> None:
        super().__init__()
        if output_stride is not None and output_stride < 1:
            raise BadArgument(f"output_stride={output_stride}: give 4, 8 or 16, say, or leave it out")
        if output_stride_mode not in ("auto", "dilated", "stitched"):
            raise BadArgument(f"output_stride_mode={output_stride_mode!r}: give 'auto', 'dilated' or 'stitched'")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.drop_path_rate = drop_path_rate
        self.grad_checkpointing = False
        self.distilled_training = False
        self.output_stride = output_stride
        self.output_stride_mode = output_stride_mode
        dilates = output_stride_mode == "dilated"
        if output_stride is not None and output_stride_mode == "auto":
            dilates = self.dilates_to is not None and output_stride >= self.dilates_to
        self.plan = Plan(output_stride if dilates else None)
        self.prefix_tokens = {}
        self.out_indices = None
        self.pyramid_neck = None
        self._lost_norm = self._norm = False
        self.pretrained_cfg: dict[str, Any] = {}
        self.architecture = ""
        self.arguments = {}
        self.frozen: Frozen | None = None
        self.classifiers: tuple[str, ...] = ()  # paths of the classifying layers
        self._pool_type = global_pool
        self._hidden: int | None = None  # width of the embedding, where the family's own head decides it
        self._stops_at = None

    def _finish(self) -> None:
        assert self.plan.levels, f"{type(self).__name__} marks no level"
        assert self.classifiers, f"{type(self).__name__} makes no head"
        self._hold_stride()
        if self._boundaries and self.output_stride_mode == "dilated":
            strides = sorted({level["reduction"] for level in self.plan.levels})
            raise UnsupportedStride(f"output_stride={self.output_stride}: {type(self).__name__} cannot be dilated to that, "
                                    f"its levels have strides {strides}; leave output_stride_mode out or give 'stitched'")
        self._depth = len(self.feature_info)
        norm = None if self.final_norm is None else self.get_submodule(self.final_norm)
        self._has_norm = norm is not None and not isinstance(norm, nn.Identity)
        schedule_drop_path(named_units(self, self.units), self.drop_path_rate, self.drop_path_reaches_rate)
        if draws_weights.get():
            self.init_weights()

    # ---------------------------------------------------------------- what a family says

    def make_head(
        self,
        classifier: str,
        width: int | None = None,
        hidden: int | None = None,
        head: Callable[..., nn.Module] = ClassifierHead,
        **options: Any,
    ) -> None:
        """Adds pooling and the classifier at path `classifier`; called once, when all levels are marked.

        `width` is that of the trunk's last output (default: the last level's channels). 'fc' puts `global_pool` and
        `fc` beside the stages; 'head.fc' puts both into a `ClassifierHead`, or what takes its place as `head`, which
        takes the `options`. A family whose head is neither makes its own modules, overrides `pool` and `set_pool`, and
        passes `hidden`, the width that the classifier reads, with paths in `classifiers` set by itself.
        """
        self.num_features = self.plan.levels[-1]["num_chs"] if width is None else width
        self.classifiers = (classifier,)
        self._hidden = hidden
        if hidden is not None:
            return
        owner, _, name = classifier.rpartition(".")
        if owner:
            assert head is not ClassifierHead or name == "fc", "a ClassifierHead calls its classifier fc"
            self.add_module(owner, head(self.num_features, self.num_classes, pool_type=self._pool_type,
                                        drop_rate=self.drop_rate, **options))
        else:
            self.global_pool = SelectAdaptivePool2d(pool_type=self._pool_type, flatten=bool(self._pool_type))
            self.add_module(classifier, self.new_classifier(classifier))

    def init_weights(self) -> None:
        """Draws the family's own initial weights; PyTorch's stay where a family says nothing."""

    def remap_checkpoint(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The published checkpoints that name this architecture's tensors otherwise, put under our names."""
        return state_dict

    def pool(self, x: Tensor) -> Any:
        """The trunk's last output as one vector an image (B D), before dropout.

        A tuple of them, one a classifier, where the classifiers read different ones.
        """
        return self.global_pool(x)

    @property
    def has_embedding(self) -> bool:
        """Whether `embed` has a vector to give: not with `global_pool=''`."""
        return bool(self._pool_type)

    def set_pool(self, global_pool: str) -> None:
        """Changes how `pool` works: the argument `global_pool` of `reset_classifier`."""
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))

    def new_classifier(self, path: str) -> nn.Module:
        """A fresh classifying layer for `path`; the identity where `num_classes` is 0."""
        if not self.num_classes:
            return nn.Identity()
        if not self._pool_type:
            raise BadArgument("global_pool='' needs num_classes=0: a classifier reads pooled features")
        return nn.Linear(self.head_hidden_size, self.num_classes, bias=self.classifier_bias)

    # ---------------------------------------------------------------- views

    def forward(self, x: Tensor) -> Any:
        """Class scores (B D) of images `x` (B C H W); a list of maps (B C H W each) of a features-only model."""
        if self.out_indices is not None:
            levels, _ = self._run(x, self.out_indices, to_end=False)
            maps, neck = self._maps(levels, x, self.out_indices), self.pyramid_neck
            return maps if neck is None else neck(maps[0], x.shape[2:], neck.strides)
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor, **inputs: Any) -> Tensor:
        """The trunk's last output, unpooled, in the architecture's own layout."""
        return self._run(x, (), to_end=True, **inputs)[1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Class scores (B D) of what `forward_features` gave; the embedding if `pre_logits`."""
        head = self._classifier_head()
        if head is not None:
            return head(x, pre_logits=pre_logits)
        pooled = self.pool(x)
        vectors = pooled if isinstance(pooled, tuple) else (pooled,)
        if self.drop_rate > 0.0:
            vectors = tuple(F.dropout(v, p=self.drop_rate, training=self.training) for v in vectors)
        return _mean(vectors) if pre_logits else self.classify(*vectors)

    def classify(self, *vectors: Tensor) -> Any:
        """Class scores of an embedding (B D), or of one for each classifier: the mean over the classifiers.

        A model in `distilled_training` gives the scores of its classifiers as a tuple while it trains.
        """
        each = vectors if len(vectors) > 1 else vectors * len(self.classifiers)
        scores = tuple(self._part(path)(v) for path, v in zip(self.classifiers, each))
        return scores if self.distilled_training and self.training and len(scores) > 1 else _mean(scores)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool | None = None,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **inputs: Any,
    ) -> Any:
        """The trunk's last output and the levels chosen, from one pass: `(last, [levels])`.

        `indices` chooses levels (None: all; n: the last n; a sequence: these, in its order). Levels come as NCHW maps,
        or as N L C token sequences with `output_fmt='NLC'`. `norm` is that of `pyramid`. With `return_prefix_tokens` a
        level of a token network is a pair of map and prefix tokens. `stop_early` runs nothing past the last level
        chosen. `intermediates_only` gives the list alone.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise BadArgument(f"output_fmt={output_fmt!r}: give 'NCHW' or 'NLC'")
        take = take_indices(self._depth if indices is None else len(self.plan.levels), indices, "indices")
        stops = stop_early and max(take) < self._depth - 1
        levels, last = self._run(x, take, to_end=not (intermediates_only or stops), **inputs)
        if stops and self.isotropic and not self._lost_norm:
            last = self._normed(last, max(take), norm=True)
        chosen = []
        for i in take:
            level = self._normed(levels[i], i, norm)
            prefix = level[:, : self.num_prefix_tokens] if self.layout == "NLC" else None
            if output_fmt == self.layout == "NLC" and self.native_size is None:
                level = level[:, self.num_prefix_tokens :]
            else:
                level = self._as_map(level, i, x)
                if output_fmt == "NLC":
                    level = level.flatten(2).transpose(1, 2)
            chosen.append((level, prefix) if return_prefix_tokens and prefix is not None else level)
        if intermediates_only:
            return chosen
        return last, chosen

    def pyramid(
        self, x: Tensor, strides: int | Sequence[int] | None = None, norm: bool | None = None
    ) -> dict[int, Tensor]:
        """Maps (B C H/s W/s) keyed by stride s, the deepest level of each stride; all strides unless some are named.

        `norm` passes levels through the trunk's final norm where that fits: all levels of a plain ViT, the last of a
        network that grows coarser. The others stay as they are; so do all where there is no such norm, or where it
        lies behind the pooling, as in a ViT with `fc_norm`. False is the default, everywhere, but for a model created
        with `features_only=True, norm=True`, whose `feature_info` says which levels are normed.

        Raises `UnsupportedStride` for a stride that the architecture (or what is left of it) lacks.
        """
        return self.extract(x, ("pyramid",), strides=strides, norm=norm)["pyramid"]

    def embed(self, x: Tensor) -> Tensor:
        """One vector an image (B D): what the classifier reads, never its scores."""
        return self.extract(x, ("embedding",))["embedding"]

    def tokens(self, x: Tensor) -> dict[str, Tensor]:
        """The named tokens of a token network, after its final norm.

        'patches' is a map (B C H/s W/s); 'cls' (B C) and others that come alone are vectors, 'registers' (B N C).
        Raises `BadArgument` for a network that has no tokens.
        """
        return self.extract(x, ("tokens",))["tokens"]

    def extract(
        self,
        x: Tensor,
        outputs: Sequence[str] = ("embedding", "pyramid"),
        strides: int | Sequence[int] | None = None,
        norm: bool | None = None,
    ) -> dict[str, Any]:
        """Several views of one forward pass: any of 'scores', 'embedding', 'tokens', 'features' and 'pyramid'.

        'features' is the trunk's last output, unpooled; the others are as the methods `forward`, `embed`, `tokens`
        and `pyramid` give them. `strides` and `norm` are the pyramid's.
        """
        self._check_outputs(outputs)
        take: tuple[int, ...] = ()
        neck = self.pyramid_neck
        if "pyramid" in outputs:
            take = self._levels_of_strides(strides) if neck is None else self.out_indices or ()
        needs_last = any(name != "pyramid" for name in outputs)
        if needs_last and self.out_indices is not None:
            raise BadArgument(f"a features-only model has no {outputs[0]}; create it without features_only")
        levels, last = self._run(x, take, to_end=needs_last)
        found: dict[str, Any] = {}
        if "embedding" in outputs:
            embedding = self.forward_head(last, pre_logits=True)
            if embedding.ndim != 2:
                raise BadArgument("this model has no pooling (global_pool=''), so no embedding; "
                                  "reset_classifier(0, 'avg') gives it one")
            found["embedding"] = embedding
        if "scores" in outputs:
            found["scores"] = self.forward_head(last)
        if "tokens" in outputs:
            found["tokens"] = self._named_tokens(last, x)
        if "features" in outputs:
            found["features"] = last
        if "pyramid" in outputs:
            maps = self._maps(levels, x, take, norm)
            reductions = [self.feature_info[i]["reduction"] for i in take]
            if neck is not None:
                chosen = range(len(neck.strides)) if strides is None else take_strides(neck.strides, strides, "strides")
                reductions = [neck.strides[i] for i in chosen]
                maps = neck(maps[0], x.shape[2:], reductions)
            found["pyramid"] = dict(zip(reductions, maps))
        return {name: found[name] for name in outputs}

    def _check_outputs(self, outputs: Sequence[str]) -> None:
        """Raises `BadArgument` for a view that there is not, or that this network cannot give."""
        known = ("scores", "embedding", "tokens", "features", "pyramid")
        wrong = [name for name in outputs if name not in known]
        if wrong:
            raise BadArgument(f"outputs={list(outputs)}: there is no view {wrong[0]!r}; give some of {', '.join(known)}")
        if "tokens" in outputs and self.layout != "NLC":
            raise BadArgument(f"{type(self).__name__} has no tokens; it gives scores, embedding, features and pyramid")

    # ---------------------------------------------------------------- the classifier

    @property
    def head_hidden_size(self) -> int:
        """Width of the embedding, which the classifier reads."""
        if self._hidden is not None:
            return self._hidden
        head = self._classifier_head()
        pool = getattr(self, "global_pool", None) if head is None else head.global_pool
        return self.num_features * (1 if pool is None else pool.feat_mult())

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name of `pretrained_cfg`."""
        return self.pretrained_cfg

    @property
    def out_channels(self) -> list[int]:
        """Channels of the levels given out: MindCV's name of `feature_info.channels()`."""
        channels: list[int] = self.feature_info.channels()
        return channels

    def _classifier_head(self) -> Any:
        """The module that pools and classifies, where one does both: it takes `pre_logits` and has a `reset`."""
        owner = self.classifiers[0].rpartition(".")[0]
        head = self._modules.get(owner) if owner else None
        return head if hasattr(head, "reset") else None

    def get_classifier(self) -> Any:
        """The classifying layer; a tuple where there are several."""
        found = tuple(self.get_submodule(path) for path in self.classifiers)
        return found[0] if len(found) == 1 else found

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier of `num_classes` (0 removes it), with another pooling if `global_pool` is given.

        Where pooling was off and the classifier needs it, it is average pooling from here on. Raises `BadArgument` for a
        features-only model.
        """
        if self.out_indices is not None:
            raise BadArgument(f"num_classes={num_classes}: a features-only model gives maps and has no classifier; create it "
                              "without features_only")
        like = next(self.parameters())
        self.num_classes = num_classes
        self.remember(num_classes=num_classes)
        head = self._classifier_head()
        takes_maps = self.layout == "NLC" or getattr(head, "use_conv", False) or getattr(head, "takes_maps", False)
        if num_classes and global_pool is None and not self._pool_type and not takes_maps:
            global_pool = "avg"
        if global_pool is not None:
            self._pool_type = global_pool
            self.remember(global_pool=global_pool)
        with like.device:
            if head is not None:
                fits = dict(in_features=self.num_features) if getattr(head, "takes_width", False) else {}
                head.reset(num_classes, global_pool, **fits)
                head.to(dtype=like.dtype)
            else:
                if global_pool is not None:
                    self.set_pool(global_pool)
                for path in self.classifiers:
                    owner, _, name = path.rpartition(".")
                    setattr(self.get_submodule(owner), name, self.new_classifier(path).to(dtype=like.dtype))
        if self.frozen is not None:
            self.frozen = without_modules(self.frozen, self._head_modules())
        self.train(self.training)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class, where known; set them (one a class) to have them saved with the model."""
        names = self.pretrained_cfg.get("label_names")
        return tuple(names) if names is not None and len(names) == self.num_classes else None

    @class_names.setter
    def class_names(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or len(names) != self.num_classes or not all(isinstance(name, str) for name in names):
            raise BadArgument(f"class_names={names!r:.60}: give a list of {self.num_classes} names, one for each class")
        told = {key: value for key, value in self.pretrained_cfg.items() if key != "label_descriptions"}
        self.pretrained_cfg = told | {"label_names": tuple(names), "num_classes": self.num_classes}

    def save(self, directory: str | Path, class_names: Sequence[str] | None = None, overwrite: bool = False) -> None:
        """Writes this model into a folder, from which `ziggurat.load` makes it again; see `ziggurat.save`."""
        from ..saving import save

        save(self, directory, class_names, overwrite)

    def drop_head(self) -> None:
        """Removes the classifier and everything else that only it needs."""
        self.reset_classifier(0, "")

    def _head_modules(self) -> set[str]:
        """Top-level names of the modules that `forward_head` uses."""
        return {path.split(".")[0] for path in self.classifiers} | {"global_pool", *self.head_modules}

    # ---------------------------------------------------------------- from outside, unit by unit

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: units keep their input only and run again in the backward pass."""
        self.grad_checkpointing = enable
        checkpoint_units(named_units(self, self.units), enable)

    def freeze(self, upto: int | None = None) -> tuple[str, ...]:
        """Stops training of everything up to and including level `upto` (negative: from the end); None: of all.

        Parameters there, positions and class tokens included, no longer require gradients; batch-norm statistics stay
        as they are and dropout and drop path are off, also after `train()`. The forward pass in evaluation is
        unchanged. Returns the paths of the modules frozen. A later call replaces an earlier one, and a classifier that
        `reset_classifier` makes afterwards trains. Raises `BadArgument` for a level that is not there.
        """
        after: list[str] = []
        if upto is not None:
            if not -self._depth <= upto < self._depth:
                raise BadArgument(f"upto={upto}: there is no such level; give 0 to {self._depth - 1} "
                                  f"(or -{self._depth} to -1 from the end), or None to freeze everything")
            upto %= self._depth
            after = self._registered_after(self.feature_info[upto]["module"])
        self.unfreeze()
        self.frozen = freeze_modules(self, upto, after)
        return self.frozen.modules

    def unfreeze(self) -> None:
        """Undoes `freeze`: what trained before it trains again."""
        frozen, self.frozen = self.frozen, None
        if frozen is not None:
            unfreeze_modules(self, frozen)

    def train(self, mode: bool = True) -> Backbone:
        """Sets training or evaluation mode; what `freeze` has frozen stays in evaluation."""
        super().train(mode)
        if mode and self.frozen is not None:
            hold_still(self, self.frozen)
        return self

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters by depth, for `group_parameters`: one group a unit, or a stage if `coarse`."""
        first_number = re.search(r"\([^?][^)]*\)", self.units)
        assert first_number is not None, f"{type(self).__name__}.units captures nothing"
        by_stage = "^" + self.units[: first_number.end()]
        names = [name for name, _ in self.named_parameters()]
        inside = [i for i, name in enumerate(names) if re.match(by_stage, name)]
        heads = self._head_modules() | {"pyramid_neck"}
        owner = names[inside[0]].split(".")[0]

        def part(name: str) -> str:
            # where stem and units share an owner ("features"), the owner says nothing
            return ".".join(name.split(".")[: 2 if name.startswith(owner + ".") else 1])

        stem = dict.fromkeys(map(part, names[: inside[0]]))
        tail = dict.fromkeys(part(name) for name in names[inside[-1] + 1 :] if name.split(".")[0] not in heads)
        joints: dict[str, float] = {}  # modules between stages, and the stage that each follows
        stage = 0.0
        for name in names[inside[0] : inside[-1]]:
            found = re.match(by_stage, name)
            if found:
                stage = as_number(found[1])
            else:
                joints[part(name)] = stage

        def either(tops: dict[str, None]) -> str:
            return "^(?:" + "|".join(map(re.escape, tops)) + r")(?:\.|$)"

        blocks: list[tuple[str, Any]] = [] if coarse else [("^" + self.units, None)]
        blocks.append((by_stage, None if coarse else (0,)))  # what else a stage has joins its first unit
        blocks += [(either({path: None}), (follows, *MATCH_PREV_GROUP)) for path, follows in joints.items()]
        if tail:
            blocks.append((either(tail), MATCH_PREV_GROUP))
        return ({"stem": either(stem)} if stem else {}) | {"blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, beside biases and norms."""
        return set(self.not_decayed)

    # ---------------------------------------------------------------- the modules held, by name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        return (name for name, module in self._modules.items() if module is not None)

    def __bool__(self) -> bool:
        return True


def _mean(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else sum(parts[1:], parts[0]) / len(parts)
