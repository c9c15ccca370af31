# SPDX-License-Identifier: Apache-2.0
"""Show what a checkpoint holds: container, layout, model, configuration, names, shapes, dtypes, and what is wrong.

Reads headers only, whatever the size of the file; needs neither torch nor MindSpore.
"""

import argparse
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: find the package from any folder, and keep our folder off the path
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

from converters.checkpoint import find_config, load
from converters.command import Parser, add_source, guarded, parse_setting
from converters.containers.source import Source, open_source, unwrap
from converters.errors import ConversionError, printable
from converters.layouts import FAMILIES, candidates
from converters.stream import content_hash

EXAMPLES = """\
examples:
  what is this file, and does it fit?
    python converters/inspect_checkpoint.py --source skytimelapse.pt
  every tensor on a line of its own, with the content hash:
    python converters/inspect_checkpoint.py --source Latte-1/transformer --all --hash
  for a program:
    python converters/inspect_checkpoint.py --source t2v.pt --from open-sora-plan-v1.0 --json

exit code: 0 the file fits a layout; 1 it can be read but not converted (the output says why); 2 it cannot be read
"""


def inspect(
    source: str | Path,
    which: str = "ema",
    layout: str | None = None,
    overrides: dict[str, object] | None = None,
    with_hash: bool = False,
) -> dict:
    """Everything known about a checkpoint, as plain data; `problem` says why it cannot be converted, or is None.

    Raises ConversionError for a file that cannot be read at all.
    """
    opened = open_source(Path(source))
    entries, notes = unwrap(opened.tree, which, opened.path)
    shapes = {name: entry.shape for name, entry in entries.items()}
    found = candidates(shapes)
    if layout not in (None, "ours"):
        found = [(family, family.named(layout)) for family in FAMILIES.values() if layout in family.layouts]
        if not found:
            known = [name for family in FAMILIES.values() for name in family.layouts]
            raise ConversionError(f"unknown layout {layout!r}", expected=" or ".join(known))
    written = opened.metadata.get("model")
    families = [family for family in FAMILIES.values() if written in family.ours] or [f for f, _ in found]

    result = {
        "source": str(source),
        "container": opened.container,
        "files": [str(file) for file in opened.files],
        "metadata": {key: word for key, word in opened.metadata.items() if key != "config"},
        "candidates": [
            {"layout": other.name, "model": other.model.name, "evidence": other.evidence}
            for _, other in found
        ],
        "model": None,
        "layout": None,
        "config": None,
        "command": None,
        "options": "",
        "notes": [*opened.notes, *notes],
        "problem": None,
        "missing": [],
        "unknown": [],
        "mis-shaped": [],
        "parameters": sum(entry.size for entry in entries.values()),
        "bytes": sum(entry.nbytes for entry in entries.values()),
        "dtypes": dict(Counter(entry.dtype for entry in entries.values())),
        "tensors": {
            name: {"shape": list(entry.shape), "dtype": entry.dtype} for name, entry in entries.items()
        },
    }
    if with_hash:
        result["sha256"] = content_hash(entries)
    if not families:
        result["problem"] = "no known layout has these names"
        return result
    family = families[0]
    result["command"] = f"converters/{family.command}"
    result["options"] = _options(which, layout, overrides or {})
    try:
        checkpoint = load(source, which, layout, overrides, family.name)
    except ConversionError as error:
        result["problem"] = str(error)
        if found:
            result |= _differences(found[0][1], shapes, opened, overrides or {})
    else:
        result |= {
            "model": checkpoint.model,
            "layout": checkpoint.layout,
            "config": checkpoint.config,
            "notes": checkpoint.notes,
        }
    return result


def _differences(layout, shapes: dict, opened: Source, overrides: dict) -> dict[str, list[str]]:
    """What does not fit, as far as the configuration can be had."""
    solved = layout.solve(shapes)
    known = {**layout.model.infer(solved, shapes), **layout.presumes}
    try:
        given, _ = layout.model.arguments({**find_config(opened)[0], **overrides}, "configuration")
        return layout.differences(shapes, {**known, **given}, solved)
    except ConversionError:  # what the problem says already
        return layout.differences(shapes, known, solved)


