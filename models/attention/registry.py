"""From what stands in a YAML file to a mechanism: names, import paths, and options checked against the class.

softmax    {name: sink_key_value, slots: 4}    my_package.my_module.MyClass    {name: my_module.MyClass, beta: 2}
"""

import hashlib
import importlib
import inspect
import math
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from errors import InputError
from models.attention.base import Above, AtLeast, AttentionShape, Mechanism
from models.attention.clipped_softmax import ClippedSoftmax
from models.attention.context_bias import ContextBias
from models.attention.context_scaling import ContextScaling
from models.attention.elastic_softmax import ElasticSoftmax
from models.attention.fixed_bias import FixedBias
from models.attention.gated_element import GatedElement
from models.attention.gated_head import GatedHead
from models.attention.gated_slice import GatedSlice
from models.attention.off_by_one import OffByOne
from models.attention.sigmoid import Sigmoid
from models.attention.sink_key import SinkKey
from models.attention.sink_key_value import SinkKeyValue
from models.attention.sink_logit import SinkLogit
from models.attention.sink_token import SinkToken
from models.attention.softmax import Softmax
from models.attention.softpick import Softpick
from models.config import suggestion
from models.initial import fill

BUILTIN: dict[str, type[Mechanism]] = {
    "softmax": Softmax,
    "fixed_bias": FixedBias,
    "context_bias": ContextBias,
    "sink_key_value": SinkKeyValue,
    "sink_key": SinkKey,
    "sink_logit": SinkLogit,
    "off_by_one": OffByOne,
    "sink_token": SinkToken,
    "context_scaling": ContextScaling,
    "gated_head": GatedHead,
    "gated_element": GatedElement,
    "gated_slice": GatedSlice,
    "sigmoid": Sigmoid,
    "softpick": Softpick,
    "clipped_softmax": ClippedSoftmax,
    "elastic_softmax": ElasticSoftmax,
}


_ROOT = Path(__file__).resolve().parents[2]


def names() -> list[str]:
    """The built-in mechanisms."""
    return list(BUILTIN)


def examples() -> dict[str, dict[str, Any]]:
    """A specification of every built-in, by name: its defaults, and its class's `example` where there are none."""
    return {name: {"name": name, **mechanism.example} for name, mechanism in BUILTIN.items()}


def normalise(spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """The canonical form {"name": ..., option: value}, options in the class's order, without those at their default.

    So two specifications of one mechanism compare equal. Raises InputError for an unknown name, a path that cannot be
    imported, an unknown or missing option, or a value of the wrong type.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise InputError(f"attention is {spec!r}; give a name, an import path, or {{name: ..., option: value}}")
    name = spec["name"]
    allowed = options(find(name))
    given = {str(key): value for key, value in spec.items() if key != "name"}
    for key in given:
        if key not in allowed:
            choices = ", ".join(allowed) or "none"
            raise InputError(
                f"attention {name} has no option {key!r}{suggestion(key, allowed)}; its options: {choices}"
            )
    canonical: dict[str, Any] = {"name": name}
    for key, (kind, default) in allowed.items():
        if key in given:
            value = convert(given[key], kind, f"attention {name}: option {key}")
            if default is inspect.Parameter.empty or value != default:
                canonical[key] = value
        elif default is inspect.Parameter.empty:
            raise InputError(
                f"attention {name} needs its option {key!r}, which has no default: {{name: {name}, {key}: ...}}"
            )
    return canonical


def label(spec: str | Mapping[str, Any]) -> str:
    """A short name that is safe in a file system: `softmax`, `sink_key_value,slots=4`. Equal where specs are equal."""
    canonical = normalise(spec)
    text = ",".join([canonical["name"], *(f"{key}={plain(v)}" for key, v in canonical.items() if key != "name")])
    safe = re.sub(r"[^A-Za-z0-9._+,=-]", "-", text)
    if safe == text and len(text) <= 120:
        return text
    return f"{safe[:111]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def plain(value: object) -> str:
    """A value as YAML would write it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def build(spec: str | Mapping[str, Any], shape: AttentionShape, backend: str = "auto", *, seed: int = 0) -> Mechanism:
    """The mechanism with its initial values drawn from `seed`; a GPT draws them anew under its own names."""
    canonical = normalise(spec)
    name = canonical.pop("name")
    try:
        mechanism = find(name)(shape, **canonical)
        fill(mechanism, seed)
    except Exception as error:  # a user's constructor may fail in any way
        if name in BUILTIN or isinstance(error, InputError):
            raise
        raise InputError(f"attention {name!r} cannot be built: {fault(error)}") from error
    if backend not in mechanism.backends:
        near = suggestion(backend, mechanism.backends)
        choices = ", ".join(mechanism.backends)
        raise InputError(f"attention {label(spec)} has no backend {backend!r}{near}; choose from {choices}")
    mechanism.backend = backend
    return mechanism


def find(name: str) -> type[Mechanism]:
    """The class behind a built-in name or an import path `package.module.Class`."""
    if name in BUILTIN:
        return BUILTIN[name]
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        raise InputError(
            f"unknown attention {name!r}{suggestion(name, BUILTIN)}; choose from {', '.join(BUILTIN)}, "
            "or give an import path package.module.Class"
        )
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"attention {name!r} is not an import path of the form package.module.Class")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and f"{module_name}.".startswith(f"{absent}."):
            raise InputError(f"attention {name!r}: there is no module {absent!r} on the Python path") from None
        raise InputError(f"attention {name!r}: importing {module_name!r} failed: {fault(error)}") from error
    found = getattr(module, class_name, None)
    if found is None:
        near = suggestion(class_name, vars(module))
        raise InputError(f"attention {name!r}: module {module_name!r} has no class {class_name!r}{near}")
    if not (inspect.isclass(found) and issubclass(found, Mechanism)):
        raise InputError(f"attention {name!r} is not a subclass of models.attention.Mechanism")
    if found.parts is Mechanism.parts and found.forward is Mechanism.forward:
        raise InputError(f"attention {name!r} defines neither `parts` nor `forward`")
    return found


