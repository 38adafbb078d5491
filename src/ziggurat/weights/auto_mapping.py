"""A checkpoint under a model's names where the two were named by different people.

Tensors are paired by name, shape and order together. What belongs to one layer (weight, bias, statistics) stays together
and is one part; a part of the checkpoint and one of the model can be a pair if their tensors have the same shapes.

1. The same name, in whatever spelling (`features_3.conv`, `features.3.conv`), is the same part, unless the numbers in such
   names are shifted as a whole: then they are paired with the shift.
2. Of what is left, parts of one shape are paired in the order of the numbers in their names, if that is an order of all
   of them on both sides; if not, parts whose names have the same words are, with those whose words are closest. A
   word that always stands for another one (`norm` for `bn`) in pairs that are sure is as close as itself for the others.
   Several numbers must nest alike (3 stages of 2 layers are not 2 of 3), and belong to the same words where these say so.
3. A tensor whose name does not tell a weight from a bias is the model's only one of its shape, if it is the only one too.
4. Where another pairing would do as well, all are refused, and so is a part of the model that nothing is left for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations, zip_longest
from typing import Any, TypeAlias

from torch import Tensor, nn

from ziggurat.errors import CheckpointMismatch
from ziggurat.weights.adapting import COUNTER, NECK, names
from ziggurat.weights.pretrained import PretrainedCfg

__all__ = ["pair", "paired"]

Shape: TypeAlias = tuple[int, ...]
Pairs: TypeAlias = list[tuple["Part", "Part"]]  # the model's, the checkpoint's

# What the tensors of a layer are called, by torch's names.
LEAVES = {
    "weight": "weight", "gamma": "weight", "kernel": "weight", "w": "weight", "scale": "weight", "embedding_table": "weight",
    "bias": "bias", "beta": "bias", "b": "bias", "offset": "bias",
    "running_mean": "running_mean", "moving_mean": "running_mean", "mean": "running_mean",
    "running_var": "running_var", "moving_variance": "running_var", "variance": "running_var", "var": "running_var",
}  # fmt: skip
TOKENS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
JOINED_LEAF = re.compile(rf"(.+?)_({'|'.join(LEAVES)})")  # by an underscore to the name of the layer
SAME = ({"q", "query"}, {"k", "key"}, {"v", "value"})  # words that people use for one thing
SHOWN = 6


@dataclass(frozen=True, eq=False)
class Part:
    """The tensors of one layer: their full names and shapes by torch's names, and what the name of the layer says."""

    tokens: tuple[str | int, ...]
    tensors: dict[str, tuple[str, Shape]]
    place: int
    """Where it comes in the state dict."""

    @property
    def words(self) -> tuple[str, ...]:
        """The name with its numbers left open."""
        return tuple("#" if isinstance(token, int) else token for token in self.tokens)

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(token for token in self.tokens if isinstance(token, int))

    @property
    def shapes(self) -> frozenset[tuple[str, Shape]]:
        return frozenset((leaf, shape) for leaf, (_, shape) in self.tensors.items())

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.tensors.values()]


@dataclass(frozen=True)
class Words:
    """What words of the model's names stand for in the checkpoint's."""

    known: Mapping[str, str]
    """Words that stand for others, found in pairs that are sure."""
    abbreviates: bool
    """Whether the beginning of a word may stand for it."""

    def closeness(self, ours: Sequence[str], theirs: Sequence[str]) -> float:
        """How many words two names have in common in the same order, abbreviations counting half: 0 to 1."""
        a, b = plain(ours), plain(theirs)
        if not a or not b:
            return 0.0
        best = [0.0] * (len(b) + 1)
        for x in a:
            before, best = best, [0.0]
            for j, y in enumerate(b):
                best.append(max(before[j] + self.alike(x, y), before[j + 1], best[j]))
        return 2 * best[-1] / (len(a) + len(b))

    def alike(self, ours: str, theirs: str) -> float:
        if theirs in (ours, self.known.get(ours)) or {ours, theirs} in SAME:
            return 1.0
        if not self.abbreviates or ours in self.known or theirs in self.known.values():
            return 0.0
        return 0.5 * (min(len(ours), len(theirs)) > 2 and (ours.startswith(theirs) or theirs.startswith(ours)))