def _options(which: str, layout: str | None, overrides: dict) -> str:
    """What the converter has to be told as well, as words of a command line."""
    words = [*(["--which", which] if which != "ema" else []), *(["--from", layout] if layout else [])]
    words += ["--set"] if overrides else []
    for key, value in overrides.items():
        words.append(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    return "".join(f" {shlex.quote(word)}" for word in words)


def folded(entries: dict[str, dict]) -> list[tuple[str, str, str, int]]:
    """Tensors that differ only in their numbers, as one line: (name with ranges, shape, dtype, count)."""
    groups: dict[tuple, list[list[int]]] = {}
    for name, about in entries.items():
        words = re.split(r"(?<=\.)(\d{1,9})(?=\.)", name)  # every second piece is a number
        key = tuple(words[::2]), tuple(about["shape"]), about["dtype"]
        groups.setdefault(key, []).append([int(n) for n in words[1::2]])
    lines = []
    for (words, shape, dtype), numbers in groups.items():
        ranges = [
            str(low) if low == high else f"{{{low}..{high}}}"
            for low, high in ((min(column), max(column)) for column in zip(*numbers, strict=True))
        ]
        name = "".join(word + number for word, number in zip(words, [*ranges, ""], strict=True))
        lines.append((name, "x".join(map(str, shape)) or "scalar", dtype, len(numbers)))
    return lines


def show(result: dict, every: bool) -> list[str]:
    """The report as lines for people."""
    dtypes = ", ".join(f"{word} {count}" for word, count in result["dtypes"].items())
    lines = [
        f"source     {result['source']}",
        f"container  {result['container']}",
        f"tensors    {len(result['tensors'])} ({dtypes}), {result['parameters']:,} parameters, "
        f"{result['bytes']:,} bytes",
    ]
    lines += [f"metadata   {key}: {word}" for key, word in result["metadata"].items()]
    if "sha256" in result:
        lines.append(f"sha256     {result['sha256']} (content)")
    for other in result["candidates"]:
        lines.append(f"candidate  {other['layout']} of {other['model']}: {other['evidence']}")
    if result["problem"] is None:
        lines.append(f"layout     {result['layout']} of {result['model']}, fits")
        lines.append(f"config     {json.dumps(result['config'])}")
        source = shlex.quote(result["source"])
        lines.append(
            f"convert    python {result['command']} --source {source}{result['options']} --target ..."
        )
    else:
        lines += [f"problem    {line}" for line in result["problem"].splitlines()]
    lines += [f"note       {note}" for note in result["notes"]]
    for group in ("missing", "unknown", "mis-shaped"):
        lines += [f"{group:<11}{line}" for line in result[group]] if every else []

    if every:
        rows = [
            (name, "x".join(map(str, about["shape"])) or "scalar", about["dtype"], 1)
            for name, about in result["tensors"].items()
        ]
    else:
        rows = folded(result["tensors"])
    width = max((len(row[0]) for row in rows), default=0)
    lines.append("")
    for name, size, dtype, count in rows:
        lines.append(f"{name:<{width}}  {size:<16} {dtype:<5}" + (f" {count} times" if count > 1 else ""))
    return [printable(line) for line in lines]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit codes as in --help."""
    parser = Parser(
        prog="inspect_checkpoint.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source(parser)
    parser.add_argument(
        "--all", action="store_true", help="every tensor and every fault on a line of its own"
    )
    parser.add_argument("--hash", action="store_true", help="also the content hash (reads all data)")
    parser.add_argument("--json", action="store_true", help="everything as JSON")

    def work() -> int:
        args = parser.parse_args(arguments)
        settings = dict(map(parse_setting, args.settings))
        result = inspect(args.source, args.which, args.layout, settings, args.hash)
        print(json.dumps(result, indent=1) if args.json else "\n".join(show(result, args.all)))
        return 0 if result["problem"] is None else 1

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
