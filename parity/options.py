# SPDX-License-Identifier: Apache-2.0
"""What several commands ask of their options: lists of dtypes, patterns of cases, places where results go."""

import os
import tempfile
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from converters.errors import ConversionError


def wanted_dtypes(text: str, allowed: Sequence[str]) -> list[str]:
    """The dtypes of a comma list, each once. Raises ConversionError for one that is not allowed."""
    words = list(dict.fromkeys(text.split(",")))
    wrong = [word for word in words if word not in allowed]
    if wrong:
        raise ConversionError(f"--dtype {text}", got=", ".join(wrong), expected=" or ".join(allowed))
    return words


def wanted_cases(patterns: Sequence[str], ids: Collection[str], where: str, expected: str) -> list[str]:
    """The ids that fit a pattern of --case, in their order. Raises ConversionError if a pattern fits none of them."""
    unfit = [pattern for pattern in patterns if not any(fnmatchcase(id_, pattern) for id_ in ids)]
    if unfit:
        raise ConversionError(f"--case {' '.join(unfit)} fits no case of {where}", expected=expected)
    return [id_ for id_ in ids if any(fnmatchcase(id_, pattern) for pattern in patterns)]


def check_folder(option: str, folder: Path) -> None:
    """Raise ConversionError if files cannot be written to a folder, which may be still to be made; leaves no trace."""
    places = (folder.absolute(), *folder.absolute().parents)
    standing = next(place for place in places if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=standing):
            pass
    except OSError as error:
        raise ConversionError(
            f"{option}: {standing} cannot be written ({error.strerror})",
            expected="a folder that can be written, or a new one inside such a folder",
        ) from None