def paired(
    model: nn.Module, own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], cfg: PretrainedCfg
) -> dict[str, Tensor]:
    """A state dict with its tensors under the names `own` of the model's; prints those that had another one.

    Channels of the layer that reads the image (`cfg.first_conv`) may differ, and a classifier (`cfg.classifier`) of other
    classes than the checkpoint's may be left without a pair. What the model does not have keeps its name, unless another
    tensor has that now. Raises `CheckpointMismatch` for a pairing that is ambiguous or leaves another part of the model unfilled.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items() if not name.endswith(COUNTER)}
    if wanted.keys() <= state_dict.keys():
        return dict(state_dict)
    in_chans, base_chans = getattr(model, "in_chans", None), cfg.input_size[0]
    for path in names(cfg.first_conv):
        shape = wanted.get(f"{path}.weight")
        if shape is not None and in_chans is not None:
            wanted[f"{path}.weight"] = (shape[0], shape[1] * base_chans // in_chans, *shape[2:])
    heads = [path for path in names(cfg.classifier) if own.get(f"{path}.weight") is not None]
    free = [NECK, *(f"{path}." for path in heads if own[f"{path}.weight"].shape[0] != cfg.num_classes)]
    found = pair(wanted, {name: tuple(tensor.shape) for name, tensor in state_dict.items()}, tuple(free))
    counters, others = counters_of(own), counters_of(state_dict)
    for theirs, ours in list(found.items()):  # they go with their layers
        counter, other = (of.get(tokens_of(layer_of(name)[0])) for of, name in ((counters, ours), (others, theirs)))
        if counter is not None and other is not None:
            found[other] = counter
    told(found)
    renamed = {ours: state_dict[theirs] for theirs, ours in found.items()}
    for name, tensor in state_dict.items():
        if name not in found:
            renamed[f"{name} (left over)" if name in own else name] = tensor
    return renamed


def counters_of(state_dict: Iterable[str]) -> dict[tuple[str | int, ...], str]:
    """The batch-norm counters by the names of their layers."""
    return {tokens_of(name.removesuffix(COUNTER)): name for name in state_dict if name.endswith(COUNTER)}


def pair(own: Mapping[str, Shape], theirs: Mapping[str, Shape], free: Sequence[str] = ()) -> dict[str, str]:
    """The checkpoint's names and the model's `own` that they stand for, given the shapes of both.

    The model's that begin with one of `free` may be left without. Raises `CheckpointMismatch`.
    """
    ours, others = parts_of(own), parts_of(theirs)
    if not {part.tokens for part in ours} <= {part.tokens for part in others}:
        refuse_twins(own, theirs)
    ours, others = without_lead(ours, others), without_lead(others, ours)
    done = by_name(ours, others)
    rest = [part for part in ours if part not in {o for o, _ in done}]
    left = [part for part in others if part not in {t for _, t in done}]
    in_order = list(theirs) != sorted(theirs)  # else the file tells nothing of the network's order
    abbreviates = False  # only where nothing else helps
    while True:
        words = Words(synonyms(done), abbreviates)
        found: Pairs = []
        undecided: list[tuple[list[Part], list[Part]]] = []
        for shapes in dict.fromkeys(part.shapes for part in rest):
            mine = [part for part in rest if part.shapes == shapes]
            candidates = [part for part in left if part.shapes == shapes]
            pairs = by_shape(mine, candidates, in_order, words)
            found += pairs
            if candidates and len(pairs) < len(mine):
                undecided.append((without(mine, pairs, 0), without(candidates, pairs, 1)))
        if not found and abbreviates:
            break
        abbreviates = not found
        done += found
        rest, left = without(rest, found, 0), without(left, found, 1)
    alone = by_shape_alone(rest, left)
    for mine, candidates in undecided:
        if candidates and not all(name.startswith(tuple(free)) for part in mine for name in part.names):
            raise CheckpointMismatch(
                f"auto_mapping: which of the checkpoint's {some(n for part in candidates for n in part.names)} is which of "
                f"the model's {some(n for part in mine for n in part.names)}? Their shapes are the same, and neither names "
                "nor the numbers in them decide. Rename the checkpoint's tensors."
            )
    refuse_strays(done)
    names_of = {t.tensors[leaf][0]: name for o, t in done for leaf, (name, _) in o.tensors.items() if leaf in t.tensors}
    names_of |= alone
    unfilled = [name for name in own if name not in names_of.values() and not name.startswith(tuple(free))]
    if unfilled:
        spare = [f"{name} {shape}" for name, shape in theirs.items() if name not in names_of and not name.endswith(COUNTER)]
        raise CheckpointMismatch(
            f"auto_mapping: {len(unfilled)} of the model's {len(own)} tensors have no pair in the checkpoint: "
            f"{some(f'{name} {own[name]}' for name in unfilled)}. Left over in it: {some(spare) or 'nothing'}. Choose the "
            "architecture that the checkpoint is of, or rename its tensors."
        )
    return names_of


def refuse_twins(own: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> None:
    """Raises where a checkpoint has one network under two names, each enough for the whole model."""
    for depth in (1, 2, 3):
        found: dict[frozenset[tuple[str, Shape]], str] = {}
        under: dict[str, set[tuple[str, Shape]]] = {}
        for name, shape in theirs.items():
            segments = name.split(".")
            if len(segments) > depth:
                under.setdefault(".".join(segments[:depth]), set()).add((".".join(segments[depth:]), shape))
        for start, held in under.items():
            twin = "no prefix" if held <= theirs.items() else found.setdefault(frozenset(held), start)
            if len(held) >= max(len(own), 2) and twin != start:
                raise CheckpointMismatch(
                    f"auto_mapping: the checkpoint has one network twice, under {twin} and under {start}, and neither is "
                    f"named as the model is ({some(own)}). Leave one of them out of the file."
                )


def refuse_strays(pairs: Pairs) -> None:
    """Raises where names of the same words are paired, but not in one order, or most with one shift and a few with another.

    A layer of another depth may have the shape of one that the checkpoint lacks. Nor may one be left for a layer of other
    words where layers of its own words and shape kept theirs: those may have been counted anew.
    """
    kept = {(o.words, o.shapes): (o, t) for o, t in pairs if o.words == t.words}
    for o, t in pairs:
        a, b = kept.get((t.words, t.shapes)) or kept.get((o.words, o.shapes)) or (o, t)
        if o.words != t.words and b is not t:
            raise CheckpointMismatch(
                f"auto_mapping: the checkpoint's {t.names[0]} is left for the model's {o.names[0]} by its shape alone, but "
                f"{b.names[0]} has that shape too: is it {a.names[0]}, or are such layers numbered otherwise? Rename the "
                "checkpoint's tensors."
            )
    kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], Pairs] = {}
    for o, t in pairs:
        kinds.setdefault((o.words, t.words), []).append((o, t))
    for kind in kinds.values():
        steps = [tuple(j - i for i, j in zip(o.numbers, t.numbers)) for o, t in kind]
        usual, count = Counter(steps).most_common(1)[0]
        strays = [pair for pair, step in zip(kind, steps) if step != usual] if count > max(2, len(kind) / 2) else []
        in_order = sorted(kind, key=lambda pair: pair[0].numbers)
        if not strays:
            strays = [b for a, b in pairwise(in_order) if a[1].numbers >= b[1].numbers]
        if strays:
            o, t = strays[0]
            raise CheckpointMismatch(
                f"auto_mapping: by its shape the checkpoint's {t.names[0]} would be the model's {o.names[0]}, but the numbers "
                "in the names of such layers pair them otherwise. Choose the architecture that the checkpoint is of, or "
                "rename its tensors."
            )


def without(parts: Sequence[Part], pairs: Pairs, side: int) -> list[Part]:
    """The parts that are on that side of no pair."""
    gone = {pair[side] for pair in pairs}
    return [part for part in parts if part not in gone]


def synonyms(pairs: Pairs) -> dict[str, str]:
    """Words of the model's names that always stand where the checkpoint's have one other word, with that word."""
    seen: dict[str, set[str]] = {}
    back: dict[str, set[str]] = {}
    for o, t in pairs:
        a, b = plain(o.words), plain(t.words)
        for x, y in zip(a, b) if len(a) == len(b) else ():
            seen.setdefault(x, set()).add(y)
            back.setdefault(y, set()).add(x)
    return {x: y for x, ys in seen.items() for y in ys if len(ys) == 1 and len(back[y]) == 1}


# -------------------------------------------------------------------- names


def parts_of(shapes: Mapping[str, Shape]) -> list[Part]:
    """The layers that tensors belong to, in their order."""
    homes: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    for name in shapes:
        if not name.endswith(COUNTER):
            path, leaf = layer_of(name)
            homes.setdefault(tokens_of(path), {}).setdefault(leaf, []).append(name)
    parts: list[Part] = []
    for tokens, leaves in homes.items():
        alone = {leaf: held[0] for leaf, held in leaves.items() if len(held) == 1 and leaf}
        if alone:
            parts.append(Part(tokens, {leaf: (name, shapes[name]) for leaf, name in alone.items()}, len(parts)))
        for leaf, held in leaves.items():
            if leaf not in alone:  # a tensor by itself, or two that look alike: each is a part
                parts += [Part(tokens_of(name), {"": (name, shapes[name])}, len(parts) + i) for i, name in enumerate(held)]
    return parts


def without_lead(parts: list[Part], others: Sequence[Part]) -> list[Part]:
    """Parts without the words that the names of all of them begin with, unless one of the others begins so or all have it."""
    while parts and all(len(part.tokens) > 1 for part in parts):
        lead = parts[0].tokens[0]
        if isinstance(lead, int) or any(part.tokens[0] != lead for part in parts):
            break
        if any(part.tokens[:1] == (lead,) for part in others) or all(lead in part.tokens for part in others):
            break
        parts = [replace(part, tokens=part.tokens[1:]) for part in parts]
    return parts


def layer_of(name: str) -> tuple[str, str]:
    """The path of the layer that a tensor belongs to and torch's name for it there; '' for a tensor of its own."""
    path, _, leaf = name.rpartition(".")
    plain = leaf.rstrip("_").lower()
    if plain in LEAVES:
        return path, LEAVES[plain]
    joined = JOINED_LEAF.fullmatch(plain)
    return (f"{path}.{joined[1]}", LEAVES[joined[2]]) if joined else (name, "")


