# SPDX-License-Identifier: Apache-2.0
"""Which parameter and layer of a port belongs to which of the reference: found by rule, proven, never guessed.

Order of the rules for parameters, each applied to what the one before left:

1. the user's map (exact names or dotted prefixes); below a prefix whose inner names differ, the other rules go on,
   among what stands below the two prefixes;
2. equal names after the usual renamings (gamma -> weight ...), trusted only if they pair every parameter: half of the
   names of two Sequentials agree by accident;
3. by elimination: type of the owner, role (weight, bias ...) and shape leave one candidate in both directions;
4. by numeric probing: all parameters of one shape get the same numbers, so that both nets compute the same
   whichever assignment is right; then one parameter at a time is moved, and what the outputs do identifies it.

Shapes may differ by axes of length one (Dense and 1x1 convolution) and by a transpose of a matrix. A square
matrix that no name identifies is probed in both orientations. What stays
ambiguous raises PairingError with the candidates. Probing asks what a parameter does, not what it is called: if two
weights of equal shape are exchanged in the port, it exchanges them back. `overruled` lists where it may have.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RENAMED = {
    "gamma": "weight",
    "beta": "bias",
    "embedding_table": "weight",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
ROLES = ("weight", "bias", "running_mean", "running_var")

# A probe is accepted if the best candidate reacts within NEAR of the reference (relative L2 of the changes) and
# every other candidate is at least FAR off. Measured on parity/others/example.py and the net of
# tests/harness/other_models.py: best 5e-7 to 4e-5 (float32 rounding), a port with another GELU form 1e-4, every other
# candidate 0.63 to 1.7.
NEAR, FAR = 0.1, 0.4
# Or so many times as far off as the best one, which rounding alone does not explain: in two blocks of one kind the same
# layer of the other block measured 0.32, its own 1.6e-6.
CLEAR = 1000
SILENT = 1e-5  # a change of the output below this share of it is rounding


class PairingError(ValueError):
    """Parameters that cannot be paired, or not uniquely; the message lists the candidates."""


@dataclass(frozen=True)
class Parameter:
    """kind: family of the layer that owns it, "" if unknown. learned: no buffer, no running statistic. fixed: a buffer
    that no checkpoint holds, so that each side must construct it."""

    name: str
    shape: tuple
    kind: str
    learned: bool = True
    fixed: bool = False

    @property
    def owner(self) -> str:
        """Dotted name of the layer that holds it."""
        return self.name.rpartition(".")[0]

    @property
    def role(self) -> str:
        """weight, bias, running_mean, running_var, or "" for any other word."""
        leaf = canonical(self.name).rpartition(".")[2]
        return leaf if leaf in ROLES else ""


@dataclass(frozen=True)
class Layer:
    """A module: its kind ("" if it is no class of the framework) and a statement of its constants ("" if unknown)."""

    name: str
    kind: str
    statement: str


@dataclass(frozen=True)
class Link:
    """A parameter of the reference and its partner. by: the rule that proved it. fixed: nothing is loaded into it."""

    theirs: str
    ours: str
    shape: tuple
    own_shape: tuple
    transposed: bool = False
    by: str = "names"
    fixed: bool = False

    def forward(self, array: np.ndarray) -> np.ndarray:
        """From the reference's shape to the port's."""
        return (_squeeze(array).T if self.transposed else array).reshape(self.own_shape)

    def backward(self, array: np.ndarray) -> np.ndarray:
        """From the port's shape to the reference's."""
        return (_squeeze(array).T if self.transposed else array).reshape(self.shape)

    @property
    def transform(self) -> str:
        """Words for a report, "" for the identity."""
        shaped = "reshaped" if _squeezed(self.shape) != self.shape or self.shape != self.own_shape else ""
        words = ["transposed"] if self.transposed else []
        return " ".join(words + ([shaped] if shaped and len(self.shape) != len(self.own_shape) else []))


@dataclass(frozen=True)
class Pairing:
    """links: of parameters. layers: reference name -> port name. stated: layers whose constants both sides state.
    order: taps in the order of the reference. notes: what a reader must know, one line each."""

    links: tuple[Link, ...]
    layers: Mapping[str, str] = field(default_factory=dict)
    stated: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------- names and kinds


def canonical(name: str) -> str:
    """A parameter name in torch's words."""
    head, dot, leaf = name.rpartition(".")
    return f"{head}{dot}{RENAMED.get(leaf, leaf)}"


