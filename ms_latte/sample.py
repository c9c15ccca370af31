# SPDX-License-Identifier: Apache-2.0
"""Sample videos: unconditional, by class, or from text.

A configuration file says everything; `--key value` wins over it. Checkpoints are read as they were published: official
.pt, diffusers folders, mindone .ckpt, or what converters/ wrote.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: find the package from any folder, and keep our folder off the path
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

from ms_latte.config import ConfigError, build, find_config, parse
from ms_latte.sample_config import SampleConfig

EXAMPLES = """\
examples:
  a demo that needs no download: a tiny random model, 50 steps on the CPU
    python -m ms_latte.sample -c configs/inference/demo.yaml
  Sky Timelapse, unconditional, DDPM with 250 steps
    python -m ms_latte.sample -c configs/inference/sky.yaml --checkpoint models/skytimelapse.pt
  UCF101 by class, in two formats (mp4 needs: pip install "ms-latte[video]")
    python -m ms_latte.sample -c configs/inference/ucf101.yaml --class_ids 1,13,100 --output_format gif,mp4
  text to video, from a pipeline's folder (transformer/, vae/, text_encoder/, tokenizer/)
    python -m ms_latte.sample -c configs/inference/t2v.yaml --checkpoint Latte-1 --prompts "a dog in the snow"
  latents only, to be decoded elsewhere
    python -m ms_latte.sample -c configs/inference/sky.yaml --output_format latents
  continue an interrupted batch: the same command with its folder
    python -m ms_latte.sample -c configs/inference/sky.yaml --output_path samples/2026-01-31T12-00-00

The folder of a run holds 0000.gif ..., contact_sheet.png, config.yaml (the resolved configuration) and samples.jsonl
(seed, class or prompt, files of every sample). Nothing is ever overwritten. Other publications' spellings of a key
are taken too (ckpt, cfg_scale, num_sampling_steps, video_length, text_prompt, use_fp16 ...).
"""


def main(arguments=None):
    """The command line: exit status 0; 2 with one line on stderr for a mistake; 130 when interrupted."""
    return guarded(lambda: work(arguments))


def work(arguments):
    """Parse, check, sample."""
    path, overrides = parse(SampleConfig, arguments, "python -m ms_latte.sample", __doc__, EXAMPLES)
    if path is None and not overrides:
        raise ConfigError("nothing to do: -c CONFIG is missing; --help lists the shipped ones and all keys")
    config = build(SampleConfig, find_config(path) if path else None, overrides)
    from ms_latte.sampling import run  # after the cheap checks

    return run(config)


def guarded(work):
    """Run a command; whatever is the user's or the machine's fault becomes one line on stderr."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return work()
    except (ValueError, ImportError, MemoryError) as error:
        return fail(str(error) or "not enough memory")
    except RuntimeError as error:
        if type(error).__name__ != "DeviceError":
            raise
        return fail(str(error))
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stderr.close()
        return 2
    except OSError as error:
        return fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt as error:
        print(f"interrupted; {error}" if str(error) else "interrupted", file=sys.stderr)
        return 130


def fail(message):
    """One line on stderr, without control characters; exit status 2."""
    line = " | ".join(part.strip() for part in message.split("\n") if part.strip())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    print(f"error: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
