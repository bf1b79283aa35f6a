"""What is refused, which back end is picked, and what is said about it; and the CUDA adapter without a GPU."""

import logging

import pytest
import torch
from variants import COMBINATIONS, FAMILIES, VARIANTS, Case, Inputs, make

import kernels
from kernels import backends, flash


def refused(match: str, *args: object, **options: object) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        kernels.attend(*args, **options)
    assert "\n" not in str(caught.value)


def test_bad_tensors() -> None:
    q, k, v = make(Case(), length=10).qkv
    refused("q must have 4 dimensions", q[0], k, v)
    refused("share one dtype: q torch.float64, k torch.float32", q, k.float(), v)
    for dtype in (torch.int64, torch.complex64, torch.float8_e4m3fn):
        tensors = (x.detach().to(dtype) for x in (q, k, v))
        refused(rf"q must be one of torch.float64, .* torch.float16, not {dtype}", *tensors)
    refused("on one device: q on cpu, v on meta", q, k, v.to("meta"))
    refused("as q is, not", q, k[..., :4], v[..., :4])
    refused("as q is, not", q, k[:1], v[:1])
    refused("v must have k's shape", q, k, v[..., :4])
    refused("no dimension may be empty", q[:, :, :0], k[:, :, :0], v[:, :, :0])
    refused("multiple of key/value heads, not 3 and 2", q[:, :3], k, v)
    refused("not 4 keys and 10 queries", q, k[:, :, :4], v[:, :, :4])
    refused("first_key_BT must have shape", q, k, v, first_key_BT=torch.zeros(10, dtype=torch.int32))
    refused("must hold integers, not torch.float32", q, k, v, first_key_BT=torch.zeros(2, 10))
    refused("must hold integers, not torch.bool", q, k, v, first_key_BT=torch.zeros(2, 10, dtype=torch.bool))
    for scale in (0.0, -0.5, float("nan"), float("inf")):
        refused(f"scale must be positive and finite, not {scale}", q, k, v, scale=scale)


def test_bad_parts() -> None:
    q, k, v = make(Case(), length=10).qkv
    zeros = torch.zeros
    refused("sinks.logits must have shape", q, k, v, kernels.Parts(sinks=kernels.SinkLogits(zeros(3))))
    refused("sinks.keys must have shape", q, k, v, kernels.Parts(sinks=kernels.SinkSlots(zeros(4, 0, 8))))
    refused("sinks.keys must have shape", q, k, v, kernels.Parts(sinks=kernels.SinkSlots(zeros(4, 8))))
    slots = kernels.SinkSlots(zeros(4, 2, 8), zeros(4, 1, 8))
    refused("sinks.values must have shape", q, k, v, kernels.Parts(sinks=slots))
    refused("RowGate must have shape", q, k, v, kernels.Parts(gate=kernels.RowGate(zeros(2, 10, 4))))
    refused("ElementGate must have shape", q, k, v, kernels.Parts(gate=kernels.ElementGate(zeros(2, 4, 10))))
    for span in (0.0, float("inf"), float("nan")):
        gate = kernels.RowGate(zeros(2, 4, 10), span)
        refused(f"span must be positive and finite, not {span}", q, k, v, kernels.Parts(gate=gate))
    refused("added.vector must have shape", q, k, v, kernels.Parts(added=kernels.AddedVector(zeros(8))))
    refused("added.key must have shape", q, k, v, kernels.Parts(added=kernels.AddedVector(zeros(4, 8), zeros(8))))
    refused("must be floating point", q, k, v, kernels.Parts(sinks=kernels.SinkLogits(zeros(4, dtype=torch.long))))
    refused("is on meta, but q is on cpu", q, k, v, kernels.Parts(sinks=kernels.SinkLogits(zeros(4, device="meta"))))
    with pytest.raises(ValueError, match="no log-normaliser L"):
        kernels.attend_with_lse(q, k, v, kernels.Parts(score=kernels.Sigmoid(-1.0)))


