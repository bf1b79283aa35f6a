"""Which back end computes a call: what each one cannot do, and which of those that can is taken.

reference: the dense formula. vendor: torch's flash attention with the fold. triton: the fused kernels. blockwise:
PyTorch in blocks of rows. "auto" takes the fastest that can compute the call by the times of measured.json, and where
nothing like it was measured the first of `PREFERENCE`; never the reference, which builds a T×T matrix.
"""

import logging
from functools import cache

import torch
from torch import Tensor

from . import measured
from .flash import capability, refusal
from .parts import Parts, SinkSlots, Softmax

BACKENDS = ("auto", "reference", "vendor", "triton", "blockwise")
PREFERENCE = ("vendor", "triton", "blockwise")  # the last can compute everything
TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TRITON_LARGEST_HEAD = 256
TRITON_CAPABILITIES = (80, 90, 100)  # what the launch table was compiled for: docs/kernels.md


def choose(backend: str, q: Tensor, k: Tensor, parts: Parts, first_key: Tensor | None) -> str:
    """The back end of a call of `attend`. Raises ValueError for one asked for by name that cannot compute it."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    if backend == "auto":
        return _first_able(q, k, parts, first_key)
    reason = obstacle(backend, q, k, parts, first_key)
    if reason is not None:
        able = [name for name in BACKENDS if name != backend and obstacle(name, q, k, parts, first_key) is None]
        raise ValueError(f"the {backend} back end cannot compute {reason}; choose from {', '.join(able)}")
    return backend


def statistics_backend(backend: str, q: Tensor, parts: Parts, prefix: int) -> str:
    """Which of triton and blockwise a call of `statistics` takes; the rules of `choose`."""
    if backend not in ("auto", "triton", "blockwise"):
        raise ValueError(f"unknown backend {backend!r} of statistics; choose from auto, triton, blockwise")
    if backend == "blockwise" or (backend == "auto" and q.device.type != "cuda"):
        return "blockwise"
    reason = _beyond_triton(q)
    if reason is None and prefix and not isinstance(parts.score, Softmax):
        reason = f"prefix tokens under {_name(parts)} scores (allowed: softmax)"
    if reason is None:
        return "triton"
    if backend == "triton":
        raise ValueError(f"the triton back end cannot compute {reason}; choose from auto, blockwise")
    return "blockwise"


def obstacle(backend: str, q: Tensor, k: Tensor, parts: Parts, first_key: Tensor | None) -> str | None:
    """What of a call a back end cannot compute, with what it allows; None if it can."""
    if backend == "vendor":
        return _beyond_vendor(q, k, parts, first_key)
    return _beyond_triton(q) if backend == "triton" else None


def _first_able(q: Tensor, k: Tensor, parts: Parts, first_key: Tensor | None) -> str:
    device, order, because = device_name(q.device, q.dtype), PREFERENCE, ""
    if measured.knows(device):
        order = measured.order(device, kind(parts), q.shape[-1], k.shape[2], PREFERENCE)
    for backend in order:
        if backend == "triton" and q.device.type != "cuda":
            continue  # the interpreter is for those who ask for it by name
        reason = obstacle(backend, q, k, parts, first_key)
        if reason is None:
            break
        because = because or f", because the {backend} back end cannot compute {reason}"
    _say(f"attention on {q.device.type}: {backend}{because}")
    return backend


def kind(parts: Parts) -> str:
    """What a variant's speed depends on: its score family and parts, such as "softmax+sinkslots(1,values)"."""
    found = [_name(parts)]
    if isinstance(parts.score, Softmax) and parts.score.softcap is not None:
        found.append("softcap")
    if isinstance(parts.sinks, SinkSlots):
        found.append(f"sinkslots({parts.sinks.keys.shape[1]}{'' if parts.sinks.values is None else ',values'})")
    elif parts.sinks is not None:
        found.append("sinklogits")
    if parts.added is not None:
        found.append("addedvector" if parts.added.key is None else "addedvector(key)")
    if parts.gate is not None:
        found.append(type(parts.gate).__name__.lower())
    return "+".join(found)


@torch.compiler.assume_constant_result
def device_name(device: torch.device, dtype: torch.dtype) -> str:
    """What measured.json calls a device: the GPU's name, or the device's type, with the dtype."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name} {str(dtype).removeprefix('torch.')}"


def _beyond_vendor(q: Tensor, k: Tensor, parts: Parts, first_key: Tensor | None) -> str | None:
    if not isinstance(parts.score, Softmax):
        return f"{_name(parts)} scores (allowed: softmax)"
    if parts.score.softcap is not None:
        return f"a soft-cap of the scores, {parts.score.softcap:g} (allowed: none)"
    if first_key is not None:
        return "a first key for each row (allowed: none)"
    if q.shape[2] != k.shape[2]:
        return "fewer queries than keys (allowed: as many)"
    return refusal(q)


def _beyond_triton(q: Tensor) -> str | None:
    device = q.device.type
    interpreted = _interpreted()
    if interpreted is None:
        return "anything without the triton package"
    if device != ("cpu" if interpreted else "cuda"):
        return f"device {device} (allowed: {'cpu, under TRITON_INTERPRET=1' if interpreted else 'cuda'})"
    if q.dtype not in TRITON_DTYPES:
        return f"dtype {q.dtype} (allowed: {', '.join(map(str, TRITON_DTYPES))})"
    if q.shape[-1] > TRITON_LARGEST_HEAD:
        return f"head size {q.shape[-1]} (allowed: 1 to {TRITON_LARGEST_HEAD})"
    if not interpreted and capability(q.device.index or 0) not in TRITON_CAPABILITIES:
        allowed = ", ".join(f"{x / 10}" for x in TRITON_CAPABILITIES)
        return f"compute capability {capability(q.device.index or 0) / 10} (allowed: {allowed})"
    return None


def _name(parts: Parts) -> str:
    return type(parts.score).__name__.lower()


@torch.compiler.assume_constant_result
def _interpreted() -> bool | None:
    """Whether the fused kernels run in Triton's interpreter; None where there is no triton."""
    return _import_fused()


@cache
def _import_fused() -> bool | None:
    try:
        from .fused import INTERPRETED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "triton":
            raise
        return None
    return INTERPRETED


@torch.compiler.assume_constant_result
def _say(line: str) -> None:
    """Log a line once a process; while a compiler traces, it is said at that time and leaves nothing in the graph."""
    if line not in _said:
        _said.add(line)
        logging.getLogger("sinkless").info(line)


_said: set[str] = set()
