# SPDX-License-Identifier: Apache-2.0
"""The schema of `python -m ms_latte.train`: every key with its default, its explanation and its checks.

The keys are the flag names of the published MindSpore recipes and of the yaml files of the data; ALIASES lists the
spellings of the official repository. Defaults are those of the published Sky Timelapse recipe.
"""

from typing import ClassVar, Literal

from pydantic import field_validator, model_validator

from ms_latte.config import ListOf
from ms_latte.settings import Settings, setting

# Other publications' names of a key: the official repository, its data files, older releases of mindone.
ALIASES = {
    "pretrained": "pretrained_model_path",
    "vae": "vae_checkpoint",
    "model": "model_name",
    "set": "overrides",
    "from": "layout",
    "extras": "condition",
    "dataset": "dataset_name",
    "data_path": "data_folder",
    "frame_interval": "sample_stride",
    "num_workers": "num_parallel_workers",
    "local_batch_size": "train_batch_size",
    "batch_size": "train_batch_size",
    "learning_rate": "start_learning_rate",
    "lr": "start_learning_rate",
    "lr_warmup_steps": "warmup_steps",
    "gradient_accumulation": "gradient_accumulation_steps",
    "clip_max_norm": "max_grad_norm",
    "global_seed": "seed",
    "mixed_precision": "dtype",
    "use_fp16": "dtype",
    "gradient_checkpointing": "use_recompute",
    "enable_xformers_memory_efficient_attention": "enable_flash_attention",
    "results_dir": "output_path",
    "resume_from_checkpoint": "resume",
    "log_every": "log_interval",
    "num_sampling_steps": "sample_steps",
}
CONDITIONS = {"1": "none", "2": "class", "78": "text"}  # the official repository's `extras`
WORDS = {"true": True, "yes": True, "false": False, "no": False, "none": False, "null": False, "": False}
NO_EFFECT = "taken from the published files, of no effect: "

# Keys that a resumed run may change: they do not touch the numbers, or only how many of them there will be.
FREE = (
    *(
        "output_path",
        "resume",
        "epochs",
        "max_train_steps",
        "data_config_file",
        "pretrained_model_path",
        "which",
    ),
    *(
        "layout",
        "ckpt_save_interval",
        "ckpt_every",
        "ckpt_max_keep",
        "step_mode",
        "log_interval",
        "log_level",
    ),
    *("tensorboard", "sample_every", "sample_steps", "sample_count", "num_parallel_workers", "max_rowsize"),
    *("data_folder", "csv_path", "vae_checkpoint"),  # what they hold is compared instead
    *("device_id", "max_device_memory", "profile", "enable_modelarts", "save_ceph", "use_compile"),
)
# Keys of the way of computing: a resumed run may change them, equal up to rounding, and is told so.
HOST = (
    *("device_target", "mode", "jit_level", "use_recompute", "enable_flash_attention"),
    *("dataset_sink_mode", "sink_size", "vae_chunk", "use_parallel"),
)