# class name -> (kind, attributes that state its constants)
FAMILIES = {
    **dict.fromkeys(("Linear", "Dense"), "linear"),
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d"), "conv"),
    **dict.fromkeys(("Embedding", "EmbeddingExt"), "embedding"),
    **dict.fromkeys(("LayerNorm", "LayerNormExt"), "LayerNorm"),
    **dict.fromkeys(("GroupNorm",), "GroupNorm"),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"), "BatchNorm"),
    **dict.fromkeys(("GELU",), "GELU"),
    **{
        name: name
        for name in ("ReLU", "SiLU", "Sigmoid", "Tanh", "Softmax", "Dropout", "Flatten", "Identity")
    },
}
MATRICES = ("linear", "conv")


def describe_layer(layer: Any) -> tuple[str, str]:
    """(kind, statement) of a class of torch.nn or mindspore; ("", "") for every other class."""
    if type(layer).__module__.split(".")[0] not in ("torch", "mindspore"):
        return "", ""
    kind = FAMILIES.get(type(layer).__name__, "")
    if kind in ("LayerNorm", "GroupNorm", "BatchNorm"):
        eps = getattr(layer, "eps", getattr(layer, "epsilon", None))
        groups = f", groups={layer.num_groups}" if kind == "GroupNorm" else ""
        return kind, f"{kind}(eps={float(eps):g}{groups})"
    if kind == "GELU":
        form = {True: "tanh", False: "none"}.get(layer.approximate, layer.approximate)
        return kind, f"GELU(approximate={form})"
    if (
        kind == "conv" and type(layer).__name__ != "Conv1d"
    ):  # MindSpore's one-dimensional one is two-dimensional
        return kind, f"conv(stride={tuple(layer.stride)}, padding={_padding(layer)}, groups={_groups(layer)})"
    return kind, ""


