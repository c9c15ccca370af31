# SPDX-License-Identifier: Apache-2.0
"""Which clips a configuration means and how their frames are prepared: one rule for training and for its cache."""

from ms_latte.config import ConfigError
from ms_latte.data.videos import find_clips, recipe

PLAIN = {"transform": "resize_crop", "flip": False, "class_folders": False}  # of no published set


def settings_of(config):
    """{"transform", "flip", "class_folders"}: the configuration's own words, else those of its dataset_name.

    Raises ConfigError for an unknown set.
    """
    try:
        found = dict(recipe(config.dataset_name) if config.dataset_name else PLAIN)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    if config.csv_path:
        found["class_folders"] = False  # a table has its own classes
    told = {"transform": config.transform, "flip": config.random_flip, "class_folders": config.class_folders}
    return found | {key: value for key, value in told.items() if value is not None}


def clips_of(config):
    """(clips, problems) of the configuration's folder or table, as `find_clips`. Raises ConfigError."""
    columns = config.video_column, config.caption_column, config.class_column
    try:
        return find_clips(config.data_folder, settings_of(config)["class_folders"], config.csv_path, *columns)
    except ValueError as error:
        raise ConfigError(str(error)) from error