def tokens_of(path: str) -> tuple[str | int, ...]:
    """The words and numbers of a name, however they are joined."""
    return tuple(int(token) if token.isdigit() else token.lower() for token in TOKENS.findall(path))


def by_name(ours: Sequence[Part], theirs: Sequence[Part]) -> Pairs:
    """Parts of the same name; with the numbers shifted where all of a kind are."""
    found: Pairs = []
    for words in dict.fromkeys(part.words for part in ours):
        mine = {part.numbers: part for part in ours if part.words == words}
        other = {part.numbers: part for part in theirs if part.words == words}
        common = mine.keys() & other.keys()
        if not common:
            continue
        if common == mine.keys() or common == other.keys():
            found += [(part, other[numbers]) for numbers, part in mine.items() if numbers in other]
            continue
        a, b = sorted(mine), sorted(other)
        pairs = [(mine[i], other[j]) for i, j in zip(a, b)]
        if len(a) != len(b) or not is_shift(a, b) or any(o.shapes != t.shapes for o, t in pairs):
            raise CheckpointMismatch(
                "auto_mapping: the checkpoint's names are the model's in part, and their numbers are not shifted as a whole: "
                f"only the model has {some(n for i in a if i not in other for n in mine[i].names)}, only the checkpoint has "
                f"{some(n for j in b if j not in mine for n in other[j].names)}. Rename the checkpoint's tensors."
            )
        found += pairs
    return found


