# SPDX-License-Identifier: Apache-2.0
"""Configurations: a frozen schema, filled from a yaml file and from `--key value`, the second winning.

A schema is a pydantic model with `aliases` (other spelling -> key) and `choices` (key -> key of the same choice, which
a later layer replaces). A mistake is a ConfigError of one line that says where it stands, what was got, what was
expected and what to do.
"""

import argparse
import difflib
from pathlib import Path
from typing import get_args, get_origin

import yaml
from pydantic import ValidationError

CONFIGS = Path(__file__).resolve().parent / "configs"
ListOf = (list, tuple)
DATA = "data_config_file"  # the key that leads to a second file


class ConfigError(ValueError):
    """A configuration that cannot be served; the message is one line."""


def is_optional(field):
    """Whether a key may be None."""
    return field is not None and type(None) in get_args(field.annotation)


def takes_many(field):
    """Whether a key takes several values."""
    return get_origin(field.annotation) is tuple


def find_config(path):
    """The configuration file of `-c PATH`: as given, else inside the package's configs, with or without .yaml.

    Raises ConfigError that lists the shipped ones.
    """
    if Path(path).is_file():
        return Path(path)
    parts = Path(path).parts
    inside = Path(*parts[parts.index("configs") + 1 :]) if "configs" in parts else Path(path)
    if not inside.is_absolute() and ".." not in inside.parts:
        for place in (CONFIGS / inside, CONFIGS / "inference" / inside, CONFIGS / "training" / inside):
            for file in (place, place.with_name(f"{place.name}.yaml")):
                if file.is_file():
                    return file
    shipped = ", ".join(
        sorted(f"configs/{p.relative_to(CONFIGS).as_posix()}" for p in CONFIGS.rglob("*.yaml"))
    )
    raise ConfigError(f"configuration {path} does not exist; expected a yaml file or one of {shipped}")


def read_yaml(path):
    """key -> (value, "file:line") of a yaml file. Raises ConfigError for what is not one flat mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid yaml ({getattr(error, 'problem', None) or error})") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got a {type(values).__name__}, expected lines of `key: value`")
    found = {}
    for (key, value), (node, _) in zip(_pairs(root), root.value, strict=True):
        where = f"{path}:{node.start_mark.line + 1}"
        if key in found:
            raise ConfigError(f"{where}: {key} stands twice, first at {found[key][1]}; remove one")
        found[key] = (value, where)
    return found


def _pairs(root):
    """Keys and values in the order of the file, doubles included."""
    loader = yaml.SafeLoader("")
    return [(loader.construct_object(k, True), loader.construct_object(v, True)) for k, v in root.value]


def build(schema, path=None, overrides=None):
    """A checked configuration: defaults, then the file, then the command line.

    path: yaml file or None; overrides: key -> text, texts or value. A schema with the key data_config_file takes the
    keys of that file first; one with `elsewhere` passes over those of other commands in a file. Raises ConfigError: one
    line for all mistakes.
    """
    values, origin = {}, {}
    layers = [read_yaml(path)] if path else []
    layers.append({key: (value, f"--{key}") for key, value in (overrides or {}).items()})
    data = next((layer[DATA][0] for layer in reversed(layers) if layer.get(DATA, (None,))[0]), None)
    if data and DATA in schema.model_fields:
        beside = Path(path).parent / data if path else Path(data)
        layers.insert(0, read_yaml(beside if beside.is_file() else find_config(data)))
    others = getattr(schema, "elsewhere", ())
    layers[:-1] = [{k: v for k, v in layer.items() if k not in others} for layer in layers[:-1]]
    for layer in layers:
        seen = {}
        for key, (_, where) in layer.items():
            name = canonical(schema, key, where)
            if name in seen:
                raise ConfigError(f"{where}: {key} and {seen[name]} mean the same; leave one out")
            seen[name] = key
        for name in seen:
            if schema.choices.get(name) not in seen:  # a later layer says the choice anew
                values.pop(schema.choices.get(name), None)
        for name, key in seen.items():
            value, origin[name] = layer[key]
            values[name] = schema.translate(key, value)
    try:
        return schema(**values)
    except ValidationError as error:
        raise ConfigError(" | ".join(_explain(item, origin) for item in error.errors())) from error


def canonical(schema, key, where):
    """The field that a key means, or ConfigError with the nearest known one."""
    name = schema.aliases.get(key, key)
    if name in schema.model_fields:
        return name
    near = difflib.get_close_matches(str(key), [*schema.model_fields, *schema.aliases], 1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "--help lists all keys"
    raise ConfigError(f"{where}: unknown key{'' if where == f'--{key}' else f' {key}'}; {hint}")


def _explain(item, origin):
    message = item["msg"].removeprefix("Value error, ")
    if not item["loc"]:
        return message
    key, value = item["loc"][0], item["input"]
    where = origin.get(key, "default")
    head = where if where.startswith("--") else f"{where}: {key}"
    return f"{head}: got {value!r}; {message[0].lower()}{message[1:]}"


def dump(config):
    """The resolved configuration as yaml text, every key stated."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


class Parser(argparse.ArgumentParser):
    """A command line whose usage errors are ConfigErrors."""

    def error(self, message):
        raise ConfigError(f"{message}; see --help")


def parse(schema, arguments, prog, description, epilog):
    """(path of -c or None, overrides) of a command line; every key of the schema is a flag. Prints --help."""
    parser = Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage=f"{prog} -c CONFIG [--key value ...]",
    )
    parser.add_argument("-c", "--config", metavar="PATH", help="yaml file; also a name inside the package")
    groups = {}
    spellings = {name: [k for k, v in schema.aliases.items() if v == name] for name in schema.model_fields}
    for name, field in schema.model_fields.items():
        group = (field.json_schema_extra or {}).get("group", "other")
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        short = ["-m"] if name == "model_name" else []
        groups[group].add_argument(
            *short, f"--{name}", default=argparse.SUPPRESS, metavar=_metavar(field), help=_help(field),
            **({"nargs": "+"} if takes_many(field) else {}),
        )  # fmt: skip
        for other in spellings[name]:
            groups[group].add_argument(
                f"--{other}", default=argparse.SUPPRESS, help=argparse.SUPPRESS,
                **({"nargs": "+"} if takes_many(field) else {}),
            )  # fmt: skip
    found, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("--"):
            key = word[2:].split("=")[0]
            canonical(schema, key, f"--{key}")
        raise ConfigError(f"got {word!r} where a --key was expected; several words need quotes; see --help")
    values = vars(found)
    path = values.pop("config")
    for key, value in values.items():
        if value == []:  # what argparse makes of --key=--
            raise ConfigError(f"--{key}: expected a value")
    return path, values


def _metavar(field):
    words = [w for part in (field.annotation, *get_args(field.annotation)) for w in get_args(part)]
    words = [str(w) for w in dict.fromkeys(words) if isinstance(w, (str, int)) and not isinstance(w, bool)]
    if words:
        return "{" + ",".join(words) + "}"
    kinds = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
    names = {bool: "True|False", int: "N", float: "X", str: "TEXT"}
    return next((names[k] for k in kinds if k in names), "TEXT")


def _help(field):
    default = field.default
    if default is None or default == () or default == "":
        return field.description.replace("%", "%%")
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{field.description} (default {shown})".replace("%", "%%")
