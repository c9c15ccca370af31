# SPDX-License-Identifier: Apache-2.0
"""File <-> model, strictly: the only way a file becomes a model.

from ms_latte.checkpoint import load, save
model = load("skytimelapse.pt")              # builds the Latte or LatteT2V that the file describes
vae = load("sd-vae-ft-mse.ckpt", expected="AutoencoderKL")         # or a VAE, or the T5 encoder
save(model, "skytimelapse.safetensors")      # weights bit for bit, the configuration inside and beside them
"""

import difflib
import json
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import mindspore as ms
import numpy as np

import converters
from converters.checkpoint import find_config
from converters.containers.safetensors_file import read_safetensors
from converters.containers.source import open_source, unwrap
from converters.containers.target import FILES, check_replaceable, parse_size, save_file, write_target
from converters.layouts import FAMILIES, OURS, candidates
from converters.stream import TensorEntry, content_hash
from ms_latte.models.latte import Latte
from ms_latte.models.precision import Precision

# Class name -> module, imported when the class is needed.
MODELS = {
    "Latte": "models.latte",
    "LatteT2V": "models.latte_t2v",
    "AutoencoderKL": "encoders.vae",
    "AutoencoderKLTemporalDecoder": "encoders.vae",
    "T5EncoderModel": "encoders.t5",
}
REPORT_LIMIT = 20  # names per group in an error
FLOAT16_LIMIT = 65520.0  # values from here on round to infinity in float16

# Arguments that change no number of a forward pass without dropout: a file and a given model may differ in them.
INERT = ("class_dropout_prob", "dropout", "dropout_rate", "force_upcast")
# Arguments of the encoders that no tensor shows: what the converters assume without words is no fact of the file.
UNSEEN = ("scaling_factor", "norm_num_groups", "relative_attention_max_distance", "layer_norm_epsilon")
# Arguments of the host, not of the weights: never stored.
OF_THE_HOST = ("attention", "enable_flash_attention", "use_recompute")

WORDS = {ms.float64: "F64", ms.float32: "F32", ms.float16: "F16", ms.bfloat16: "BF16"}
WORDS |= {ms.int64: "I64", ms.int32: "I32", ms.bool_: "BOOL"}


class CheckpointError(ValueError):
    """A file and a model that do not fit; the message lists everything that differs, and a remedy."""


def load(path, model=None, which="ema", precision=None, overrides=None, layout=None, expected=None):
    """A model in evaluation mode with the weights of `path`: a published checkpoint or a file of `save`.

    path: .pt .pth .bin .safetensors .ckpt, sharded index, diffusers, transformers or pipeline folder. model: one of
    MODELS to fill instead of building it. which: "ema" (or what there is), "model" or "state_dict". precision: of the
    model to build, Precision() by default. overrides: constructor arguments that win over those found. layout: name
    of the published layout where names fit several. expected: one name of MODELS where only that will do; in a
    pipeline's folder it also says which part is meant, without it the denoiser. The weights stay in the mapped file
    until they are changed. Raises CheckpointError if file and model differ in names, shapes or configuration, and
    converters.ConversionError for a file that cannot be read.
    """
    if expected not in (None, *MODELS):
        raise CheckpointError(f"expected={expected!r} is no model; expected one of {', '.join(MODELS)}")
    if model is not None and precision is not None and precision != model.precision:
        raise CheckpointError(
            f"load({path}) got a model in {model.precision} and precision={precision}; "
            "remedy: pass precision only when load builds the model"
        )
    if model is None:
        family = _family(path, which, layout, expected)
        checkpoint = converters.load(path, which, layout, overrides, family)
        if expected not in (None, checkpoint.model):
            raise CheckpointError(
                f"{path} holds a {checkpoint.model}, expected a {expected}; remedy: {checkpoint.model}.from_pretrained"
            )
        model = _class(checkpoint.model)(**checkpoint.config, precision=precision or Precision())
        conflicts = []
    else:
        checkpoint, told = _open_for(model, path, which, layout, overrides)
        conflicts = _conflicts(model, told)
    _fill(model, checkpoint.tensors, checkpoint.tensors.shapes, str(path), conflicts)
    return model.set_train(False)


def load_arrays(model, tensors, precision=None):
    """Give `model` the weights of a mapping name -> numpy array; strict, all or nothing. Returns the model.

    Values are rounded to `precision`, by default the model's own. Arrays that already have the type of their
    parameter are not copied: they belong to the model from here on. Raises CheckpointError listing every
    missing, unknown and mis-shaped name, and every value that float16 cannot hold; the model is then unchanged.
    """
    shapes = {name: np.shape(tensors[name]) for name in tensors}
    return _fill(model, tensors, shapes, "the given arrays", [], precision)


