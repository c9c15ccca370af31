# SPDX-License-Identifier: Apache-2.0
"""Finds the clips of a training set: frame folders, video files, class folders, or the rows of a CSV file.

A clip that cannot be used is never dropped in silence: it is returned by name with the reason.
"""

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ms_latte.data.frames import PICTURES, VIDEOS, ClipError, count_frames, is_picture, is_video, natural

# The published sets: how a frame becomes square, whether clips are mirrored, whether folders are classes.
DATASETS = {
    "sky": {"transform": "crop_resize", "flip": False, "class_folders": False},
    "ffs": {"transform": "resize_crop", "flip": True, "class_folders": False},
    "taichi": {"transform": "none", "flip": True, "class_folders": False},
    "ucf101": {"transform": "resize_crop", "flip": True, "class_folders": True},
}
SCANNERS = 8  # threads that read headers; the work is waiting for the disk


@dataclass(frozen=True)
class Clip:
    """One clip. name: unique in its set, the path below the set's folder without ending; frames: how many the folder
    holds or the file's header tells; label: class index, 0 without classes; kind: "frames" or "video"."""

    path: Path
    name: str
    frames: int
    label: int = 0
    caption: str = ""
    kind: str = "frames"


def recipe(dataset_name):
    """Settings of a published set by name; "sky_img" and the like mean the same clips. Raises ValueError."""
    name = dataset_name.removesuffix("_img")
    if name not in DATASETS:
        raise ValueError(f"dataset_name {dataset_name!r}: expected one of {', '.join(DATASETS)}, or none")
    return dict(DATASETS[name])


def find_clips(
    data_folder,
    class_folders=False,
    csv_path=None,
    video_column="video",
    caption_column=None,
    class_column=None,
):
    """All clips below a folder in natural order of their names, or those of a CSV file in its order.

    class_folders: <folder>/<class>/<clip>, label = place among the sorted class names. csv_path: table whose
    video_column holds paths below data_folder (or absolute ones); caption_column and class_column default to
    "caption" and "class" where the table has them. Returns (clips, problems: name -> reason). Raises ValueError if
    the folder or table is absent, unreadable, or without one usable clip.
    """
    folder = Path(data_folder)
    if not folder.is_dir():
        raise ValueError(f"data_folder {folder}: {'not a folder' if folder.exists() else 'does not exist'}")
    problems = {}
    if csv_path is None:
        found = list(_below(folder, folder, frozenset(), problems))
        found = sorted(found, key=lambda item: natural(item[0]))
        rows = _in_classes(folder, found, problems) if class_folders else [(*item, 0, "") for item in found]
        place = folder
    else:
        if class_folders:
            raise ValueError("class_folders and csv_path: give one; a table has its classes in class_column")
        rows = _table(folder, Path(csv_path), video_column, caption_column, class_column)
        place = csv_path
    if not rows and not problems:
        raise ValueError(
            f"{place} holds no clip: expected folders of pictures ({' '.join(PICTURES)}) or video files "
            f"({' '.join(VIDEOS)})"
        )
    clips = []
    with ThreadPoolExecutor(SCANNERS) as pool:
        counts = pool.map(lambda row: _count(row[1], row[2]), rows)
        for (name, path, kind, label, caption), count in zip(rows, counts, strict=True):
            if isinstance(count, ClipError):
                problems[name] = str(count)
            else:
                clips.append(Clip(path, name, count, label, caption, kind))
    if not clips:
        first = "; ".join(list(problems.values())[:3])
        raise ValueError(f"{place}: none of its {len(problems)} clips can be read: {first}")
    return clips, problems


def _count(path, kind):
    try:
        return count_frames(path, kind)
    except ClipError as error:
        return error


def _below(root, folder, above, problems):
    """(name, path, kind) of every clip in a folder and in those below it; links to folders above are not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(folder.iterdir(), key=lambda path: natural(path.name))
    except OSError as error:
        message = f"{folder}: {error.strerror or error}"
        if folder == root:
            raise ValueError(f"data_folder {message}") from error
        problems[folder.relative_to(root).as_posix()] = message
        return
    videos = [path for path in entries if is_video(path.name) and path.is_file()]
    stems = [path.stem for path in videos]
    for path in videos:
        lone = stems.count(path.stem) == 1 and not (folder / path.stem).is_dir()
        yield (path.with_suffix("") if lone else path).relative_to(root).as_posix(), path, "video"
    if any(is_picture(path.name) for path in entries):
        name = folder.relative_to(root).as_posix() if folder != root else folder.resolve().name
        if videos:
            problems[f"{name}/ (pictures)"] = (
                f"{folder}: pictures beside video files are not taken for a clip"
            )
        else:
            yield name, folder, "frames"
    for path in entries:
        if path.is_dir() and not path.name.startswith("."):
            yield from _below(root, path, above | {real}, problems)


def _in_classes(root, found, problems):
    """Rows with the index of the clip's class folder; a folder without usable clips keeps its index."""
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    rows = []
    for name, path, kind in found:
        above = path.relative_to(root).parts[:-1]
        if above:
            rows.append((name, path, kind, classes.index(above[0]), ""))
        else:
            problems[name] = f"{path}: stands in no class folder; expected {root}/<class>/<clip>"
    return rows


def _table(folder, table, video_column, caption_column, class_column):
    """Rows (name, path, kind, label, caption) of a CSV file. Raises ValueError that names file, line and column."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            lines = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"csv_path {table}: {getattr(error, 'strerror', None) or error}") from error
    asked = {
        "video_column": video_column, "caption_column": caption_column, "class_column": class_column,
    }  # fmt: skip
    for key, column in asked.items():
        if column is not None and column not in columns:
            raise ValueError(
                f"{table}: no column {column!r} ({key}); its columns: {', '.join(columns) or 'none'}"
            )
    caption_column = caption_column or ("caption" if "caption" in columns else None)
    class_column = class_column or ("class" if "class" in columns else None)
    for line, row in lines:
        for column in filter(None, (video_column, class_column)):
            if not (row[column] or "").strip():
                raise ValueError(f"{table}:{line}: column {column!r} is empty")
    labels = _labels([row[class_column].strip() for _, row in lines]) if class_column else [0] * len(lines)
    rows, seen = [], {}
    for (_, row), label in zip(lines, labels, strict=True):
        path = folder / row[video_column].strip()
        kind = "frames" if path.is_dir() else "video"
        inside = path.relative_to(folder) if path.is_relative_to(folder) else Path(*path.parts[1:])
        name = (inside.with_suffix("") if kind == "video" else inside).as_posix()
        seen[name] = seen.get(name, 0) + 1
        name = name if seen[name] == 1 else f"{name}#{seen[name]}"  # a clip with several captions
        rows.append((name, path, kind, label, (row[caption_column] or "") if caption_column else ""))
    return rows


def _labels(values):
    """Class indices: the numbers themselves if all are whole numbers, else places among the sorted names."""
    if all(value.isdecimal() for value in values):
        return [int(value) for value in values]
    names = sorted(set(values))
    return [names.index(value) for value in values]
