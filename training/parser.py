"""The parser of `fit` and `validate`: LightningCLI's, with every mistake answered by one line.

A YAML file is read once before jsonargparse reads it, because only then can a mistake be named with its file and line,
and because jsonargparse passes over a scalar where a group of options belongs.
"""

import argparse
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from errors import InputError


class Parser(LightningArgumentParser):
    """No abbreviated options, and InputError instead of a usage text and an exit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise InputError with jsonargparse's message in one line. Called by jsonargparse and argparse."""
        raise InputError(one_line(message, option_names(self))) from ex


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Every option's dotted name, without dashes; those of the subcommand where the parser has one."""
    names = set()
    for action in parser._actions:
        if action.dest == "subcommand" and isinstance(action.choices, dict):
            for subparser in action.choices.values():
                names.update(option_names(subparser))
        names.update(option[2:] for option in action.option_strings if option.startswith("--"))
    return sorted(name for name in names if not name.endswith(("help", "+")))


def nearest(name: str, names: list[str]) -> str:
    """ " Did you mean a or b?" with the options whose last part or whole name is close to `name`; else empty."""
    last = name.rpartition(".")[2]
    same = [option for option in names if option.rpartition(".")[2] == last and option != name]
    near = same or get_close_matches(name, names, n=2, cutoff=0.7)
    if not near:
        by_last = {option.rpartition(".")[2]: option for option in names}
        near = [by_last[match] for match in get_close_matches(last, by_last, n=2, cutoff=0.75)]
    return f" Did you mean {' or '.join(near[:3])}?" if near else ""


def one_line(message: str, names: list[str]) -> str:
    """jsonargparse's error message rewritten: the option, what is expected, and the value that was given."""
    if match := re.match(r"unrecognized arguments: (.*)", message, re.S):
        words = match[1].split()
        unknown = next((word for word in words if word.startswith("-")), words[0])
        if not unknown.startswith("-"):
            return f"unexpected argument {unknown!r}: options are written --name value"
        name = unknown.lstrip("-").partition("=")[0]
        return f"unknown option --{name}.{nearest(name, names) or ' fit --help.all lists them.'}"
    if match := re.search(r"does not accept option '([^']*)'", message):
        return f"unknown option {match[1]}.{nearest(match[1], names) or ' fit --help.all lists them.'}"
    if match := re.match(r'Linked "([^"]*)" must be given via "([^"]*)"', message):
        return f"{match[1]} follows from {match[2]}: give {match[2]} instead"
    if match := re.match(r'Parser key "([^"]*)":\s*(.*)', message, re.S):
        return f"{match[1]}: {_expectation(match[2])}"
    return re.sub(r"\s+", " ", message).strip()


def _expectation(text: str) -> str:
    """ "expected int, got x" from jsonargparse's description of a value that does not fit its type."""
    value = re.search(r"(?:Got value|Given value): (.*)", text, re.S)
    types = re.search(r"Subtypes: [\[(](.*?)[\])]\s*\n", text, re.S) or re.search(
        r"Expected an? (.*?)\. Got value", text, re.S
    )
    if value is None or types is None:
        return re.sub(r"\s+", " ", text).strip()
    given = re.sub(r"\s+", " ", value[1]).strip()
    expected = re.sub(r"<class '([\w.]+)'>", r"\1", types[1])
    expected = re.sub(r"typing\.", "", expected)
    expected = re.sub(r"[Dd]ict(\[[^\]]*\])?", "mapping", expected)
    choices: list[str] = []
    for literal in re.findall(r"Literal\[(.*?)\]", expected):
        choices += [choice.strip().strip("'\"") for choice in literal.split(",")]
    if choices and "Subtypes" not in text:
        expected = f"one of {', '.join(choices)}"
    elif "Subtypes" in text:
        expected = re.sub(r"Literal\[(.*?)\]", lambda literal: literal[1].replace("'", ""), expected)
        expected = re.sub(r",\s*", " or ", expected).replace("NoneType", "null")
    if expected in ("list", "tuple"):
        expected = f"a list in brackets, such as [{given}]"
    if expected == "float" and given.lstrip("+-.").lower() in ("nan", "inf"):
        expected = "a finite number"
    near = get_close_matches(given, choices, n=1)
    return f"expected {expected}, got {given}{f'; did you mean {near[0]}?' if near else ''}"


def check_config_file(path: str, parser: argparse.ArgumentParser) -> None:
    """Raise InputError for a file that is missing, is not YAML, or has a key that no option bears.

    The message names the file, the line and the nearest key. Types of values are left to jsonargparse.
    """
    file = Path(path)
    if not file.is_file():
        near = get_close_matches(file.name, [other.name for other in file.parent.glob("*.y*ml")], n=1)
        hint = f" Did you mean {file.parent / near[0]}?" if near else ""
        raise InputError(f"there is no configuration file {path}.{hint}")
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file (byte {error.start} is not UTF-8)") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path} holds no options: a mapping such as `model:` with lines below it is expected")
    _check_keys(root, "", path, option_names(parser))


def _check_keys(node: yaml.MappingNode, prefix: str, path: str, names: list[str]) -> None:
    seen = set()
    for key_node, value in node.value:
        name, where = f"{prefix}{key_node.value}", f"{path}, line {key_node.start_mark.line + 1}"
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        if name in seen:
            raise InputError(f"{where}: {name} is given twice")
        seen.add(name)
        # An option whose value is itself a mapping or an object (an attention, a logger) checks its own keys.
        if name in names and not any(other.startswith(f"{name}.") for other in names):
            continue
        below = [other for other in names if other.startswith(f"{name}.")]
        if not below:
            raise InputError(f"{where}: unknown key {name}.{nearest(name, names) or _siblings(prefix, names)}")
        if isinstance(value, yaml.MappingNode):
            _check_keys(value, f"{name}.", path, names)
        elif value.tag != "tag:yaml.org,2002:null":
            raise InputError(f"{where}: {name} is a group of options, got {value.value}.{_siblings(f'{name}.', names)}")


def _siblings(prefix: str, names: list[str]) -> str:
    parts = dict.fromkeys(name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix))
    return f" Allowed under {prefix.rstrip('.') or 'the top level'}: {', '.join(parts)}."