def is_shift(ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]) -> bool:
    """Whether numbers differ by the same amount at one place, or not at all."""
    steps = {tuple(j - i for i, j in zip(a, b)) for a, b in zip(ours, theirs)}
    return len(steps) == 1 and sum(step != 0 for step in steps.pop()) <= 1


# -------------------------------------------------------------------- shapes and order


def by_shape(ours: Sequence[Part], theirs: Sequence[Part], in_order: bool, words: Words) -> Pairs:
    """Those parts of one shape in pairs that names and the numbers in them decide."""
    if len(ours) == len(theirs):
        found = as_row(ours, theirs, in_order, words)
        if found:
            return found
    groups = [[part for part in ours if part.words == kind] for kind in dict.fromkeys(p.words for p in ours)]
    others = [[part for part in theirs if part.words == kind] for kind in dict.fromkeys(p.words for p in theirs)]
    fit = as_row if len(ours) == len(theirs) else as_start
    fits = {(i, j): pairs for i, a in enumerate(groups) for j, b in enumerate(others) if (pairs := fit(a, b, in_order, words))}
    close = {(i, j): words.closeness(a[0].words, b[0].words) for i, a in enumerate(groups) for j, b in enumerate(others)
             if (i, j) in fits or len(a) == len(b)}  # what may be meant, though its numbers do not fit
    found = []
    for (i, j), pairs in fits.items():
        rivals = [edge for edge in close if edge != (i, j) and (edge[0] == i or edge[1] == j)]
        is_only = not rivals and len(ours) == len(theirs)
        if is_only or (close[i, j] > 0 and all(close[i, j] > close[edge] for edge in rivals)):
            found += pairs
    return found


