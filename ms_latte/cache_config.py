# SPDX-License-Identifier: Apache-2.0
"""The schema of `python -m ms_latte.cache`: every key with its default, its explanation and its checks.

A training configuration is a configuration of its cache too: keys that both know mean the same, and keys of the
training alone (`elsewhere`) are passed over in a file.
"""

from typing import ClassVar, Literal

from pydantic import field_validator, model_validator

from ms_latte.data.latent_records import PAGE_SIZES
from ms_latte.settings import Settings, setting
from ms_latte.train_config import ALIASES, TrainConfig

TRAINING = TrainConfig.model_fields  # keys that mean the same in both


class CacheConfig(Settings):
    """Everything that `python -m ms_latte.cache` can be told; the descriptions are its help page."""

    elsewhere: ClassVar[frozenset] = frozenset()
    translate = staticmethod(TrainConfig.translate)

    # --- cache
    cache_folder: str | None = setting(
        "cache", None, "where the cache is made; the folder of an interrupted run is continued"
    )
    cache_file_type: Literal["numpy", "mindrecord"] = setting(
        "cache", "numpy", "an array a video; or MindRecord files, in which a video must fit a page"
    )
    save_data_type: Literal["float32", "float16"] = setting(
        "cache", "float32", "of mean, logvar and text features; MindRecord has no float16"
    )
    max_page_size: Literal[64, 128, 256] = setting(
        "cache", 64, "MB of a MindRecord page, the limit of a video"
    )
    max_file_size: float = setting("cache", 4.0, "GB of videos in a MindRecord file, then another one begins")
    dump_every_n_lines: int = setting("cache", 1, "records handed to the MindRecord writer at once")
    resume_cache_index: int | None = setting(
        "cache", None, "begin at this video of the list; without it, at the first that is not finished"
    )
    verify_cache: bool = setting(
        "cache", False, "read finished videos again and make those anew whose hash differs, not only the size"
    )

    # --- models
    vae_checkpoint: str | None = setting(
        "models", None, "VAE that encodes the frames, file or folder, any layout"
    )
    condition: Literal["none", "class", "text"] = setting(
        "models", "none", "text: features of the captions are kept too; names and classes always are"
    )
    text_encoder: str | None = setting("models", None, "T5 encoder of the captions, file or folder")
    tokenizer: str | None = setting(
        "models", None, "folder or file of T5's sentencepiece model; default beside text_encoder"
    )
    embeddings: str | None = setting(
        "models", None, "ready features of the captions (.safetensors) instead of T5"
    )
    text_length: int = setting("models", 120, "T5 tokens of a caption (Latte-1 120, Open-Sora-Plan 300)")
    clean_caption: bool = setting("models", True, "clean captions as the original does")

    # --- data
    data_config_file: str | None = setting("data", None, "yaml with keys of the data, merged before -c")
    dataset_name: str | None = TRAINING["dataset_name"]
    data_folder: str | None = setting("data", None, "frame folders, video files or class folders")
    csv_path: str | None = TRAINING["csv_path"]
    video_column: str = TRAINING["video_column"]
    caption_column: str | None = TRAINING["caption_column"]
    class_column: str | None = TRAINING["class_column"]
    class_folders: bool | None = TRAINING["class_folders"]
    image_size: tuple[int, int] = TRAINING["image_size"]
    transform: Literal["resize_crop", "crop_resize", "none"] | None = TRAINING["transform"]
    random_flip: bool | None = setting(
        "data",
        None,
        "keep the mirrored frames too, twice the size: training with random_flip draws from both; default that of "
        "dataset_name, else False",
    )
    bad_clips: Literal["skip", "fail"] = setting(
        "data", "skip", "unreadable clips: report them and go on, or stop"
    )

    # --- device
    device_target: str = setting("device", "Ascend", "Ascend or CPU")
    device_id: int | None = setting("device", None, "number of the Ascend card")
    dtype: Literal["fp32", "fp16", "bf16"] | None = setting(
        "device",
        None,
        "of the text encoder, default bf16 on Ascend, fp32 on CPU; the VAE computes in float32",
    )
    max_device_memory: str | None = setting("device", None, "limit of device memory, such as 30GB (Ascend)")
    vae_chunk: int = setting("device", 4, "frames that the VAE encodes at once")

    @field_validator("max_page_size", mode="before")
    @classmethod
    def _page(cls, value):
        words = {str(size): size for size in PAGE_SIZES}
        return words.get(str(value), value)

    @field_validator("dump_every_n_lines", "text_length", "vae_chunk")
    @classmethod
    def _positive(cls, value):
        if value < 1:
            raise ValueError("expected 1 or more")
        return value

    @field_validator("max_file_size")
    @classmethod
    def _above_zero(cls, value):
        if not 0 < value <= 16:
            raise ValueError("expected a number above 0, 16 at most")
        return value

    @field_validator("resume_cache_index")
    @classmethod
    def _index(cls, value):
        if value is not None and value < 0:
            raise ValueError("expected 0 or more")
        return value

    @model_validator(mode="after")
    def _together(self):
        if self.cache_folder is None:
            raise ValueError("cache_folder is missing: where the cache is to be made")
        if self.data_folder is None:
            raise ValueError("data_folder is missing: the folder of the clips")
        if self.class_folders and self.csv_path:
            raise ValueError("class_folders and csv_path: give one; a table has its classes in class_column")
        if self.cache_file_type == "mindrecord" and self.save_data_type == "float16":
            raise ValueError(
                "save_data_type float16 is no type of MindRecord; expected float32, or cache_file_type numpy"
            )
        if self.condition == "text" and not (self.text_encoder or self.embeddings):
            raise ValueError(
                "text_encoder is missing: condition text keeps features of the captions; or embeddings, made elsewhere"
            )
        if self.text_encoder and self.embeddings:
            raise ValueError("text_encoder and embeddings exclude each other")
        return self


# A key of both commands keeps its other spellings; what the two do not share is the training's own.
CacheConfig.aliases = {key: name for key, name in ALIASES.items() if name in CacheConfig.model_fields}
CacheConfig.elsewhere = frozenset({*TRAINING, *ALIASES} - {*CacheConfig.model_fields, *CacheConfig.aliases})