def options(mechanism: type[Mechanism]) -> dict[str, tuple[Any, Any]]:
    """Option -> (annotation, default): the keyword-only parameters of the class."""
    try:
        hints = get_type_hints(mechanism.__init__, include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        where = f"{mechanism.__module__}.{mechanism.__qualname__}"
        raise InputError(f"attention {where!r}: an annotation of its options cannot be read: {error}") from error
    return {
        name: (hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(mechanism.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def fault(error: Exception) -> str:
    """`NameError: name 'x' is not defined (my_module.py, line 3)`: an error and the last line of the user's code."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):  # says where it is
        return text
    ours = (str(_ROOT / "models"), str(_ROOT / "kernels"), "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(ours) and "site-packages" not in frame.filename:
            return f"{text} ({Path(frame.filename).name}, line {frame.lineno})"
    return text


def convert(value: Any, kind: Any, what: str) -> Any:
    """`value` as the annotation `kind` asks, or InputError. A kind beyond the documented ones takes anything."""
    if get_origin(kind) is Annotated:
        base, *bounds = get_args(kind)
        value = convert(value, base, what)
        for bound in bounds:
            if isinstance(bound, AtLeast) and value is not None and value < bound.bound:
                raise InputError(f"{what} is {value!r}; it must be at least {bound.bound:g}")
            if isinstance(bound, Above) and value is not None and value <= bound.bound:
                raise InputError(f"{what} is {value!r}; it must be above {bound.bound:g}")
        return value
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        kinds = [member for member in get_args(kind) if member is not NoneType]
        if len(kinds) == 1:
            return convert(value, kinds[0], what)
        return value
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        for choice in choices:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        listed = ", ".join(plain(choice) for choice in choices)
        raise InputError(f"{what} is {value!r}{suggestion(value, map(str, choices))}; choose from {listed}")
    if kind is float:
        # YAML 1.1 reads 1e-3 as text.
        number = to_float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
        if number is None or not math.isfinite(number):
            raise InputError(f"{what} is {value!r}; it must be a finite number")
        return number
    for plain_kind, description in ((bool, "true or false"), (int, "a whole number"), (str, "text")):
        if kind is plain_kind:
            if not isinstance(value, plain_kind) or (kind is int and isinstance(value, bool)):
                raise InputError(f"{what} is {value!r}; it must be {description}")
            return value
    return value


def to_float(value: str | int | float) -> float | None:
    """The number that `value` writes, or None."""
    try:
        return float(value)
    except ValueError:
        return None