def as_row(ours: Sequence[Part], theirs: Sequence[Part], in_order: bool, words: Words) -> Pairs:
    """As many parts on both sides, in the order of the numbers in their names; nothing where that is no order."""
    a, b = row(ours), row(theirs)
    if len(ours) != len(theirs) or a is None or b is None:
        return []
    says_place = varying(a) == varying(b) or is_shift([p.numbers for p in a], [p.numbers for p in b])
    if not says_place and not (is_rising(a) and (is_rising(b) or not in_order)):
        return []  # the numbers say one thing, the order of the network or the file another
    if not is_nested_alike(a, b, in_order, words):
        return []
    for o, t in zip(a, b):
        here = words.closeness(o.words, t.words)
        others = [words.closeness(o.words, p.words) for p in b] + [words.closeness(p.words, t.words) for p in a]
        if max(others) > here:
            return []  # words say another thing
    return list(zip(a, b))


def as_start(ours: Sequence[Part], theirs: Sequence[Part], in_order: bool, words: Words) -> Pairs:
    """The first of more parts on the other side, where their numbers are the same or shifted as a whole."""
    if len(theirs) == len(ours):
        return as_row(ours, theirs, in_order, words)
    a, b = row(ours), row(theirs)
    if a is None or b is None or len(b) < len(a) or not a[0].numbers or len(a[0].numbers) != len(b[0].numbers):
        return []
    start = b[: len(a)]
    held = [part for part in b if part.numbers in {p.numbers for p in a}]
    if not is_shift([p.numbers for p in a], [p.numbers for p in start]) or (len(held) == len(a) and held != start):
        return []
    return list(zip(a, start)) if is_nested_alike(a, start, in_order, words) else []


def is_nested_alike(a: Sequence[Part], b: Sequence[Part], in_order: bool, words: Words) -> bool:
    """Whether the numbers of two rows count the same things in the same order, not transposed.

    One number that counts alone is the order of all. Where numbers of several places nest alike in another order too,
    words before them decide, or other layers that come between in the same way in a file that is in the network's order.
    """
    x, y = varying(a), varying(b)
    count = len(x[0])
    if min(count, len(y[0])) < 2:
        return True
    gaps, others = ([q.place - p.place for p, q in pairwise(parts)] for parts in (a, b))
    told_by_order = in_order and gaps == others and min(gaps) > 0 and max(gaps) > 1
    if nesting(x) != nesting(y):
        return False
    if count != len(y[0]):
        return told_by_order
    heads, other_heads = heads_of(a), heads_of(b)
    fit = [[max((words.alike(v, w) for v in us for w in them), default=0.0) for them in other_heads] for us in heads]
    said = sum(fit[i][i] for i in range(count))
    for order in permutations(range(count)):
        ours = [tuple(numbers[i] for i in order) for numbers in x]
        back = [tuple(numbers[order.index(i)] for i in range(count)) for numbers in y]
        if ours == sorted(ours) and back == sorted(back):
            continue  # the same pairs
        gain = sum(fit[i][j] for j, i in enumerate(order)) - said
        fits = sorted(ours) == y if x == y else nesting(sorted(ours)) == nesting(y) or nesting(sorted(back)) == nesting(x)
        if gain > 0 or (gain == 0 and fits and not told_by_order):
            return False
    return True