def save(model, path, max_shard_size=None, folder=False, ema=None):
    """Write weights and configuration of one of MODELS; returns the content hash of the weights.

    path: a .safetensors, .pt, .pth, .bin or .ckpt file, or a folder (a name without an ending, or folder=True).
    Every parameter is stored in its own type, bit for bit. max_shard_size: "5GB", "500MB" or bytes, in a folder.
    ema: name -> averaged parameter, stored beside the raw ones; `load` prefers them, unless told which="model".
    The target appears under `path` when it is complete; until then an older one there is untouched. Raises
    CheckpointError for a wrong path or a model that the format cannot describe.
    """
    path, kind = Path(path), _kind(model)
    if not folder and path.suffix not in ("", *FILES):
        raise CheckpointError(
            f"cannot write {path.name}: got ending {path.suffix!r}, expected {', '.join(FILES)} or none for a "
            f"folder; remedy: {path.with_suffix('.safetensors').name}"
        )
    if not path.parent.is_dir():
        raise CheckpointError(f"folder {path.parent} does not exist; remedy: mkdir -p {path.parent}")
    entries = {name: _entry(parameter) for name, parameter in model.parameters_and_names()}
    entries |= {f"ema.{name}": _entry(parameter) for name, parameter in (ema or {}).items()}
    config, layout, stem = _stored_config(model), OURS[kind], FAMILIES[_home(kind)].stem
    metadata = {"model": kind, "config": json.dumps(config), "layout": "ours"}
    check_replaceable(path, stem, folder)
    size = parse_size(str(max_shard_size)) if max_shard_size is not None else None
    return write_target(
        path, entries, metadata, layout.card(config), {}, stem=stem, shard_size=size, folder=folder
    )


def weights_hash(model):
    """The content hash of a model's weights as they are in memory, the one that `save` would return."""
    return content_hash({name: _entry(parameter) for name, parameter in model.parameters_and_names()})


def open_weights(path, which="ema", layout=None, overrides=None):
    """The converters.Checkpoint (tensors, config, notes) of a Latte or LatteT2V, for whoever takes a part of it.

    overrides: constructor arguments that win. Raises converters.ConversionError.
    """
    return converters.load(path, which, layout, overrides)


def save_tensors(tensors, path, words):
    """Write name -> tensor and key -> word as one .safetensors file, whole or not at all; returns its content hash."""
    return save_file(Path(path), {name: _entry(tensor) for name, tensor in tensors.items()}, words)


def read_tensors(path, check=True):
    """(name -> array, key -> word) of a .safetensors file that `save` or `save_tensors` wrote; bits as stored.

    check: read everything and compare the content hash. Raises converters.ConversionError for a truncated and
    CheckpointError for an altered file.
    """
    entries, words = read_safetensors(Path(path))
    if check and content_hash(entries) != words.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its content hash is not the one that was written into it")
    return converters.checkpoint.Tensors(entries), words


def _kind(model):
    for owner in type(model).__mro__:
        if owner.__module__ == f"ms_latte.{MODELS.get(owner.__name__)}":
            return owner.__name__
    raise CheckpointError(f"got a {type(model).__name__}, expected a {' or a '.join(MODELS)}")


def _class(kind):
    return getattr(import_module(f"ms_latte.{MODELS[kind]}"), kind)


def _home(kind):
    """The converters' family of a model."""
    return next(name for name, family in FAMILIES.items() if kind in family.ours)


def _family(path, which, layout, kind=None):
    """The converters' family that a file belongs to; of a pipeline's folder, that of `kind`, or the denoiser's.

    What cannot be read is left to the converters' loader, whose error says why.
    """
    home = _home(kind or "Latte")
    if kind is not None and Path(path).is_dir():
        others = ()
    else:
        others = tuple(name for name in FAMILIES if name != home)
    for name in (home, *others):
        with suppress(converters.ConversionError):
            source = open_source(Path(path), name)
            if source.metadata.get("model") in OURS:
                return _home(source.metadata["model"])
            entries, _ = unwrap(source.tree, which, source.path)
            found = [family.name for family, _ in candidates(_shapes(entries))]
            if found:
                return home if home in found else found[0]
    return next((name for name, family in FAMILIES.items() if layout in family.layouts), home)


def _open_for(model, path, which, layout, overrides):
    """The checkpoint, with the model's own configuration where the file does not tell enough, and what it tells."""
    kind, overrides = _kind(model), overrides or {}
    family = _family(path, which, layout, kind)
    try:
        checkpoint = converters.load(path, which, layout, overrides, family)
        held, told = checkpoint.model, checkpoint.config
        if held == kind and family != "latte":
            told = _without_guesses(checkpoint, path, overrides)
    except converters.ConversionError:
        source = open_source(Path(path), family)
        entries, _ = unwrap(source.tree, which, source.path)
        held = {found.model.name for _, found in candidates(_shapes(entries), [family])} or {kind}
        held = kind if kind in held else held.pop()
        if held == kind:
            checkpoint = converters.load(path, which, layout, {**_stored_config(model), **overrides}, family)
            told, _ = OURS[kind].model.arguments({**find_config(source)[0], **overrides}, str(path))
    if held != kind:
        raise CheckpointError(
            f"{path} holds a {held}, the model is a {kind}; no lossless map exists between them"
        )
    return checkpoint, told


