# SPDX-License-Identifier: Apache-2.0
"""`python -m parity report`: the files of a run again, from its parity.json. Nothing is judged again."""

import argparse
import sys
from pathlib import Path

from parity.harness import report
from parity.harness.words import LANGUAGES, Words


def main(arguments: list[str] | None = None) -> int:
    """Write parity.html, .md, .csv and .json, print the tables. Exit status 2 for a wrong file or folder."""
    parser = argparse.ArgumentParser(
        prog="python -m parity report",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write the page, tables and Markdown of a run again from its parity.json: in another language,\n"
        "or on another machine. Nothing is judged again.",
        epilog="example: python -m parity report parity-report/parity.json --lang zh -o parity-report-zh",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a parity.json")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language (default: en)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="where to write (default: beside FILE)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print all rows")
    options = parser.parse_args(arguments)
    w = Words(options.lang)
    try:
        results, header, not_run = report.load(options.file)
        lines = [w.translate(line) for line in header]
        lines += [report.contract_line(results, w), *report.summary(results, options.verbose, w)]
        files = list(report.rendered(results, header, w, not_run))  # all, before the first is written
        paths = report.store(files, options.output or options.file.parent)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (AttributeError, LookupError, TypeError) as error:  # JSON of another structure
        what = f"{type(error).__name__}: {error}"
        print(f"error: {options.file} is no parity.json of this version ({what})", file=sys.stderr)
        return 2
    print(*lines, w("line.report", paths=", ".join(map(str, paths))), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