def nesting(rows: Sequence[tuple[int, ...]]) -> list[int]:
    """How deep each step from one row of numbers to the next goes: 1, 0, 1, 0, 1 for 3 times 2, 1, 1, 0, 1, 1 for 2 times 3."""
    steps = [next(i for i, (x, y) in enumerate(zip(a, b)) if x != y) for a, b in pairwise(rows)]
    depths = sorted(set(steps))
    return [depths.index(step) for step in steps]


def by_shape_alone(ours: Sequence[Part], theirs: Sequence[Part]) -> dict[str, str]:
    """The checkpoint's names and the model's of tensors that are the only ones of a shape, where one does not say its leaf."""
    only: list[dict[Shape, list[tuple[str, str]]]] = [{}, {}]
    for held, parts in zip(only, (ours, theirs)):
        for part in parts:
            for leaf, (name, shape) in part.tensors.items():
                held.setdefault(shape, []).append((name, leaf))
    mine, other = ({shape: held[0] for shape, held in side.items() if len(held) == 1} for side in only)
    return {other[shape][0]: name for shape, (name, leaf) in mine.items() if shape in other and "" in (leaf, other[shape][1])}


def row(parts: Sequence[Part]) -> list[Part] | None:
    """Parts in the order of the numbers in their names; None where two differ in a word before they do in a number."""
    found = sorted(parts, key=lambda part: [(isinstance(token, str), token) for token in part.tokens])
    for a, b in pairwise(found):
        differing = next(((x, y) for x, y in zip(a.tokens, b.tokens) if x != y), ("", ""))
        if not all(isinstance(token, int) for token in differing):
            return None
    return found


def is_rising(parts: Sequence[Part]) -> bool:
    """Whether parts come in the order of the state dict."""
    return all(a.place < b.place for a, b in pairwise(parts))


def columns_of(parts: Sequence[Part]) -> dict[int, tuple[int, ...]]:
    """The numbers at each place of the names of parts (-1 for none), without those that all of them have."""
    columns = zip_longest(*(part.numbers for part in parts), fillvalue=-1)
    return {i: column for i, column in enumerate(columns) if len(set(column)) > 1}


def varying(parts: Sequence[Part]) -> list[tuple[int, ...]]:
    """The numbers in the names of parts, without those that all of them have."""
    columns = columns_of(parts).values()
    return list(zip(*columns)) if columns else [()] * len(parts)


def heads_of(parts: Sequence[Part]) -> list[set[str]]:
    """The words right before each of the numbers that `varying` returns."""
    heads: list[set[str]] = []
    for i in columns_of(parts):
        heads.append(set())
        for part in parts:
            at = [k for k, token in enumerate(part.tokens) if isinstance(token, int)][i : i + 1]
            heads[-1] |= {word for k in at if k and isinstance(word := part.tokens[k - 1], str)}
    return heads


def plain(words: Sequence[str]) -> list[str]:
    return [word for word in words if word != "#"]


# -------------------------------------------------------------------- what is said


def some(found: Iterable[str]) -> str:
    listed = list(found)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")


def told(found: Mapping[str, str]) -> None:
    """Prints what was renamed, a line for all tensors that differ in the same beginning of their names."""
    groups: dict[tuple[str, str], list[str]] = {}
    for theirs, ours in found.items():
        if theirs != ours and not ours.endswith(COUNTER):
            a, b = theirs.split("."), ours.split(".")
            while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
                a.pop(), b.pop()
            groups.setdefault((".".join(a), ".".join(b)), []).append(theirs)
    for (start, instead), held in groups.items():
        whole = held == [start]
        print(f"auto_mapping: {start} -> {instead}" if whole else
              f"auto_mapping: {start}.* -> {instead}.* ({len(held)} tensors)")