def _without_guesses(checkpoint, path, overrides):
    """The configuration of a file without what neither its tensors nor any words say: the model may know better."""
    family = FAMILIES[_home(checkpoint.model)]
    side, _ = find_config(open_source(Path(path), family.name))
    said, _ = OURS[checkpoint.model].model.arguments({**side, **overrides}, str(path))
    said |= family.named(checkpoint.layout, checkpoint.model).defaults(said)
    return {name: value for name, value in checkpoint.config.items() if name in said or name not in UNSEEN}


def _shapes(entries):
    return {name: entry.shape for name, entry in entries.items()}


def _conflicts(model, told):
    """Arguments in which the file and a given model differ, although perhaps no shape shows it."""
    skipped = INERT if model.config.get("condition", "class") == "class" else (*INERT, "num_classes")
    if model.config.get("norm_type") in ("ada_norm_single", "layer_norm"):
        skipped = (*skipped, "num_embeds_ada_norm")  # no norm of theirs has embeddings
    if _home(_kind(model)) == "vae":
        skipped = (*skipped, "sample_size")  # a VAE takes any size
    return [
        f"{name}: got {value!r} in the file, expected {model.config[name]!r}"
        for name, value in told.items()
        if name not in skipped and _plain(value) != _plain(model.config[name])
    ]


def _plain(value):
    """A square [n, n] equals n."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


def _stored_config(model):
    """The part of `model.config` that the format keeps: everything but choices of the host."""
    keys = OURS[_kind(model)].model.keys
    lost = {
        name: value
        for name, value in model.config.items()
        if name not in keys and name not in OF_THE_HOST and value
    }
    if lost:
        raise CheckpointError(
            f"the checkpoint format has no place for {', '.join(f'{k}={v!r}' for k, v in lost.items())}; "
            "remedy: save a model that is built without it and pass it when building"
        )
    return {name: value for name, value in model.config.items() if name in keys}


def _entry(parameter):
    def bits():
        values = parameter.asnumpy()
        return values.view(np.uint16) if parameter.dtype == ms.bfloat16 else values

    return TensorEntry(WORDS[parameter.dtype], tuple(parameter.shape), bits)


def _fill(model, tensors: Mapping, shapes, source, conflicts, precision=None):
    precision = precision or model.precision
    parameters = dict(model.parameters_and_names())
    _check(parameters, shapes, source, conflicts)
    if precision.compute == "fp16":
        _check_range(tensors, source)
    for name, parameter in parameters.items():
        parameter.set_data(_value(tensors[name], parameter, precision))
    if isinstance(model, Latte):
        model.check_stored_tables()
    return model


def _value(array, parameter, precision):
    """The array as a tensor of the parameter's type, on the grid of the precision; copied only if changed."""
    # Writable, because training changes weights in place; aligned and contiguous for the kernels.
    # Widened here: numpy does it exactly, and a cast costs a launch.
    wide = np.float64 if parameter.dtype == ms.float64 else None
    value = ms.Tensor.from_numpy(np.require(array, wide, requirements=["C", "A", "W"]))
    if value.dtype != parameter.dtype:
        value = value.astype(parameter.dtype)
    return precision.round(value) if precision.emulated else value


def _check(parameters, shapes, source, conflicts):
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    misshaped = [name for name in expected if name in shapes and tuple(shapes[name]) != expected[name]]
    hints = {name: difflib.get_close_matches(name, missing, 1, cutoff=0.8) for name in unknown[:REPORT_LIMIT]}
    groups = {
        "configuration": conflicts,
        "missing": [f"{name} {expected[name]}" for name in missing],
        "unknown": [
            f"{name} {tuple(shapes[name])}" + (f", did you mean {hints[name][0]}?" if hints.get(name) else "")
            for name in unknown
        ],
        "mis-shaped": [f"{name}: got {tuple(shapes[name])}, expected {expected[name]}" for name in misshaped],
    }
    if any(groups.values()):
        remedy = "build the model from the file's configuration (load without a model), or correct the names"
        raise CheckpointError(_report(f"{source} and the model do not fit", groups, remedy))


def _check_range(tensors, source):
    wrong = []
    for name in tensors:
        array = np.asarray(tensors[name])
        finite = array[np.isfinite(array)] if not np.isfinite(array).all() else array
        largest = max(-float(finite.min()), float(finite.max())) if finite.size else 0.0
        if largest >= FLOAT16_LIMIT:
            wrong.append(
                f"{name}: got a largest absolute value of {largest:g}, expected less than {FLOAT16_LIMIT:g}"
            )
    if wrong:
        raise CheckpointError(
            _report(
                f"{source} does not fit float16", {"too large": wrong}, "choose Precision('bf16') or 'fp32'"
            )
        )


def _report(title, groups, remedy):
    lines = [title]
    for name, group in groups.items():
        if group:
            lines.append(f"  {name} ({len(group)}):")
            lines += [f"    {line}" for line in group[:REPORT_LIMIT]]
            lines += [f"    ... and {len(group) - REPORT_LIMIT} more"] if len(group) > REPORT_LIMIT else []
    return "\n".join([*lines, f"  remedy: {remedy}"])