def _padding(layer: Any) -> Any:
    """What is added before and after each axis, in the shortest form: 1, (1, 2) or ((0, 1), (1, 1)).

    "same" is such numbers if the stride is one (both frameworks put the odd one behind), else it depends on the input
    and stays a word.
    """
    axes, mode, given = len(layer.kernel_size), getattr(layer, "pad_mode", "pad"), layer.padding
    if mode == "same" or given == "same":
        if set(layer.stride) != {1}:
            return "same"
        wide = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        pairs = [(n // 2, n - n // 2) for n in wide]
    elif mode == "valid" or given == "valid":
        pairs = [(0, 0)] * axes
    else:
        sides = (given,) if isinstance(given, int) else tuple(given)
        sides = sides * axes if len(sides) == 1 else sides
        sides = sides if len(sides) == 2 * axes else tuple(n for n in sides for _ in range(2))
        pairs = list(zip(sides[::2], sides[1::2], strict=True))
    if any(before != after for before, after in pairs):
        return tuple(pairs)
    return pairs[0][0] if len(set(pairs)) == 1 else tuple(before for before, _ in pairs)


def _groups(layer: Any) -> int:
    return getattr(layer, "groups", None) or getattr(layer, "group", 1)


# ------------------------------------------------------------------------------------------------- parameters


def pair_parameters(
    theirs: Iterable[Parameter],
    ours: Iterable[Parameter],
    rule: str | Mapping[str, Any] = "auto",
    probe: Callable[[list[Parameter], list[Parameter]], "Signatures"] | None = None,
) -> list[Link]:
    """Links for every learned parameter of the reference and every parameter of the port.

    rule: "names", "auto", or a map from names or dotted prefixes of the reference to those of the port; a value
    (name, "transpose") transposes a matrix. After a map, what it does not mention goes by the rules of "auto".
    probe: runs both nets; without it, what elimination leaves is ambiguous.
    Buffers of the reference need no partner; what has none stays as constructed.
    Raises PairingError.
    """
    if not (rule in ("names", "auto") if isinstance(rule, str) else isinstance(rule, Mapping)):
        raise PairingError(f'weights={rule!r}: expected "names", "auto" or a map of names')
    left = {p.name: p for p in theirs}
    right = {p.name: p for p in ours}
    links: list[Link] = []
    scopes: dict[str, str] = {}  # what a prefix of the map says of names below it
    if not isinstance(rule, str):
        links += _by_map(rule, left, right, scopes)
        taken = {link.theirs for link in links}, {link.ours for link in links}
        rest = [
            {n: p for n, p in side.items() if n not in t}
            for side, t in zip((left, right), taken, strict=True)
        ]
        links += _by_names(*rest, strict=False)
    else:
        links += _by_names(left, right, strict=rule == "names")
    for link in links:
        left.pop(link.theirs)
        right.pop(link.ours)
    links += _by_elimination(left, right, links, scopes)
    if _needed(left) and right:
        links += _by_probing(left, right, links, probe, scopes)
    _complain_about_the_rest(left, right)
    place = {p: index for index, p in enumerate([p.name for p in theirs])}
    return sorted(links, key=lambda link: place[link.theirs])


def overruled(links: Iterable[Link], theirs: Iterable[Parameter], ours: Iterable[Parameter]) -> list[Link]:
    """Links made by shape or probe although the port has a parameter of the same name that fits as it is: either an
    accident of names (indices of a Sequential), or a bug of the port that the pairing undoes."""
    left, right = {p.name: p for p in theirs}, {canonical(p.name): p for p in ours}
    found = []
    for link in links:
        namesake = right.get(canonical(link.theirs))
        fitting = namesake is not None and False in fits(left[link.theirs], namesake)
        if fitting and link.by in ("shape", "probe") and (link.transposed or link.ours != namesake.name):
            found.append(link)
    return found


def fits(theirs: Parameter, ours: Parameter) -> list[bool]:
    """The orientations in which a parameter of the port can hold one of the reference: False as is, True
    transposed."""
    if theirs.role and ours.role and theirs.role != ours.role:
        return []
    kinds = {theirs.kind, ours.kind} - {""}
    if len(kinds) == 2 and not kinds <= set(MATRICES):
        return []
    a, b = _squeezed(theirs.shape), _squeezed(ours.shape)
    found = [False] if a == b else []
    if len(a) == 2 and a == b[::-1]:
        found.append(True)
    return found


def exchanged(links: Iterable[Link]) -> list[Link]:
    """Links made by shape or probe of which two would fit their names better the other way round: q_proj -> to_k and
    k_proj -> to_q. Either the names mislead, or the port exchanges the two and the pairing hides it."""
    guessed = [link for link in links if link.by in ("shape", "probe")]
    found = {}
    for a, one in enumerate(guessed):
        for other in guessed[a + 1 :]:
            if (one.shape, one.own_shape) != (other.shape, other.own_shape):
                continue
            straight = _alike(one.theirs, one.ours) + _alike(other.theirs, other.ours)
            if _alike(one.theirs, other.ours) + _alike(other.theirs, one.ours) > straight:
                found |= {one.theirs: one, other.theirs: other}
    return list(found.values())


def _alike(theirs: str, ours: str) -> int:
    """Words that two names share, of the layer as of the path to it. An index that is the layer's whole name says
    nothing: Sequentials count differently."""
    return len(_words(theirs) & _words(ours))


def _words(name: str) -> set[tuple[str, str]]:
    *path, leaf = canonical(name).rpartition(".")[0].split(".")
    words = {("path", word) for part in path for word in part.split("_")}
    return words | {("leaf", word) for word in leaf.split("_") if not word.isdigit()}


def _by_map(given: Mapping[str, Any], left: dict, right: dict, scopes: dict[str, str]) -> list[Link]:
    links, used = [], set()
    for name, parameter in left.items():
        key = next((key for key in sorted(given, key=len, reverse=True) if _under(name, key)), None)
        if key is None:
            continue
        used.add(key)
        value = given[key]
        prefix, how = (value, "") if isinstance(value, str) else value
        target = prefix + name.removeprefix(key)
        found = next((p for p in right.values() if canonical(p.name) == canonical(target)), None)
        if found is None:
            if key != name and not how and any(_under(other, prefix) for other in right):
                scopes[name] = prefix
                continue
            if not parameter.learned:
                continue
            near = _near(target, right)
            raise PairingError(
                f"the map sends {name} to {target}, which the port does not have; closest: {', '.join(near)}"
            )
        orientations = fits(parameter, found)
        transposed = how == "transpose" or orientations == [True]
        if not orientations or (how == "transpose" and True not in orientations):
            raise PairingError(
                f"the map sends {name} {parameter.shape} to {found.name} {found.shape}: the shapes do not fit"
            )
        links.append(_link(parameter, found, transposed, "map"))
    wrong = [key for key in given if key not in used]
    if wrong:
        near = _near(wrong[0], left)
        raise PairingError(
            f"the map names {', '.join(wrong)}, which the reference does not have; closest: {', '.join(near)}"
        )
    doubles = sorted({link.ours for link in links if [x.ours for x in links].count(link.ours) > 1})
    if doubles:
        raise PairingError(f"the map sends several parameters to {', '.join(doubles)}")
    return links


def _by_names(left: dict, right: dict, strict: bool) -> list[Link]:
    named = {canonical(p.name): p for p in right.values()}
    links, problems = [], []
    for parameter in left.values():
        partner = named.get(canonical(parameter.name))
        orientations = fits(parameter, partner) if partner else []
        if orientations:
            links.append(_link(parameter, partner, orientations == [True], "names"))
        elif parameter.learned:
            what = f"shape {partner.shape}" if partner else "no such name"
            problems.append(f"{parameter.name} {parameter.shape}: {what} in the port")
    surplus = set(right) - {link.ours for link in links}
    problems += [f"{name} {right[name].shape}: only in the port" for name in sorted(surplus)]
    if not problems:
        return links
    if strict:
        raise PairingError(
            f"{len(problems)} names do not agree: {'; '.join(problems[:8])}; "
            'give a map (weights={"reference.name": "port.name"}) or weights="auto"'
        )
    return []


def _candidates(
    left: dict, right: dict, links: list[Link], scopes: Mapping[str, str]
) -> dict[str, list[tuple[str, bool]]]:
    """Per parameter of the reference: (name, transposed) of what it could be. Partners of siblings hold siblings.
    scopes: of names below a prefix of the map, the prefix below which their partners are; others have none there."""
    mapped = set(scopes.values())
    owners: dict[str, set[str]] = {}
    back: dict[str, set[str]] = {}
    for link in links:
        a, b = link.theirs.rpartition(".")[0], link.ours.rpartition(".")[0]
        owners.setdefault(a, set()).add(b)
        back.setdefault(b, set()).add(a)
    found = {}
    for name, parameter in left.items():
        options = [
            (p.name, transposed)
            for p in right.values()
            for transposed in fits(parameter, p)
            if p.learned == parameter.learned
            and (
                _under(p.name, scopes[name]) if name in scopes else not any(_under(p.name, s) for s in mapped)
            )
        ]
        homes = owners.get(parameter.owner, set())
        siblings = [o for o in options if right[o[0]].owner in homes]
        if siblings:
            options = siblings
        else:  # a partner's layer is taken, unless it is that of a sibling
            options = [o for o in options if right[o[0]].owner not in back] or options
        found[name] = options
    return found


def _by_elimination(left: dict, right: dict, links: list[Link], scopes: Mapping[str, str]) -> list[Link]:
    """Pairs that no other assignment leaves; removes them from both dicts."""
    found: list[Link] = []
    while True:
        options = _candidates(left, right, links + found, scopes)
        claims: dict[str, set[str]] = {}
        for name, candidates in options.items():
            for other, _ in candidates:
                claims.setdefault(other, set()).add(name)
        sure = next(
            (
                (name, *candidates[0])
                for name, candidates in options.items()
                if len(candidates) == 1 and claims[candidates[0][0]] == {name}
            ),
            None,
        )
        if sure is None:
            return found
        name, other, transposed = sure
        found.append(_link(left.pop(name), right.pop(other), transposed, "shape"))


def _by_probing(left: dict, right: dict, links: list[Link], probe, scopes: Mapping[str, str]) -> list[Link]:
    found: list[Link] = []
    options = _candidates(left, right, links, scopes)
    if probe is None:
        raise PairingError(_ambiguous(left, right, options, "no probe was given"))
    signatures = probe(list(left.values()), list(right.values()))
    if signatures.problem:
        raise PairingError(_ambiguous(left, right, options, signatures.problem))
    while _needed(left) and right:
        options = _candidates(left, right, links + found, scopes)
        sure = None
        for name in sorted(left, key=lambda name: -len(left[name].shape)):  # matrices first; biases follow
            ranked = sorted(
                (signatures.distance(left[name], right[other], transposed), other, transposed)
                for other, transposed in options[name]
            )
            others = [d for d, other, transposed in ranked[1:]]
            far = min(FAR, CLEAR * max(ranked[0][0], SILENT)) if ranked else FAR
            if ranked and ranked[0][0] < NEAR and all(d > far for d in others):
                rivals = [
                    rival
                    for rival in left
                    if rival != name
                    and any(
                        other == ranked[0][1] and signatures.distance(left[rival], right[other], t) < far
                        for other, t in options[rival]
                    )
                ]
                if not rivals:
                    sure = (name, *ranked[0][1:])
                    break
        if sure is None:
            worst = {
                name: [
                    (f"{other}{' transposed' if t else ''}", signatures.distance(left[name], right[other], t))
                    for other, t in options[name]
                ]
                for name in left
            }
            why = "probing could not tell them apart"
            if not any(d < NEAR for options in worst.values() for _, d in options):
                why = "by probing none does what the reference's does: does the port compute something else?"
            raise PairingError(_ambiguous(left, right, worst, why))
        name, other, transposed = sure
        found.append(_link(left.pop(name), right.pop(other), transposed, "probe"))
        found += _by_elimination(left, right, links + found, scopes)
    return found


def _ambiguous(left: dict, right: dict, options: dict, why: str) -> str:
    lines = []
    for name in list(_needed(left))[:4]:
        words = []
        for other, value in sorted(options.get(name, []), key=lambda item: item[1])[:4]:
            words.append(f"{other} ({value:.2g})" if isinstance(value, float) else other)
        lines.append(f"{name} {left[name].shape}: {', '.join(words) or 'no candidate'}")
    more = len(_needed(left)) - len(lines)
    alone = [name for name in _needed(left) if not options.get(name)]
    spare = ", ".join(f"{name} {p.shape}" for name, p in list(right.items())[:4])
    remedy = (
        f"Left in the port: {spare}; remedy: make the shapes agree"
        if alone
        else 'Give a map of names or prefixes, weights={"reference.name": "port.name"}; judged by it, a port that '
        "computes something else shows where"
    )
    return (
        f"{len(_needed(left))} parameters cannot be paired for sure ({why}); candidates (distance): "
        f"{'; '.join(lines)}{f'; and {more} more' if more > 0 else ''}. {remedy}"
    )


def _complain_about_the_rest(left: dict, right: dict) -> None:
    missing, surplus = list(_needed(left)), list(right)
    if missing or surplus:
        a = ", ".join(f"{name} {left[name].shape}" for name in missing[:6])
        b = ", ".join(f"{name} {right[name].shape}" for name in surplus[:6])
        raise PairingError(
            f"without a partner: {len(missing)} of the reference ({a or '-'}), {len(surplus)} of the port ({b or '-'})"
        )


def _near(word: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word, [name for name in dict.fromkeys(names) if name], 3, 0)


def _needed(left: dict) -> dict:
    """Parameters that must find a partner: learned ones and running statistics."""
    return {name: p for name, p in left.items() if p.learned or p.role.startswith("running")}


def _link(theirs: Parameter, ours: Parameter, transposed: bool, by: str) -> Link:
    return Link(theirs.name, ours.name, theirs.shape, ours.shape, transposed, by, theirs.fixed)


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".") or prefix == ""


def _squeezed(shape: tuple) -> tuple:
    return tuple(n for n in shape if n != 1)


def _squeeze(array: np.ndarray) -> np.ndarray:
    return array.reshape(_squeezed(array.shape))


# ------------------------------------------------------------------------------------------------- probing


def content(shape: tuple, salt: int) -> np.ndarray:
    """Numbers that depend on the shape alone: equal for all parameters of it, transposed for the transposed shape.

    salt 0 fills the nets (a square matrix is symmetric, so that its orientation does not matter); salt 1 is what
    a probe adds (asymmetric, so that it does).
    """
    core = _squeezed(shape)
    turned = len(core) == 2 and core[0] > core[1]
    key = core[::-1] if turned else core
    rng = np.random.default_rng([salt, len(key), *key])
    value = rng.standard_normal(key)
    if len(key) > 1:
        value /= np.sqrt(np.prod(key) / min(key))
        if salt == 0 and len(key) == 2 and key[0] == key[1]:
            value = (value + value.T) / np.sqrt(2)
    else:
        value = np.abs(0.5 + 0.3 * value)
    return np.ascontiguousarray(value.T if turned else value).reshape(shape).astype(np.float32)


class Signatures:
    """What the outputs of both nets do when one parameter moves."""

    def __init__(self, problem: str = ""):
        self.problem = problem
        self._theirs: dict[str, np.ndarray] = {}
        self._ours: dict[tuple[str, bool], np.ndarray] = {}

    def distance(self, theirs: Parameter, ours: Parameter, transposed: bool) -> float:
        """Relative L2 distance of the two changes; infinite if either does nothing."""
        a, b = self._theirs[theirs.name], self._ours[ours.name, transposed]
        norm = max(np.linalg.norm(a), np.linalg.norm(b))
        return (
            float(np.linalg.norm(a - b) / norm)
            if min(np.linalg.norm(a), np.linalg.norm(b)) > 0
            else float("inf")
        )


def take_signatures(
    run_theirs: Callable[[dict[str, np.ndarray]], np.ndarray],
    run_ours: Callable[[dict[str, np.ndarray]], np.ndarray],
    all_theirs: list[Parameter],
    all_ours: list[Parameter],
    theirs: list[Parameter],
    ours: list[Parameter],
) -> Signatures:
    """Move the given parameters one at a time.

    run_theirs, run_ours: from own parameters to the flat outputs. all_theirs, all_ours: every parameter that
    is to be filled; tables keep what they have.
    """
    base_theirs, base_ours = (
        {p.name: content(p.shape, 0) for p in side if (p.learned or p.role) and not p.fixed}
        for side in (all_theirs, all_ours)
    )
    out_theirs, out_ours = run_theirs(base_theirs), run_ours(base_ours)
    if out_theirs.shape != out_ours.shape:
        return Signatures(
            f"the outputs have {out_theirs.size} and {out_ours.size} elements, so that they cannot be compared"
        )
    found = Signatures()
    for p in theirs:
        moved = run_theirs({**base_theirs, p.name: base_theirs.get(p.name, 0) + content(p.shape, 1)})
        found._theirs[p.name] = _change(moved, out_theirs)
    for p in ours:
        core = _squeezed(p.shape)
        for transposed in (False, True) if len(core) == 2 else (False,):
            # What the reference would have added, as the port would hold it.
            delta = content(p.shape, 1)
            if transposed and core[0] == core[1]:
                delta = _squeeze(delta).T.reshape(p.shape)
            moved = run_ours({**base_ours, p.name: base_ours.get(p.name, 0) + delta})
            found._ours[p.name, transposed] = _change(moved, out_ours)
    return found


def _change(moved: np.ndarray, before: np.ndarray) -> np.ndarray:
    change = moved.astype(np.float64) - before
    if np.linalg.norm(change) < SILENT * np.linalg.norm(before) or not np.isfinite(change).all():
        return np.zeros_like(change)
    return change


# ------------------------------------------------------------------------------------------------- layers


def pair_layers(
    theirs: list[Layer],
    ours: list[Layer],
    links: Iterable[Link],
    given: Mapping[str, str | None] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """(reference name -> port name, names of the reference that have no partner), from proven links of parameters.

    A layer pairs with the layer that holds exactly the partners of its parameters; a chain of such layers (a
    wrapper of one) pairs in order if both chains are equally long, else by its innermost members that own
    parameters themselves. Layers without parameters pair by name if all links do, else if they are the only ones
    of their kind under a paired parent. given: names of layers, or None to leave one out; exact.
    Raises PairingError for names that do not exist.
    """
    links = list(links)
    given = dict(given or {})
    left, right = {layer.name: layer for layer in theirs}, {layer.name: layer for layer in ours}
    unknown = [name for name in given if name not in left]
    unknown += [name for name in given.values() if name is not None and name not in right]
    if unknown:
        near = _near(unknown[0], {**left, **right})
        raise PairingError(f"layers: no layer {', '.join(unknown)}; closest: {', '.join(near)}")
    pairs = {"": ""} | {name: other for name, other in given.items() if other is not None}
    by_names = all(canonical(link.theirs) == canonical(link.ours) for link in links)
    if by_names:
        pairs |= {name: name for name in left if name in right and name not in given}
    else:
        _by_holdings(left, right, links, pairs, given)
        _by_kind(left, right, pairs, given)
    paired = {name: pairs[name] for name in left if name in pairs}  # in the order of the reference
    return paired, [name for name in left if name not in paired]


def _by_holdings(left, right, links, pairs, given) -> None:
    partner = {link.theirs: link.ours for link in links}
    back = {link.ours for link in links}
    chains_left: dict[frozenset, list[str]] = {}
    chains_right: dict[frozenset, list[str]] = {}
    for name in left:
        held = frozenset(partner[p] for p in partner if _under(p, name) and p != name)
        if held and name and name not in given:
            chains_left.setdefault(held, []).append(name)
    for name in right:
        held = frozenset(p for p in back if _under(p, name) and p != name)
        if held and name and name not in pairs.values():
            chains_right.setdefault(held, []).append(name)
    for held, mine in chains_left.items():
        theirs = chains_right.get(held, [])
        if len(mine) == len(theirs):
            pairs.update(zip(sorted(mine, key=len), sorted(theirs, key=len), strict=True))
        elif theirs:
            a, b = max(mine, key=len), max(theirs, key=len)
            direct = {p.rpartition(".")[0] for p in partner} & {a}
            if direct and b in {p.rpartition(".")[0] for p in back}:
                pairs[a] = b


def _by_kind(left, right, pairs, given) -> None:
    """Layers without parameters: the only one of its kind under its parent, on both sides."""
    for parent, other in list(pairs.items()):
        mine, theirs = _children(left, parent), _children(right, other)
        for name in mine:
            if name in pairs or name in given or not left[name].kind:
                continue
            kind = left[name].kind
            a = [x for x in mine if left[x].kind == kind]
            b = [x for x in theirs if right[x].kind == kind and x not in pairs.values()]
            if len(a) == len(b) == 1:
                pairs[name] = b[0]


def _children(layers: dict[str, Layer], parent: str) -> list[str]:
    """Nearest named layers below: containers that are never called have no name here."""
    inside = [name for name in layers if name != parent and _under(name, parent) and name]
    return [name for name in inside if not any(_under(name, o) and name != o for o in inside)]
