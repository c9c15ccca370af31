# SPDX-License-Identifier: Apache-2.0
"""Convert a published Latte checkpoint to one safetensors file with our names.

The configuration travels inside, as metadata. Neither torch nor MindSpore is needed,
and memory stays at about one tensor.
"""

import argparse
import json
import os
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as a file: find the package from any folder, and keep our folder off the path
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

import numpy as np

from converters.checkpoint import Checkpoint, describe, load
from converters.errors import ConversionError
from converters.stream import Entries, cast, content_hash, names_of, read_safetensors, write_safetensors
from converters.torch_zip import check_crc

DTYPE_WORDS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}

EXAMPLES = """\
examples:
  official Latte, EMA weights, shapes tell the configuration:
    python converters/latte_converter.py --source skytimelapse.pt --target skytimelapse.safetensors
  the raw (non-EMA) weights in half precision, checked after writing:
    python converters/latte_converter.py --source ucf101.pt --target ucf101.safetensors \\
        --which model --dtype fp16 --verify
  a latent that is not square, a width that is not published (sizes are those of the latent: pixels / 8):
    python converters/latte_converter.py --source my.pt --target my.safetensors \\
        --set input_size=32,40 num_heads=8
  text to video, a diffusers folder with config.json:
    python converters/latte_converter.py --source Latte-1/transformer --target latte-1.safetensors
  Open-Sora-Plan v1.0 (its file looks like the official LatteT2V, only you can tell them apart):
    python converters/latte_converter.py --source t2v.pt --target osp.safetensors --from open-sora-plan-v1.0

layouts for --from: official-latte, diffusers, official-t2v, open-sora-plan-v1.0, ours
"""