def test_what_is_no_part_is_refused_by_name() -> None:
    """A tensor in the place of a sink would be passed over, and softmax computed."""
    q, k, v = make(Case(), length=10).qkv
    one = torch.zeros(4)
    refused("parts must be one of Parts, not SinkLogits", q, k, v, kernels.SinkLogits(one))
    refused("sinks must be one of SinkLogits, SinkSlots, None, not Tensor", q, k, v, kernels.Parts(sinks=one))
    refused("gate must be one of RowGate, ElementGate, None, not Tensor", q, k, v, kernels.Parts(gate=one))
    refused("added must be one of AddedVector, None, not float", q, k, v, kernels.Parts(added=1.0))
    refused("score must be one of Softmax, .*Elastic, not str", q, k, v, kernels.Parts(score="softmax"))
    refused("not the class Softmax", q, k, v, kernels.Parts(score=kernels.Softmax))


def test_what_a_score_takes() -> None:
    q, k, v = make(Case(), length=10).qkv
    offset = torch.zeros(4)
    sinks, with_key = kernels.SinkLogits(torch.zeros(4)), kernels.AddedVector(torch.zeros(4, 8), torch.zeros(4, 8))
    for score in (kernels.Sigmoid(-1.0), kernels.Softpick(), kernels.Clipped(-0.1), kernels.Elastic(offset)):
        name = type(score).__name__.lower()
        refused(f"{name} scores take no sinks: only softmax", q, k, v, kernels.Parts(score, sinks=sinks))
        refused(f"{name} scores take no added vector with a key", q, k, v, kernels.Parts(score, added=with_key))
    for score, message in (
        (kernels.Softmax(softcap=0.0), "score.softcap must be positive and finite, not 0.0"),
        (kernels.Softmax(softcap=float("nan")), "score.softcap must be positive and finite, not nan"),
        (kernels.Sigmoid(float("inf")), "score.bias must be finite, not inf"),
        (kernels.Clipped(0.1), "score.gamma must be finite and at most 0, not 0.1"),
        (kernels.Clipped(-float("inf")), "score.gamma must be finite and at most 0, not -inf"),
        (kernels.Clipped(-0.1, zeta=0.9), "score.zeta must be finite and at least 1, not 0.9"),
        (kernels.Elastic(torch.zeros(3)), r"score.offset must have shape \(4,\), not \(3,\)"),
        (kernels.Elastic(offset.long()), "score.offset must be floating point"),
        (kernels.Elastic(offset.to("meta")), "score.offset is on meta, but q is on cpu"),
    ):
        refused(message, q, k, v, kernels.Parts(score))


def test_back_ends_by_name() -> None:
    q, k, v = make(Case(), length=10).qkv
    sigmoid = kernels.Parts(score=kernels.Sigmoid(-1.0))
    refused("unknown backend 'flash'; choose from auto, reference, vendor, triton, blockwise", q, k, v, backend="flash")
    refused(r"cannot compute sigmoid.*choose from auto, reference.*blockwise", q, k, v, sigmoid, backend="vendor")
    for case in FAMILIES:
        score = make(case, length=10).parts.score
        name = "a soft-cap of the scores, 1.5" if case.score == "softcap" else f"{type(score).__name__.lower()} scores"
        refused(rf"cannot compute {name} \(allowed", q, k, v, kernels.Parts(score), backend="vendor")
    first = torch.zeros(2, 10, dtype=torch.int32)
    refused("cannot compute a first key for each row", q, k, v, first_key_BT=first, backend="vendor")
    refused("cannot compute fewer queries than keys", q[:, :, -2:], k, v, backend="vendor")


