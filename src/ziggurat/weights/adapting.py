"""A state dict fitted to a model: other input channels, other classes, other names for the same tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ziggurat.errors import CheckpointMismatch
from ziggurat.weights.channels import Bands, adapt_input_conv, band_rows, is_map, refit_input
from ziggurat.weights.mindcv import COUNTER, from_mindcv
from ziggurat.weights.mindspore import AFFINE, STATISTICS, own_gammas
from ziggurat.weights.pretrained import PretrainedCfg

__all__ = ["adapt_input_conv", "adapt_state_dict", "by_order", "fit", "mismatch", "needed"]

Shapes = Mapping[str, Collection[int]]

# What timm's feature wrappers (and others') put before the names of the model inside.
OUTER = ("model.", "body.")
OURS = "ziggurat."
NECK = "pyramid_neck."  # levels that are made from a network's own, which classifiers do not have
SHOWN = 10

# A name that gives a checkpoint's origin away, what it then is, and what to do.
ORIGINS = (
    (r"^(optimizer|lr_scheduler|epoch)$", "a DeiT training checkpoint", "load the state dict under its entry 'model'"),
    (r"^_(conv_stem|blocks\.0\.)", "a checkpoint of the package efficientnet_pytorch", "convert it by the order of its tensors"),
    (r"^(encoder\.layers\.encoder_layer_0\.|conv_proj\.|trunk_output\.block1\.|features\.\d+\.(\d+\.)*(weight|block\.))",
     "a torchvision checkpoint", "load it into torchvision's model"),
    (r"^(\w+\.)?(embeddings\.|encoder\.layer\.0\.)", "a checkpoint of Hugging Face transformers", "use the timm repository of the same weights"),
    (r"^(visual|transformer\.resblocks|text_projection|logit_scale)\b", "an OpenCLIP checkpoint",
     "load the image tower alone, without the prefix 'visual.'"),
    (r"^(student|teacher)\.", "a DINO training checkpoint", "load its student or its teacher alone"),
    (r"^(encoder_q|base_encoder|momentum_encoder)\.", "a MoCo training checkpoint", "load its encoder alone"),
    (r"^backbone\.", "a detector's or segmenter's checkpoint", "load the tensors under 'backbone.' alone"),
    (r"/", "a JAX checkpoint in NumPy form", "use an architecture that reads it, or its converted weights"),
    (r"\.moving_(mean|variance)$", "a checkpoint under MindSpore's names", "create_model's auto_mapping=True pairs them with the model's"),
    (r"^\w+_\d+\.", "a features_only checkpoint of timm", "load it into the architecture that it was made from"),
)  # fmt: skip


def adapt_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor], cfg: PretrainedCfg, in_chans_from: Bands = None
) -> dict[str, Tensor]:
    """A checkpoint's state dict with the model's names, input channels and classes; tensors are shared, not copied.

    The model's own `remap_checkpoint` comes first, then the dialects of feature wrappers. The layers that read the
    image are refitted to the model's channels, as `in_chans_from` says (`channels.band_rows`). The classifier is left out where the model's number of
    classes is not the checkpoint's (a negative `cfg.num_classes` never is), and cut by `cfg.label_offset` where the
    checkpoint has background classes. Raises `CheckpointMismatch` for an input that cannot be refitted.
    """
    return fit(model, state_dict, cfg, in_chans_from=in_chans_from)[0]


def fit(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    cfg: PretrainedCfg,
    strict: bool = True,
    in_chans_from: Bands = None,
    auto_mapping: bool = False,
) -> tuple[dict[str, Tensor], set[str]]:
    """What `adapt_state_dict` returns, and the names of the model's tensors that the checkpoint cannot fill.

    Without `strict`, an input that cannot be refitted is among these, with a warning.
    """
    own = model.state_dict()
    fitted = without_prefix(state_dict, own)
    if cfg.package and not own.keys() <= fitted.keys():
        free = [*names(cfg.first_conv), *names(cfg.classifier)]
        fitted = by_order(own, fitted, free=free, part=True)
    fitted = remapped(model, fitted, own)
    if auto_mapping:
        from ziggurat.weights.auto_mapping import paired

        fitted = paired(model, own, fitted, cfg)
    else:
        fitted = without_joints(fitted, own)
    unfilled = fit_input(model, own, fitted, cfg, strict, in_chans_from) | fit_classifier(model, own, fitted, cfg)
    if not any(name.startswith(NECK) for name in fitted):
        unfilled |= {name for name in own if name.startswith(NECK)}
    return fitted, unfilled


def needed(
    model: nn.Module, cfg: PretrainedCfg, is_part: bool, held: Collection[str]
) -> set[str] | None:
    """Of the names `held` by a checkpoint, those that loading takes (`loading.load_weights`, strict); None if any may be.

    That is known where the checkpoint has the model's own names, and nothing besides but what such a model does without:
    the classifier, or, of a model that `is_part` of a network, anything. A `remap_checkpoint` of somebody else's may
    make a tensor out of any others.
    """
    own = model.state_dict().keys()
    has_neck = any(name.startswith(NECK) for name in held)
    lacking = [name for name in own if name not in held and not name.endswith(COUNTER)
               and (has_neck or not name.startswith(NECK))]
    heads = head_prefixes(model, cfg)
    surplus = [name for name in held if name not in own and not name.startswith((*heads, NECK))]
    remap = getattr(type(model), "remap_checkpoint", None)
    if lacking or (surplus and not is_part) or not (remap is None or remap.__module__.startswith(OURS)):
        return None
    return {name for name in held if name in own}


def head_prefixes(model: nn.Module, cfg: PretrainedCfg) -> tuple[str, ...]:
    """How the names of a classifier's tensors begin: as a configuration states, or else as the model's own would."""
    return tuple(f"{path}." for path in names(cfg.classifier) or getattr(model, "classifiers", ()))


def fills(state_dict: Mapping[str, Any], own: Iterable[str]) -> bool:
    """Whether a state dict has all of a model's names, batch-norm counters apart."""
    return all(name in state_dict or name.endswith(COUNTER) for name in own)