def convert(
    source: str | Path,
    target: str | Path,
    which: str = "ema",
    layout: str | None = None,
    overrides: dict[str, object] | None = None,
    dtype: str = "keep",
    verify: bool = False,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> str:
    """Write `source` as a safetensors file of ours to `target`; returns the sha256 content hash.

    dtype   "keep", "fp32", "fp16" or "bf16"; floating-point tensors only, overflow is an error
    verify  check the source's zip checksums, read the target again and prove every tensor bit-equal
    force   replace an existing target (never the source)
    Raises ConversionError; then an existing target is unchanged and nothing new is left behind.
    """
    source, target = Path(source), Path(target)
    if dtype not in ("keep", *DTYPE_WORDS):
        raise ConversionError(f"unknown dtype {dtype!r}", expected=", ".join(["keep", *DTYPE_WORDS]))
    if target.suffix != ".safetensors":
        raise ConversionError(
            f"cannot write {target.name}",
            got=f"ending {target.suffix!r}",
            expected=".safetensors",
            remedy=f"--target {target.with_suffix('.safetensors')}",
        )
    checkpoint = load(source, which, layout, overrides)
    _check_target(target, checkpoint, force)
    entries = checkpoint.tensors.entries
    _describe(source, checkpoint, say)
    if verify:
        for file in checkpoint.files:
            if zipfile.is_zipfile(file):
                check_crc(file)

    if dtype != "keep":
        entries = {name: cast(name, entry, DTYPE_WORDS[dtype]) for name, entry in entries.items()}
    metadata = {
        "model": checkpoint.model,
        "config": json.dumps(checkpoint.config),
        "layout": checkpoint.layout,
    }
    digest = write_safetensors(target, entries, metadata, _progress(entries, say))
    say(f"written   {target} ({target.stat().st_size:,} bytes, dtype {dtype})")
    say(f"sha256    {digest} (content)")
    if verify:
        _verify(target, entries, digest)
        how = "bit-equal to the source" if dtype == "keep" else f"bit-equal to the source cast to {dtype}"
        say(f"verified  {len(entries)} tensors read back, {how}")
    return digest


def _check_target(target: Path, checkpoint: Checkpoint, force: bool) -> None:
    if not target.parent.is_dir():
        raise ConversionError(f"folder {target.parent} does not exist", remedy=f"mkdir -p {target.parent}")
    if target.is_dir():
        raise ConversionError(f"{target} is a folder", remedy="name a file")
    if target.exists():
        if any(os.path.samefile(target, file) for file in checkpoint.files):
            raise ConversionError(f"{target} is the source itself", remedy="choose another --target")
        if not force:
            raise ConversionError(
                f"{target} exists already", remedy="choose another --target or pass --force"
            )


def _describe(source: Path, checkpoint: Checkpoint, say: Callable[[str], None]) -> None:
    entries = checkpoint.tensors.entries
    dtypes = ", ".join(f"{word} {count}" for word, count in Counter(checkpoint.dtypes.values()).items())
    say(f"source    {source}")
    say(f"layout    {checkpoint.layout} of {checkpoint.model}")
    say(f"tensors   {len(entries)} ({dtypes}), {sum(entry.size for entry in entries.values()):,} parameters")
    say(f"config    {describe(checkpoint.config)}")
    for note in checkpoint.notes:
        say(f"note      {note}")


def _progress(entries: Entries, say: Callable[[str], None], every: float = 5.0) -> Callable[[int], None]:
    """Tells at most every few seconds how far writing has come; short work stays silent."""
    total, last = sum(entry.nbytes for entry in entries.values()), time.monotonic()

    def progress(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            say(f"writing   {100 * done // max(total, 1):3d} % of {total / 1e9:.2f} GB")

    return progress


def _verify(target: Path, entries: Entries, digest: str) -> None:
    """Read the target again: same names, dtypes, shapes, and every bit as in the (cast) source."""
    written, _ = read_safetensors(target)
    different = [
        name
        for name in {**entries, **written}
        if name not in written
        or name not in entries
        or (entries[name].dtype, entries[name].shape) != (written[name].dtype, written[name].shape)
        or not _same_bits(entries[name].bits(), written[name].bits())
    ]
    if different or content_hash(written) != digest:
        raise ConversionError(
            f"{target} differs from what was written",
            got=names_of(different) or "another content hash",
            remedy="do not use the file: check the disk and convert again",
        )


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equality of bytes: NaNs equal themselves and -0 differs from 0."""
    return np.array_equal(
        np.ascontiguousarray(a).reshape(-1).view(np.uint8), np.ascontiguousarray(b).reshape(-1).view(np.uint8)
    )


def parse_setting(text: str) -> tuple[str, object]:
    """ "num_heads=8" -> ("num_heads", 8); values are JSON, words, or numbers with a comma (32,40)."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ConversionError("--set is malformed", got=repr(text), expected="key=value")
    if "," in value and not value.startswith(("[", "{", '"')):
        value = f"[{value}]"
    try:
        return key, json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
    except json.JSONDecodeError:
        return key, value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConversionError(message, remedy="see --help")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="latte_converter.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source",
        required=True,
        metavar="PATH",
        help=".pt .pth .bin .safetensors file, .safetensors.index.json, or diffusers folder",
    )
    parser.add_argument("--target", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument(
        "--which",
        default="ema",
        choices=("ema", "model"),
        help="weights to take from a training checkpoint (default ema, or what there is)",
    )
    parser.add_argument(
        "--from", dest="layout", metavar="LAYOUT", help="published layout, when the file does not tell"
    )
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="constructor arguments that win over those found",
    )
    parser.add_argument(
        "--dtype",
        default="keep",
        choices=("fp32", "fp16", "bf16", "keep"),
        help="of floating-point tensors (default keep)",
    )
    parser.add_argument("--verify", action="store_true", help="read the target again and compare every bit")
    parser.add_argument("--force", action="store_true", help="replace an existing target")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: exit code 0, or 2 with one line on stderr."""
    try:
        args = build_parser().parse_args(arguments)
        settings = dict(map(parse_setting, args.settings))
        convert(
            args.source, args.target, args.which, args.layout, settings, args.dtype, args.verify, args.force
        )
    except ConversionError as error:
        print(f"error: {error.one_line()}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or args.target}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
