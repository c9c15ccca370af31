# SPDX-License-Identifier: Apache-2.0
"""The command line that the three converters share."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from converters.containers.target import parse_size
from converters.convert import DTYPE_WORDS, convert
from converters.errors import ConversionError, printable
from converters.layouts import FAMILIES


class Parser(argparse.ArgumentParser):
    """Usage errors become the one error that every command prints."""

    def error(self, message: str) -> None:
        raise ConversionError(message, remedy="see --help")

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        found = super().parse_args(args, namespace)
        for name, value in vars(found).items():
            if value == [] and name != "settings":  # what argparse makes of --to=--
                self.error(f"argument --{name}: expected one argument")
        return found


def parse_setting(text: str) -> tuple[str, object]:
    """ "num_heads=8" -> ("num_heads", 8); values are JSON, words, or numbers with a comma (32,40)."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ConversionError("--set is malformed", got=repr(text), expected="key=value")
    if "," in value and not value.startswith(("[", "{", '"')):
        value = f"[{value}]"
    try:
        return key, json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
    except (ValueError, RecursionError):
        return key, value


def add_source(parser: argparse.ArgumentParser) -> None:
    """The options that tell what to read."""
    parser.add_argument(
        "--source",
        required=True,
        metavar="PATH",
        help=".pt .pth .bin .safetensors .ckpt file, .index.json of shards, or diffusers / transformers folder",
    )
    parser.add_argument(
        "--which",
        default="ema",
        choices=("ema", "model"),
        help="weights to take from a training checkpoint (default ema, or what there is)",
    )
    parser.add_argument(
        "--from", dest="layout", metavar="LAYOUT", help="its layout, when the file does not tell"
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


def layouts_of(family: str) -> str:
    """The layouts with the evidence by which each is detected, for --help."""
    lines = [
        f"layouts for --from and --to ({' and '.join(FAMILIES[family].ours)}), and what gives them away:"
    ]
    for name, layout in FAMILIES[family].layouts.items():
        lines.append(f"  {name:<22}{layout.evidence}")
    lines.append(f"  {'ours':<22}written by this package; parameter names of ms_latte and torch_ref")
    return "\n".join(lines)


def build_parser(family: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=FAMILIES[family].command,
        description=description,
        epilog=f"{examples}\n{layouts_of(family)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source(parser)
    parser.add_argument(
        "--target",
        required=True,
        metavar="PATH",
        help="file to write (.safetensors .pt .pth .bin .ckpt), or a folder (no ending) with config.json",
    )
    parser.add_argument("--to", default="ours", metavar="LAYOUT", help="layout to write (default ours)")
    parser.add_argument(
        "--dtype",
        default="keep",
        choices=(*DTYPE_WORDS, "keep"),
        help="of floating-point tensors (default keep)",
    )
    parser.add_argument(
        "--shard-size",
        metavar="SIZE",
        help="at most so much per file (5GB, 500MB) in a folder, with an index",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check the source's checksums, read the target again and compare every bit",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing target")
    return parser


def run(family: str, description: str, examples: str, arguments: Sequence[str] | None = None) -> int:
    """One converter's command line: exit code 0, or 2 with one line on stderr."""

    def work() -> int:
        args = build_parser(family, description, examples).parse_args(arguments)
        convert(
            args.source,
            args.target,
            args.which,
            args.layout,
            args.to,
            dict(map(parse_setting, args.settings)),
            args.dtype,
            args.verify,
            args.force,
            parse_size(args.shard_size) if args.shard_size else None,
            family,
            lambda line: print(printable(line)),
        )
        return 0

    return guarded(work)


def guarded(work: Callable[[], int]) -> int:
    """Run a command; whatever is the user's or the machine's fault becomes one line on stderr."""
    sys.stdout.reconfigure(
        errors="backslashreplace"
    )  # names in the file may be beyond the terminal's alphabet
    try:
        return work()
    except ConversionError as error:
        print(f"error: {error.one_line()}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stderr.close()
        return 2
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(
            f"error: {printable(f'{error.strerror or error}{where}')}; nothing was written", file=sys.stderr
        )
        return 2
    except MemoryError:
        print("error: not enough memory; nothing was written", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:  # whoever has written something says so
        print(f"error: interrupted, {printable(str(error)) or 'nothing was written'}", file=sys.stderr)
        return 130
