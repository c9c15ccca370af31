# SPDX-License-Identifier: Apache-2.0
"""The model of a training run: fresh, from a checkpoint to start from, or from one to resume."""

import inspect
from pathlib import Path

import numpy as np

from ms_latte.config import ConfigError
from ms_latte.parts import check_told, choose_attention, precision_of, settings

# What a checkpoint to start from may lack or hold in another shape: it belongs to the task, not to the net.
OF_THE_TASK = ("y_embedder.", "text_embedding_projection.", "pos_embed", "temp_embed", "final_layer.linear.")


def make_model(config, dataset, size, say=print):
    """The denoiser, with fresh weights or those of `pretrained_model_path`; what was taken is told by `say`.

    Raises ValueError for arguments that do not fit, and ConfigError for a checkpoint of another net.
    """
    from ms_latte import checkpoint

    start = pretrained(config)
    held = None
    if start is not None:
        held = _open(start, config)
    model = _build(config, dataset, size, held)
    if held is None:
        # Onto the grid of the precision, where a checkpoint's weights will be read to.
        own = {name: parameter.asnumpy().copy() for name, parameter in model.parameters_and_names()}
        checkpoint.load_arrays(model, own)
        say(f"{_name(config, model)} with fresh weights, {_count(model) / 1e6:.1f} M parameters")
    else:
        _take(model, held, start, say)
    _prepare(model, config)
    return model


def _open(path, config):
    """The tensors of a checkpoint: as the configuration describes the net, where the file leaves that open."""
    from ms_latte import checkpoint

    chosen, task = (
        settings(config.overrides),
        {"num_frames": config.num_frames, "condition": config.condition},
    )
    if config.num_classes is not None:
        task["num_classes"] = config.num_classes
    refused = None
    # DiT's net knows neither frames nor our classes; another file has its own, and says so.
    for told in ({**task, **chosen}, chosen, {}):
        try:
            return checkpoint.open_weights(path, config.which, config.layout, told)
        except ValueError as error:
            refused = refused or error
    raise refused


def remake_model(config, facts):
    """The model of a checkpoint's facts, to be filled from it."""
    model = _class(facts["kind"])(**facts["config"], precision=precision_of(config))
    _prepare(model, config)
    return model


def model_facts(model):
    """What tells a model from another one: its class and the arguments that shape its weights and numbers."""
    free = ("attention", "enable_flash_attention", "use_recompute")
    return {
        "kind": type(model).__name__,
        "config": {name: value for name, value in model.config.items() if name not in free},
    }


def learns_sigma(model):
    """Whether a model predicts the variance too."""
    return model.out_channels == 2 * model.in_channels


def pretrained(config):
    """Path of the weights to start from, or None: a pipeline's folder may hold a VAE alone."""
    if config.pretrained_model_path is None:
        return None
    path = Path(config.pretrained_model_path)
    if not path.exists():
        raise ConfigError(f"--pretrained_model_path {path} does not exist (from {Path.cwd()})")
    if path.is_dir() and (path / "vae").is_dir():
        return path / "transformer" if (path / "transformer").is_dir() else None
    return path


def _class(kind):
    from ms_latte.models.latte import Latte
    from ms_latte.models.latte_t2v import LatteT2V

    return {"Latte": Latte, "LatteT2V": LatteT2V}[kind]


def _build(config, dataset, size, held):
    """A model as configuration and checkpoint describe it; the configuration wins where it says anything."""
    from ms_latte.models.latte import Latte, Latte_models
    from ms_latte.models.latte_t2v import LatteT2V, LatteT2V_XL_122

    text = config.model_name.startswith("LatteT2V") if held is None else held.model == "LatteT2V"
    told = "model_name" in config.model_fields_set
    if text:
        task = {"sample_size": list(size), "video_length": config.num_frames}
        make = LatteT2V_XL_122 if held is None else LatteT2V
    else:
        task = {
            "input_size": list(size),
            "num_frames": config.num_frames,
            "condition": config.condition,
            "learn_sigma": config.learn_sigma,
            "class_dropout_prob": config.class_dropout_prob,
        }
        if config.condition == "class":
            task["num_classes"] = config.num_classes or dataset.num_classes
        names = [*Latte_models, "LatteT2V"]
        if held is None and config.model_name not in names:
            raise ConfigError(f"--model_name {config.model_name}: expected one of {', '.join(names)}")
        make = Latte_models[config.model_name] if held is None else Latte
    chosen = settings(config.overrides)
    known = {*inspect.signature(LatteT2V if text else Latte).parameters} - {"precision"}
    if unknown := sorted(set(chosen) - known):
        raise ConfigError(
            f"--set {', '.join(unknown)}: no argument of the model; expected {', '.join(sorted(known))}"
        )
    if text and config.condition != "text":
        raise ConfigError(
            f"--condition {config.condition}, but a LatteT2V is conditioned on text; expected text"
        )
    model = make(**{**(held.config if held else {}), **task, **chosen}, precision=precision_of(config))
    if held is not None and told and not chosen:
        check_told(_Told(config.model_name), model)
    from ms_latte.models import latte, latte_t2v

    init = latte_t2v.init_weights if text else latte.init_weights
    init(model, np.random.default_rng(config.seed))
    return model


class _Told:
    """What `check_told` compares with a model: the name alone."""

    condition = num_classes = patch_embedder = None

    def __init__(self, model_name):
        self.model_name = model_name


def _take(model, held, path, say):
    """Weights of a checkpoint into a fresh model; everything else keeps what `init_weights` gives, and is told."""
    from ms_latte import checkpoint

    own = {name: parameter.asnumpy() for name, parameter in model.parameters_and_names()}
    shapes = held.tensors.shapes
    fits = [name for name in own if tuple(shapes.get(name, ())) == own[name].shape]
    fresh = [name for name in own if name not in fits]
    left = [name for name in shapes if name not in fits]
    wrong = [name for name in [*fresh, *left] if not name.startswith(OF_THE_TASK)]
    if wrong:
        raise ConfigError(
            f"--pretrained_model_path {path} holds another net: {', '.join(wrong[:4])} and {len(wrong)} tensors in all "
            "do not fit; expected the same width, depth and patches"
        )
    checkpoint.load_arrays(model, {name: held.tensors[name] if name in fits else own[name] for name in own})
    say(f"{path} ({held.layout}): took {len(fits)} of {len(shapes)} tensors")
    for note in held.notes:
        say(f"  {note}")
    if left:
        say(f"  left {', '.join(left)}: not of this shape here")
    if fresh:
        say(f"  begins anew with {', '.join(fresh)}")


def _prepare(model, config):
    """Kernel of the attention, recomputation, tables that a compiled step cannot look at."""
    from ms_latte.models.latte import Latte

    choose_attention(model, config)
    if isinstance(model, Latte):
        model.check_stored_tables()
    if config.use_recompute:
        blocks = model.blocks if isinstance(model, Latte) else [
            *model.transformer_blocks, *model.temporal_transformer_blocks
        ]  # fmt: skip
        for block in blocks:
            block.recompute()


def _name(config, model):
    return config.model_name if type(model).__name__ == "Latte" else type(model).__name__


def _count(model):
    return sum(parameter.size for parameter in model.get_parameters())