def remapped(model: nn.Module, state_dict: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """A state dict of MindCV's, or of another publisher that the model's `remap_checkpoint` knows, under the names `own`."""
    found = dict(state_dict)
    if not fills(found, own):
        found = from_mindcv(model, own_gammas(found, own), own)
    remap: Any = getattr(model, "remap_checkpoint", None)
    return found if remap is None else dict(remap(found))


def names(path: str | Iterable[str] | None) -> tuple[str, ...]:
    """One module path, several or none, as a tuple."""
    if not path:
        return ()
    return (path,) if isinstance(path, str) else tuple(path)


def without_prefix(state_dict: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names without an outer `model.` or `body.` that all of them have and the model's lack."""
    for prefix in OUTER:
        wrapped = bool(state_dict) and all(name.startswith(prefix) for name in state_dict)
        if wrapped and not any(name.startswith(prefix) for name in own):
            return {name[len(prefix) :]: tensor for name, tensor in state_dict.items()}
    return dict(state_dict)


def without_joints(state_dict: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """`layer1_0.` and `stem_conv1.`, as timm's feature wrappers join them, as `layer1.0.` and `stem.conv1.`, where the model
    has such a name."""
    if fills(state_dict, own):
        return state_dict
    renamed = {}
    for name, tensor in state_dict.items():
        first = "" if name in own else name.partition(".")[0]
        split = [f"{name[:at]}.{name[at + 1:]}" for at, letter in enumerate(first) if letter == "_"]
        renamed[next((one for one in split if one in own and one not in state_dict), name)] = tensor
    return renamed


def by_order(
    own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], free: Collection[str] = (), part: bool = False
) -> dict[str, Tensor]:
    """A state dict under the model's names where only the order of the tensors agrees, every shape checked.

    Batch-norm counters are left out where the two do not have the same number of them. Tensors of the modules in
    `free` may have other shapes. `part` allows a model that has only the first of the tensors (a pruned one).
    Raises `CheckpointMismatch`.
    """
    ours, theirs = list(own), list(state_dict)
    if len(ours) != len(theirs) and not (part and counters(ours) and counters(theirs)):
        ours, theirs = ([name for name in side if not name.endswith(COUNTER)] for side in (ours, theirs))
    if len(ours) > len(theirs) or (len(ours) < len(theirs) and not part):
        raise CheckpointMismatch(
            f"the checkpoint has {len(state_dict)} tensors and the model {len(own)}, so they cannot be matched by their "
            "order. Choose the architecture that the checkpoint is of."
        )
    matched = {}
    for name, other in zip(ours, theirs):  # the rest of theirs is what a pruned model lacks
        tensor = state_dict[other]
        if tensor.shape != own[name].shape and name.rpartition(".")[0] not in free:
            raise CheckpointMismatch(
                f"matched by their order, the checkpoint's {other} {tuple(tensor.shape)} meets the model's {name} "
                f"{tuple(own[name].shape)}. Choose the architecture that the checkpoint is of."
            )
        matched[name] = tensor
    return matched


def counters(side: list[str]) -> bool:
    return any(name.endswith(COUNTER) for name in side)


def fit_input(
    model: nn.Module,
    own: Mapping[str, Tensor],
    fitted: dict[str, Tensor],
    cfg: PretrainedCfg,
    strict: bool,
    in_chans_from: Bands = None,
) -> set[str]:
    """Refit the layers that read the image in place; returns the names of those that stay as initialised.

    They are those of `cfg.first_conv` and every other weight that differs from the model's in its input channels alone
    and by as much: a stem of several branches has several.
    """
    listed = [name for name in (f"{path}.weight" for path in names(cfg.first_conv)) if name in own and name in fitted]
    changed = [name for name in fitted if name in own and only_inputs_differ(own[name], fitted[name])]
    in_chans, base_chans = channels_of(model, own, fitted, cfg, listed, changed, is_map(in_chans_from))
    rows = band_rows(in_chans_from, in_chans, base_chans)
    inputs = [name for name in changed if own[name].shape[1] * base_chans == fitted[name].shape[1] * in_chans]
    if in_chans == base_chans and is_map(in_chans_from):
        inputs = listed  # as many channels, in another order
        if not inputs:
            raise CheckpointMismatch(
                f"in_chans_from={in_chans_from}: which layer reads the image is not known; state its path as first_conv, in "
                "the default_cfg or by pretrained_cfg_overlay=dict(first_conv=...)."
            )
    unfilled = set()
    for name in inputs:
        try:
            fitted[name] = refit_input(fitted[name], rows, lies_channels_last(model, name, own[name], in_chans))
        except NotImplementedError as reason:
            if strict:
                raise CheckpointMismatch(
                    f"the checkpoint is for {base_chans} input channels and cannot be loaded into this model: {reason} "
                    f"({name}). Build the model with in_chans={base_chans}."
                ) from reason
            warnings.warn(f"{name} is left as it was: {reason}", stacklevel=4)
            del fitted[name]
            unfilled.add(name)
    return unfilled


def only_inputs_differ(ours: Tensor, theirs: Tensor) -> bool:
    return (
        ours.ndim == theirs.ndim > 1
        and ours.shape[1] != theirs.shape[1]
        and ours.shape[:1] + ours.shape[2:] == theirs.shape[:1] + theirs.shape[2:]
    )


def channels_of(
    model: nn.Module,
    own: Mapping[str, Tensor],
    fitted: Mapping[str, Tensor],
    cfg: PretrainedCfg,
    listed: Collection[str],
    changed: Collection[str],
    is_mapped: bool,
) -> tuple[int, int]:
    """The channels of the model's images and, as `cfg.input_size` says, of the checkpoint's.

    A model that does not say it, and whose first layer is not listed, is seen by those of its layers that have been
    `changed` and read as many channels in the checkpoint as its images have. Raises `CheckpointMismatch` where a first
    layer tells otherwise, unless it needs no refitting.
    """
    base_chans = (cfg.input_size or (3,))[0]
    in_chans = getattr(model, "in_chans", None)
    if in_chans is None and all(fitted[name].shape[1] != base_chans for name in listed):
        read = {own[name].shape[1] for name in changed if fitted[name].shape[1] == base_chans}
        in_chans = read.pop() if len(read) == 1 else None
    for name in listed:
        ours, theirs = own[name].shape[1], fitted[name].shape[1]
        if in_chans is None:
            in_chans = base_chans * ours // theirs
        if theirs * in_chans != ours * base_chans and (theirs != ours or is_mapped):
            raise CheckpointMismatch(
                f"the checkpoint's {name} {tuple(fitted[name].shape)} is not one for {base_chans} channels, which its "
                f"configuration's input_size says; the model's, for {in_chans}, is {tuple(own[name].shape)}. Correct "
                "input_size (pretrained_cfg_overlay=...), or choose the architecture that the checkpoint is of."
            )
    return in_chans or base_chans, base_chans


def lies_channels_last(model: nn.Module, name: str, weight: Tensor, in_chans: int) -> bool:
    """Whether a first layer that reads several pixels at once has the channels of each side by side.

    A convolution has, as `layers.SpaceToDepth` makes its input; any other layer says so by an attribute `channels_last`.
    """
    module = model.get_submodule(name.rpartition(".")[0])
    said = getattr(module, "channels_last", True if weight.ndim > 2 or weight.shape[1] == in_chans else None)
    if said is None:
        raise NotImplementedError(
            f"whether its {weight.shape[1]} inputs are ordered by pixel or by channel is not known; set its "
            "attribute channels_last to True or False"
        )
    return bool(said)


def fit_classifier(
    model: nn.Module, own: Mapping[str, Tensor], fitted: dict[str, Tensor], cfg: PretrainedCfg
) -> set[str]:
    """Cut or leave out the classifier in place; returns the names of the model's that stay as initialised."""
    heads = tuple(f"{path}." for path in names(cfg.classifier))
    if not heads:
        return set()
    classes = getattr(model, "num_classes", None)
    if classes is None:
        weight = own.get(f"{heads[0]}weight")
        classes = 0 if weight is None else weight.shape[0]
    if classes == cfg.num_classes:
        offset = cfg.label_offset
        if offset:
            for name in fitted:
                if name.startswith(heads):
                    fitted[name] = fitted[name][offset:] if offset > 0 else fitted[name][:classes]
        return set()
    ours = {name: tensor.shape for name, tensor in own.items() if name.startswith(heads)}
    theirs = {name: tensor.shape for name, tensor in fitted.items() if name.startswith(heads)}
    if theirs == ours and cfg.num_classes >= 0:
        return set()  # a fine-tuned checkpoint under the configuration of the weights that it began with
    for name in theirs:
        del fitted[name]
    return set(ours)


def mismatch(model_keys_shapes: Shapes, state_dict: Mapping[str, Any], surplus: Collection[str] = ()) -> str | None:
    """What sets a state dict apart from a model, and how much of it it fills, in one message; None where nothing does.

    At most ten names of a kind (missing, unexpected, other shape) are shown, grouped by module, with the number of
    the others and a guess at where the checkpoint came from. Missing batch-norm counters do not count. `surplus` are
    names in the checkpoint that the model may lack: they are unexpected where not even half of the model is filled.
    """
    missing = [n for n in model_keys_shapes if n not in state_dict and not n.endswith(COUNTER)]
    unexpected = [n for n in state_dict if n not in model_keys_shapes]
    shaped = [
        (n, tuple(state_dict[n].shape), tuple(shape))
        for n, shape in model_keys_shapes.items()
        if n in state_dict and tuple(state_dict[n].shape) != tuple(shape)
    ]
    count = sum(not name.endswith(COUNTER) for name in model_keys_shapes)
    filled = count - len(missing) - len(shaped)
    if 2 * filled < count:
        unexpected += surplus
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {grouped(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {grouped(unexpected)}")
    if shaped:
        listed = [f"{name} {theirs} where the model has {ours}" for name, theirs, ours in shaped[:SHOWN]]
        parts.append(f"{len(shaped)} of another shape: {', '.join(listed)}{more(shaped)}")
    if not parts:
        return None
    guess = origin(missing, unexpected, shaped, {*state_dict, *surplus})
    return f"the checkpoint's tensors are not the model's. It fills {filled} of the model's {count}: {'; '.join(parts)}. {guess}"


def more(found: Collection[Any]) -> str:
    return f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""


def grouped(found: list[str]) -> str:
    """At most ten names, those of one module together: `layer1.0.bn1.{weight, bias}, fc.weight, and 12 more`."""
    groups: dict[str, list[str]] = {}
    for name in found[:SHOWN]:
        prefix, dot, last = name.rpartition(".")
        groups.setdefault(prefix + dot, []).append(last)
    shown = [
        prefix + (leaves[0] if len(leaves) == 1 else "{" + ", ".join(leaves) + "}") for prefix, leaves in groups.items()
    ]
    return ", ".join(shown) + more(found)


def origin(
    missing: list[str], unexpected: list[str], shaped: list[tuple[str, Any, Any]], held: Collection[str]
) -> str:
    """A guess at where a checkpoint with these differences came from, and what to do about it; it has the names `held`."""
    if not held:
        return "It holds no tensor of a network."
    halved = half_norm(missing, held)
    if halved:
        return f"Of the normalisation {halved} the checkpoint has one half: it was cut off or damaged. Fetch it again."
    for pattern, what, advice in ORIGINS:
        if any(re.search(pattern, name) for name in unexpected):
            return f"It looks like {what}: {advice}."
    if missing and not unexpected and not shaped:
        return (
            "The rest agrees: it is of a features_only model with fewer levels (load it into one of the same levels), of a "
            "shallower variant, or was cut off (fetch it again)."
        )
    parents = {name.rpartition(".")[0] for name, _, _ in shaped}
    if not missing and not unexpected and len(parents) == 1 and all(a[1:] == b[1:] for _, a, b in shaped):
        return (
            f"Only the number of outputs of {parents.pop()} differs: if that is the classifier, build the model with "
            f"num_classes={shaped[0][1][0]}."
        )
    if shaped and not missing and not unexpected:
        return "The names agree and the sizes do not: it is of a narrower, wider or otherwise sized variant."
    if missing and unexpected:
        return "Choose the architecture that the checkpoint is of; if names alone differ, create_model's auto_mapping=True pairs them."
    return "Choose the architecture that the checkpoint is of."


def half_norm(missing: Collection[str], held: Collection[str]) -> str | None:
    """A normalisation of the model's of which a checkpoint has parameters or statistics alone, or one of a pair of them."""
    for name in missing:
        path, dot, leaf = name.rpartition(".")
        if leaf in AFFINE.values() and f"{path}{dot}running_mean" in held:
            return path
        for pair in (AFFINE, STATISTICS):
            found = [f"{path}{dot}{old}" in held for old in pair]
            if leaf in pair.values() and any(found) and not all(found):
                return path
    return None