def test_an_unsupported_dtype_goes_to_the_blockwise_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As float32 does on CUDA, whose flash op takes half precision only."""
    inputs = make(Case(sinks="key_value"), dtype=torch.float32)
    monkeypatch.setattr(flash.FlashCPU, "dtypes", (torch.bfloat16,))
    refused(r"cannot compute dtype torch.float32 on cpu \(allowed: torch.bfloat16\)", *inputs.qkv, backend="vendor")
    torch.testing.assert_close(
        kernels.attend(*inputs.qkv, inputs.parts), kernels.attend(*inputs.qkv, inputs.parts, backend="blockwise")
    )
    monkeypatch.setattr(flash.FlashCPU, "largest_head", 4)
    refused("cannot compute head size 8", *(x.bfloat16() for x in inputs.qkv), backend="vendor")


def test_the_choice_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_said", set())
    caplog.set_level(logging.INFO, logger="sinkless")
    q, k, v = make(Case(), length=10).qkv
    for _ in range(3):
        kernels.attend(q, k, v)
        kernels.attend(q, k, v, kernels.Parts(score=kernels.Sigmoid(-1.0)))
    assert [record.getMessage() for record in caplog.records] == [
        "attention on cpu: vendor",
        "attention on cpu: blockwise, because the vendor back end cannot compute sigmoid scores (allowed: softmax)",
    ]


@pytest.mark.parametrize("head_dim", [64, 20])
@pytest.mark.parametrize("case", [*VARIANTS, *COMBINATIONS], ids=str)
def test_the_cuda_adapter_binds_to_its_operators(case: Case, head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward through the operators' own shape functions: arguments, shapes, layouts and dtypes agree."""
    monkeypatch.setitem(flash.DEVICES, "meta", flash.FlashCUDA)
    inputs = make(case, dtype=torch.bfloat16, length=48, head_dim=head_dim)

    def moved(part: object) -> object:
        if part is None:
            return None
        values = vars(part).items()
        return type(part)(**{name: _to_meta(x) if isinstance(x, torch.Tensor) else x for name, x in values})

    parts = inputs.parts
    parts = kernels.Parts(sinks=moved(parts.sinks), added=moved(parts.added), gate=moved(parts.gate))
    inputs = Inputs(*map(_to_meta, inputs.qkv), parts)
    q, k, v = inputs.qkv
    assert kernels.flash.refusal(q) is None
    y = kernels.attend(q, k, v, parts, backend="vendor")
    assert (y.shape, y.dtype) == (q.shape, q.dtype)
    assert y.transpose(1, 2).is_contiguous() or head_dim % 8
    y, L = kernels.attend_with_lse(q, k, v, parts, backend="vendor")
    assert (L.shape, L.dtype) == (q.shape[:3], torch.float32)
    for loss in (y.sum(), y.sum() + L.sum()):
        wrt = inputs.wrt()
        gradients = torch.autograd.grad(loss, wrt, retain_graph=True)
        assert [(g.shape, g.dtype) for g in gradients] == [(x.shape, x.dtype) for x in wrt]


def test_what_the_cuda_adapter_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flash.DEVICES, "meta", flash.FlashCUDA)
    refused(r"cannot compute dtype torch.float32 on meta", *_on_meta(torch.float32, 64), backend="vendor")
    refused(r"cannot compute head size 257 on meta", *_on_meta(torch.float16, 257), backend="vendor")


def test_shapes_alone_on_the_meta_device() -> None:
    for score in (kernels.Softmax(), kernels.Sigmoid(-1.0), kernels.Softpick(), kernels.Clipped(-0.1, per_row=True)):
        y = kernels.attend(*_on_meta(torch.float32, 20), kernels.Parts(score))
        assert y.shape == (1, 2, 16, 20)


def _to_meta(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to("meta").requires_grad_(x.requires_grad)


def _on_meta(dtype: torch.dtype, head_dim: int) -> list[torch.Tensor]:
    return [torch.empty(1, 2, 16, head_dim, dtype=dtype, device="meta") for _ in range(3)]
