"""`python train.py prepare`: read the `data:` group of a configuration and prepare that corpus.

Plain YAML, and nothing heavy is imported first, so that help and a slip answer at once.
"""

import contextlib
import difflib
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from errors import InputError

# Keys of the `data:` group that concern batches, not what is prepared, and their types.
LOADING_KEYS: dict[str, Any] = {
    "batch_size": int,
    "tokens_per_step": int | None,
    "workers": int,
    "validation_sequences": int | None,
    "documents": str,
    "bos": str,
}

_DESCRIPTION = """Turn a text source into token shards. `fit` does it by itself where they are missing.

options of the data group (in the YAML file under `data:`, or here as --data.KEY VALUE):
"""


def main(argv: list[str]) -> int:
    """Prepare what `argv` describes; prints the corpus folder and hash. InputError: one line on what is wrong."""
    from data.options import PrepareOptions

    if any(word in ("-h", "--help") for word in argv):
        print(_help(PrepareOptions), end="")
        return 0
    data, network = _settings(argv)
    choices = {field.name: field for field in fields(PrepareOptions)}
    types = typing.get_type_hints(PrepareOptions) | LOADING_KEYS
    known = (*choices, *LOADING_KEYS)
    for key in data:
        if key not in known:
            raise InputError(
                f"unknown key data.{key}" + _near(key, known, "data.") + f"; the keys are {', '.join(known)}"
            )
    values = {key: _typed(f"data.{key}", value, types[key]) for key, value in data.items()}
    options = PrepareOptions(**{key: value for key, value in values.items() if key in choices})

    from data.corpus import Corpus
    from data.prepare import prepare
    from data.windows import Layout

    layout = Layout(**{key: values[key] for key in ("documents", "bos") if key in values})
    layout.validate()
    corpus = Corpus(prepare(options))
    vocab_size = _typed("model.network.vocab_size", network.get("vocab_size"), int | None)
    corpus.check_network(vocab_size, _typed("model.network.context", network.get("context", 1), int), layout)
    print(f"{corpus.folder}  corpus hash {corpus.hash[:12]}  vocabulary {corpus.vocab_size}")
    return 0


def _settings(argv: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data and model.network groups: configuration files in order, then overrides."""
    data: dict[str, Any] = {}
    network: dict[str, Any] = {}
    words = list(argv)
    overrides: list[tuple[str, Any]] = []
    while words:
        word, equals, value = words.pop(0).partition("=")
        if word not in ("--config", "-c") and not word.startswith(("--data.", "--model.network.")):
            options = ("--config", "--data.", *(f"--data.{key}" for key in LOADING_KEYS), "--help")
            hint = _near(word, options)
            raise InputError(f"prepare: unknown argument {word}{hint}; it takes --config FILE and --data.KEY VALUE")
        if not equals:
            if not words:
                raise InputError(f"{word} needs a value")
            value = words.pop(0)
        if word in ("--config", "-c"):
            content = _read_yaml(Path(value))
            data |= _group(content, "data", value)
            network |= _group(_group(content, "model", value), "network", value)
        else:
            overrides.append((word.removeprefix("--"), _parsed(word, value)))
    for name, value in overrides:
        group, _, key = name.rpartition(".")
        (data if group == "data" else network)[key] = value
    return data, network


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = [str(p) for p in path.parent.glob("*.yaml")]
        raise InputError(f"--config {path}: no such file" + _near(str(path), beside)) from None
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--config {path} is not UTF-8 text: byte offset {error.start}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"--config {path}{place} is not YAML: {getattr(error, 'problem', None) or error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"--config {path} holds a {type(content).__name__}, not groups of keys")
    for key in content:
        if key != "data" and difflib.get_close_matches(str(key), ("data",), 1):
            raise InputError(f"--config {path}: unknown group '{key}' (did you mean 'data'?)")
    return content


def _group(content: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    group = content.get(name)
    if group is None:
        return {}
    if not isinstance(group, dict):
        raise InputError(f"{place}: {name} is {group!r}, not a group of keys")
    return group


def _parsed(word: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"{word}: {value!r} is not a YAML value") from None


def _typed(name: str, value: Any, wanted: Any) -> Any:
    """The value in its option's type; only whole numbers pass as fractions, and numbers as text where text is meant."""
    allowed = typing.get_args(wanted) or (wanted,)
    if value is None and type(None) in allowed:
        return None
    kind = allowed[0]
    if kind is float and isinstance(value, str):  # YAML reads 1e-2, without a dot, as text
        with contextlib.suppress(ValueError):
            value = float(value)
    plain_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str and plain_number:
        return str(value)
    if isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    if kind is float and plain_number:
        return float(value)
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    raise InputError(f"{name} {value!r}: give {names[kind]}" + (" or null" if len(allowed) > 1 else ""))


def _near(word: str, choices: typing.Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, list(choices), 1)
    return f" (did you mean {prefix}{near[0]}?)" if near else ""


def _help(options: type) -> str:
    """The usage text; what the options mean comes from the docstring of PrepareOptions."""
    described = (options.__doc__ or "").partition("Args:\n")[2].rstrip()
    defaults = {f.name: f.default for f in fields(options)}
    lines = []
    for line in described.splitlines():
        name = line.strip().partition(":")[0]
        lines.append(f"  {line.strip()}" + (f" [{defaults[name]}]" if defaults.get(name) is not None else ""))
    usage = "usage: train.py prepare --config FILE [--data.KEY VALUE ...]\n\n"
    example = "\n\npython train.py prepare --config configs/demo_text.yaml --data.vocab_size 4096\n"
    return usage + _DESCRIPTION + "\n".join(lines) + example