class TrainConfig(Settings):
    """Everything that `python -m ms_latte.train` can be told; the descriptions are its help page."""

    aliases: ClassVar[dict] = ALIASES

    # --- model
    model_name: str = setting(
        "model", "Latte-XL/2", "Latte-XL/2 ... Latte-S/8 or LatteT2V, built anew unless a checkpoint is given"
    )
    condition: Literal["none", "class", "text"] = setting(
        "model", "none", "none, class (labels of the data) or text (captions; LatteT2V)"
    )
    num_classes: int | None = setting("model", None, "of condition class; default those of the data")
    class_dropout_prob: float = setting(
        "model", 0.1, "share of labels or captions that are dropped, for classifier-free guidance"
    )
    pretrained_model_path: str | None = setting(
        "model",
        None,
        "weights to start from: any checkpoint, or DiT's of ImageNet (its position tables and blocks are taken, its "
        "labels are not); a pipeline's folder gives the VAE too",
    )
    which: Literal["ema", "model"] = setting("model", "ema", "weights of that checkpoint: EMA or raw")
    layout: str | None = setting("model", None, "its published layout, where its names fit several")
    overrides: tuple[str, ...] = setting(
        "model", (), "KEY=VALUE ...: constructor arguments of the model, such as depth=4 hidden_size=96"
    )
    vae_checkpoint: str | None = setting("model", None, "VAE that encodes frames, file or folder, any layout")
    sd_scale_factor: float | None = setting(
        "model", None, "latents are multiplied by it; default the VAE's own"
    )
    patch_embedder: Literal["conv", "linear"] | None = setting(
        "model", None, "conv; linear computes the same in another layout of the weights, which `layout` reads"
    )
    embeddings: str | None = setting(
        "model", None, "text features (.safetensors) that hold the empty text, which dropped captions become"
    )
    clip_checkpoint: str | None = setting("model", None, NO_EFFECT + "texts come as features, from a cache")
    learn_sigma: bool = setting("model", True, "predict the variance too (the vb term of the loss)")

    # --- data
    data_config_file: str | None = setting("data", None, "yaml with keys of the data, merged before -c")
    dataset_name: str | None = setting(
        "data", None, "sky, ffs, taichi or ucf101: transform, flip and class folders as published"
    )
    data_folder: str | None = setting(
        "data", None, "frame folders, video files or class folders; of a cache, its folder"
    )
    train_data_type: Literal["video_file", "numpy", "mindrecord"] = setting(
        "data", "video_file", "frames and videos; or a cache of latents in numpy or mindrecord files"
    )
    csv_path: str | None = setting("data", None, "table of clips below data_folder, with captions or classes")
    video_column: str = setting("data", "video", "its column of paths")
    caption_column: str | None = setting(
        "data", None, "its column of captions; default caption, where it has one"
    )
    class_column: str | None = setting("data", None, "its column of classes; default class, where it has one")
    class_folders: bool | None = setting(
        "data", None, "<data_folder>/<class>/<clip>; default that of dataset_name, else False"
    )
    image_size: tuple[int, int] = setting(
        "data", (256, 256), "pixels, N or HEIGHT,WIDTH; multiples of the VAE's factor, 8"
    )
    num_frames: int = setting("data", 16, "frames of a clip")
    sample_stride: int = setting("data", 3, "take every so many-th frame")
    frame_sampling: Literal["exact", "linspace"] = setting(
        "data", "exact", "linspace: about every sample_stride-th, as the original takes them from video files"
    )
    transform: Literal["resize_crop", "crop_resize", "none"] | None = setting(
        "data", None, "how a frame gets its size; default that of dataset_name, else resize_crop"
    )
    random_flip: bool | None = setting(
        "data", None, "mirror half of the clips; default that of dataset_name, else False"
    )
    image_video_joint: bool = setting("data", False, "append use_image_num single images to every clip")
    use_image_num: int = setting("data", 8, "how many, with image_video_joint")
    use_img_from_vid: bool = setting("data", False, "images from the clip itself instead of other clips")
    bad_clips: Literal["skip", "fail"] = setting(
        "data", "skip", "short or unreadable clips: report and take the next one, or stop"
    )
    shuffle: bool = setting("data", True, "another order in every epoch")
    num_parallel_workers: int = setting(
        "data", 2, "threads that load batches ahead; 0 loads in the training thread"
    )
    max_rowsize: int = setting("data", 64, "MB of shared memory for a row of a worker")
    use_safer_augment: bool = setting("data", True, NO_EFFECT + "no transform here squashes frames")
    json_data_path: str | None = setting("data", None, NO_EFFECT + "csv_path lists clips")
    frame_data_path: str | None = setting("data", None, NO_EFFECT + "images are drawn from data_folder")
    frame_data_txt: str | None = setting("data", None, NO_EFFECT + "images are drawn from data_folder")

    # --- optimisation
    train_batch_size: int = setting("optimisation", 5, "clips of a step, on each card")
    epochs: int = setting("optimisation", 3000, "passes over the data")
    max_train_steps: int | None = setting("optimisation", None, "stop after so many steps, if before epochs")
    gradient_accumulation_steps: int = setting("optimisation", 1, "steps whose gradients make one update")
    start_learning_rate: float = setting("optimisation", 1e-4, "after the warm-up")
    end_learning_rate: float = setting("optimisation", 0.0, "at the end of a decay")
    scheduler: Literal["constant", "linear_decay", "cosine_decay"] = setting("optimisation", "constant", "")
    warmup_steps: int = setting("optimisation", 0, "updates over which the rate rises from 0")
    decay_steps: int = setting("optimisation", 0, "updates of the decay; 0: all after the warm-up")
    optim: Literal["adamw"] = setting("optimisation", "adamw", "bias-corrected, decoupled decay, as torch's")
    betas: tuple[float, float] = setting("optimisation", (0.9, 0.999), "")
    optim_eps: float = setting("optimisation", 1e-8, "")
    weight_decay: float = setting("optimisation", 0.0, "")
    group_strategy: Literal["norm_and_bias", "all"] = setting(
        "optimisation", "norm_and_bias", "spares vectors and position tables from the decay, or decays all"
    )
    use_ema: bool = setting("optimisation", True, "keep averaged weights, which sampling takes")
    ema_decay: float = setting("optimisation", 0.9999, "")
    ema_warmup: bool = setting("optimisation", False, "lower decay at first: decay * (1 - exp(-n / 2000))")
    clip_grad: bool | None = setting(
        "optimisation", None, "clip the global norm; default True if start_clip_iter is given"
    )
    max_grad_norm: float = setting("optimisation", 0.1, "")
    start_clip_iter: int | None = setting("optimisation", None, "clip from this update on; default 0")
    loss_scaler_type: Literal["dynamic", "static", "none"] | None = setting(
        "optimisation", None, "default dynamic for fp16, none for others, which need no scale"
    )
    init_loss_scale: float = setting("optimisation", 65536.0, "")
    loss_scale_factor: float = setting("optimisation", 2.0, "")
    scale_window: int = setting("optimisation", 1000, "updates without overflow until the scale grows")
    drop_overflow_update: Literal[True] = setting(
        "optimisation", True, "an overflow is always dropped: it would destroy the weights"
    )
    max_overflows: int = setting(
        "optimisation", 20, "stop after so many overflows at scale 1 one after another"
    )
    seed: int = setting("optimisation", 3407, "of weights, order, crops, noise and timesteps")

    # --- device
    device_target: str = setting("device", "Ascend", "Ascend or CPU")
    device_id: int | None = setting("device", None, "number of the Ascend card")
    use_parallel: bool = setting("device", False, "data parallel, started by msrun, mpirun or a rank table")
    dtype: Literal["fp32", "fp16", "bf16"] | None = setting(
        "device", None, "of the denoiser; default fp16 on Ascend, fp32 on CPU (where half types are emulated)"
    )
    mode: Literal[0, 1] | None = setting("device", None, "0 graph, 1 pynative; default 0 on Ascend, 1 on CPU")
    jit_level: Literal["O0", "O1", "O2"] = setting("device", "O1", "optimisation of graph mode")
    dataset_sink_mode: bool = setting(
        "device",
        False,
        "numbers of a step are read only after sink_size steps; a queue on the device (Ascend)",
    )
    sink_size: int = setting("device", -1, "steps between readings; -1: an epoch")
    use_recompute: bool = setting("device", False, "compute activations again instead of keeping them")
    enable_flash_attention: bool = setting("device", False, "fused attention kernel (Ascend, fp16 or bf16)")
    precision_mode: Literal["must_keep_origin_dtype"] | None = setting(
        "device", None, "this port always keeps the types it was given; no other word is served"
    )
    max_device_memory: str | None = setting("device", None, "limit of device memory, such as 30GB (Ascend)")
    vae_chunk: int = setting("device", 4, "frames that the VAE encodes at once")
    profile: bool = setting("device", False, NO_EFFECT + "run the command under msprof instead")
    use_compile: bool = setting("device", False, NO_EFFECT + "mode 0 compiles")
    enable_modelarts: bool = setting("device", False, NO_EFFECT + "data are read where they are")
    fixed_spatial: Literal[False] = setting("device", False, NO_EFFECT + "all weights are trained")
    attention_bias: Literal[True] = setting("device", True, NO_EFFECT + "all published nets have it")

    # --- output
    output_path: str | None = setting("output", None, "folder of the run, default output/<time>")
    resume: bool | str = setting(
        "output",
        False,
        "True: the newest checkpoint of output_path (or below output/); or a folder of either",
    )
    step_mode: bool = setting("output", False, "ckpt_save_interval counts steps instead of epochs")
    ckpt_save_interval: int = setting("output", 50, "epochs between checkpoints")
    ckpt_every: int | None = setting("output", None, "steps between checkpoints, whatever step_mode says")
    ckpt_max_keep: int = setting("output", 10, "older checkpoints are removed")
    log_interval: int = setting("output", 1, "steps between lines on the screen")
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "output", "info", "warning: no lines for single steps"
    )
    tensorboard: bool = setting("output", False, 'curves for TensorBoard (pip install "ms-latte[train]")')
    sample_every: int | None = setting("output", None, "steps between sample pictures; needs a VAE")
    sample_steps: int = setting("output", 20, "DDIM steps of such a sample")
    sample_count: int = setting("output", 2, "samples of such a picture")
    save_ceph: bool = setting("output", True, NO_EFFECT + "a cloud of the original's authors")

    @staticmethod
    def translate(key, value):
        """The value of `key` where an alias counts differently."""
        text = str(value).lower()
        if key == "extras":
            return CONDITIONS.get(text, value)
        if key in ("mixed_precision", "use_fp16"):
            return {True: "fp16", False: "fp32"}.get(WORDS.get(text), value)
        if key == "max_train_steps" and isinstance(value, str) and text[:1].isdigit() and "e" in text:
            return float(value)  # 1e6
        return value

    @field_validator("resume", mode="before")
    @classmethod
    def _resume(cls, value):
        value = value if value is not None else False
        return WORDS.get(value.lower(), value) if isinstance(value, str) else value

    @field_validator("betas", mode="before")
    @classmethod
    def _pair(cls, value):
        value = value if isinstance(value, ListOf) else [value]
        words = " ".join(str(item) for item in value)
        return tuple(words.replace(",", " ").replace("[", " ").replace("]", " ").split())

    @field_validator("log_level", mode="before")
    @classmethod
    def _level(cls, value):
        return value.lower().removeprefix("logging.") if isinstance(value, str) else value

    @field_validator(
        *("num_frames", "sample_stride", "train_batch_size", "epochs", "max_train_steps", "scale_window"),
        *("gradient_accumulation_steps", "ckpt_save_interval", "ckpt_every", "ckpt_max_keep", "log_interval"),
        *("sample_every", "sample_steps", "sample_count", "vae_chunk", "num_parallel_workers", "max_rowsize"),
        *("use_image_num", "max_overflows"),
    )
    @classmethod
    def _positive(cls, value):
        if value is not None and value < 1:
            raise ValueError("expected 1 or more")
        return value

    @field_validator(
        "warmup_steps", "decay_steps", "start_clip_iter", "weight_decay", "seed", "end_learning_rate"
    )
    @classmethod
    def _natural(cls, value):
        if value is not None and not 0 <= value < 2**63:
            raise ValueError("expected 0 or more")
        return value

    @field_validator(
        "start_learning_rate", "optim_eps", "max_grad_norm", "sd_scale_factor", "init_loss_scale"
    )
    @classmethod
    def _above_zero(cls, value):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError("expected a finite number above 0")
        return value

    @field_validator("ema_decay", "class_dropout_prob")
    @classmethod
    def _share(cls, value):
        if not 0 <= value <= 1:
            raise ValueError("expected a number from 0 to 1")
        return value

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value):
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("expected two numbers from 0 to below 1")
        return value

    @field_validator("loss_scale_factor")
    @classmethod
    def _above_one(cls, value):
        if not 1 < value < float("inf"):
            raise ValueError("expected a number above 1")
        return value

    @field_validator("sink_size")
    @classmethod
    def _sink(cls, value):
        if value != -1 and value < 1:
            raise ValueError("expected -1 (an epoch) or 1 or more")
        return value

    @model_validator(mode="after")
    def _together(self):
        if self.num_classes is not None and self.condition != "class":
            raise ValueError(
                f"num_classes {self.num_classes} belongs to condition class, got {self.condition}"
            )
        if self.start_clip_iter is not None and self.clip_grad is False:
            raise ValueError(f"start_clip_iter {self.start_clip_iter} and clip_grad False say two things")
        if self.data_folder is None:
            raise ValueError("data_folder is missing: the folder of the clips, or of a cache of latents")
        return self

    @property
    def clips(self):
        """Whether gradients are clipped, at whatever update it begins."""
        return self.start_clip_iter is not None if self.clip_grad is None else self.clip_grad

    @property
    def images(self):
        """Single images beside each clip."""
        return self.use_image_num if self.image_video_joint else 0
