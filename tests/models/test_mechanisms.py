"""Every mechanism through the same battery. The formulas here are written from the mathematics, densely and in
float64, and share no code with the mechanisms or the kernels."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from models import GPT, GPTConfig
from models.attention import AttentionShape, Mechanism, build, examples, label, names

B, H, G, T, D = 2, 4, 2, 9, 8
SHAPE = AttentionShape(width=H * D, heads=H, kv_heads=G, head_dim=D, context=16)


@dataclass
class Dense:
    """What the formulas are written in: raw scores S (−inf where hidden), values per query head, the input x."""

    S: Tensor
    v: Tensor
    q: Tensor
    x: Tensor
    p: dict[str, Tensor]
    tau: float = D**-0.5

    @property
    def o(self) -> Tensor:
        return torch.softmax(self.S, -1) @ self.v

    def with_slots(self, keys: Tensor, values: Tensor) -> Tensor:
        """Softmax over real keys and slots, by concatenation."""
        sigma = self.tau * torch.einsum("bhtd,hnd->bhtn", self.q, keys)
        P = torch.softmax(torch.cat((sigma, self.S), -1), -1)
        n = keys.shape[1]
        return P[..., n:] @ self.v + torch.einsum("bhtn,hnd->bhtd", P[..., :n], values)

    def with_logit(self, s: Tensor) -> Tensor:
        E = self.S.exp()
        return E @ self.v / (s.exp()[:, None, None] + E.sum(-1, keepdim=True))


def sigma(z: Tensor) -> Tensor:
    return torch.special.expit(z)


def context_bias(d: Dense) -> Tensor:
    E = torch.exp(d.tau * torch.einsum("bhtd,hd->bht", d.q, d.p["key"]))
    w = E / (E + d.S.exp().sum(-1))
    return d.o + w[..., None] * d.p["vector"][:, None]


def scaling(d: Dense) -> Tensor:
    z = torch.einsum("btc,hc->bht", d.x, d.p["scale.weight"]) + d.p["scale.bias"][:, None]
    return 2 * sigma(z)[..., None] * d.o


def head_gate(span: float) -> Callable[[Dense], Tensor]:
    return lambda d: span * sigma(torch.einsum("btc,hc->bht", d.x, d.p["gate.weight"]))[..., None] * d.o


def element_gate(span: float) -> Callable[[Dense], Tensor]:
    return lambda d: span * sigma(torch.einsum("btc,hdc->bhtd", d.x, d.p["gate.weight"].view(H, D, H * D))) * d.o


def slice_gate(span: float) -> Callable[[Dense], Tensor]:
    def formula(d: Dense) -> Tensor:
        slices = d.x.view(B, T, H, D)
        z = torch.einsum("bthd,hd->bht", slices, d.p["weight"]) + d.p["bias"][:, None]
        return span * sigma(z)[..., None] * d.o

    return formula


def capped(cap: float) -> Callable[[Dense], Tensor]:
    return lambda d: torch.softmax(torch.where(d.S.isfinite(), cap * torch.tanh(d.S / cap), d.S), -1) @ d.v


def softpick(d: Dense) -> Tensor:
    E = torch.where(d.S.isfinite(), d.S.exp() - 1, 0)
    return torch.relu(E) / E.abs().sum(-1, keepdim=True) @ d.v


def clipped(alpha: float, zeta: float = 1.0, per_row: bool = False) -> Callable[[Dense], Tensor]:
    def formula(d: Dense) -> Tensor:
        length = d.S.isfinite().sum(-1, keepdim=True) if per_row else torch.tensor(SHAPE.context)
        gamma = -alpha / length.double()
        return ((zeta - gamma) * torch.softmax(d.S, -1) + gamma).clamp(0, 1) @ d.v

    return formula


def elastic(d: Dense) -> Tensor:
    seen = d.S.isfinite()
    shift = d.p["offset"][:, None, None] / seen.sum(-1, keepdim=True).double()
    return torch.where(seen, torch.relu(torch.softmax(d.S, -1) + shift), 0) @ d.v


def one(visible: Tensor) -> Tensor:
    return torch.ones_like(visible)


def constant(value: float) -> Callable[[Tensor], Tensor]:
    return lambda visible: torch.full_like(visible, value)


def slots(n: int) -> Callable[[Tensor], Tensor]:
    return lambda visible: visible / (visible + n)


@dataclass
class Case:
    """start: from the number of visible keys, what share of o the first output is, in the mean over heads and
    channels of a gate; exact: whether it is that to rounding. shapes: parameters by name."""

    spec: str | dict[str, Any]
    formula: Callable[[Dense], Tensor]
    start: Callable[[Tensor], Tensor] | None
    exact: bool = False
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


ZERO = torch.zeros(H, dtype=torch.float64)
GATED = {"gate.weight": (H, H * D)}
SCALED = {"scale.weight": (H, H * D), "scale.bias": (H,)}
WIDE = {"gate.weight": (H * D, H * D)}
SLICE = {"weight": (H, D), "bias": (H,)}
CASES = [
    Case("softmax", lambda d: d.o, one, exact=True),
    Case("fixed_bias", lambda d: d.o + d.p["vector"][:, None], one, exact=True, shapes={"vector": (H, D)}),
    Case("context_bias", context_bias, one, shapes={"key": (H, D), "vector": (H, D)}),
    Case("sink_key_value", lambda d: d.with_slots(d.p["keys"], d.p["values"]), slots(1),
         shapes={"keys": (H, 1, D), "values": (H, 1, D)}),
    Case({"name": "sink_key_value", "slots": 4}, lambda d: d.with_slots(d.p["keys"], d.p["values"]), slots(4),
         shapes={"keys": (H, 4, D), "values": (H, 4, D)}),
    Case("sink_key", lambda d: d.with_slots(d.p["keys"], 0 * d.p["keys"]), slots(1), shapes={"keys": (H, 1, D)}),
    Case({"name": "sink_key", "slots": 3}, lambda d: d.with_slots(d.p["keys"], 0 * d.p["keys"]), slots(3),
         shapes={"keys": (H, 3, D)}),
    Case("sink_logit", lambda d: d.with_logit(d.p["logits"]), slots(1), shapes={"logits": (H,)}),
    Case("off_by_one", lambda d: d.with_logit(ZERO), slots(1)),
    Case("sink_token", lambda d: d.o, one, exact=True),
    Case("context_scaling", scaling, one, shapes=SCALED),
    Case({"name": "context_scaling", "init": "zero"}, scaling, one, exact=True, shapes=SCALED),
    Case("gated_head", head_gate(1), constant(0.5), shapes=GATED),
    Case({"name": "gated_head", "span": 2}, head_gate(2), one, shapes=GATED),
    Case("gated_element", element_gate(1), constant(0.5), shapes=WIDE),
    Case({"name": "gated_element", "span": 2}, element_gate(2), one, shapes=WIDE),
    Case("gated_slice", slice_gate(1), constant(0.25), shapes=SLICE),
    Case({"name": "gated_slice", "span": 2}, slice_gate(2), constant(0.5), shapes=SLICE),
    Case("sigmoid", lambda d: sigma(d.S - math.log(SHAPE.context)) @ d.v, None),
    Case({"name": "softmax", "softcap": 2}, capped(2), one),
    Case("softpick", softpick, None),
    Case({"name": "clipped_softmax", "alpha": 1.5}, clipped(1.5), None),
    Case({"name": "clipped_softmax", "alpha": 0.6, "zeta": 1.1, "per_row": True}, clipped(0.6, 1.1, True), None),
    Case("elastic_softmax", elastic, None, shapes={"offset": (H,)}),
]  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: label(case.spec))
every_name = pytest.mark.parametrize("spec", examples().values(), ids=examples())


def inputs(dtype: torch.dtype = torch.float64, size: float = 1.0) -> list[Tensor]:
    """q, k, v, hidden, drawn once and cast, so that two dtypes see the same numbers."""
    generator = torch.Generator().manual_seed(7)
    shapes = [(B, H, T, D), (B, G, T, D), (B, G, T, D), (B, T, H * D)]
    return [
        (size * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
        for shape in shapes
    ]


def randomised(case: Case, dtype: torch.dtype = torch.float64, backend: str = "reference") -> Mechanism:
    """The mechanism with parameters large enough to matter: at their initial values most are near no effect."""
    mechanism = build(case.spec, SHAPE, backend).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in mechanism.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    return mechanism


def dense(case: Case, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
    k, v = (z.repeat_interleave(H // G, dim=1) for z in (k, v))
    S = torch.einsum("bhid,bhjd->bhij", q, k) * D**-0.5
    S = S + torch.full((T, T), float("-inf"), dtype=S.dtype).triu(1)
    return case.formula(Dense(S, v, q, x, dict(mechanism.named_parameters())))


def gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(y.dtype)
    found = torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert a.shape == b.shape
    assert (a.double() - b.double()).norm() <= tolerance * b.double().norm() + 1e-300


def test_the_table_holds_every_built_in() -> None:
    assert {label(case.spec).split(",")[0] for case in CASES} == set(names())


@every_case
def test_formula_and_gradients_in_float64(case: Case) -> None:
    mechanism, leaves = randomised(case), inputs()
    y, expected = mechanism(*leaves), dense(case, mechanism, *leaves)
    close(y, expected, 1e-12)
    leaves += list(mechanism.parameters())
    for ours, theirs in zip(gradients(y, leaves), gradients(expected, leaves), strict=True):
        close(ours, theirs, 1e-10)


@every_case
def test_every_input_and_parameter_matters(case: Case) -> None:
    mechanism, leaves = randomised(case), inputs()
    for gradient in gradients(mechanism(*leaves), leaves[:3] + list(mechanism.parameters())):
        assert gradient.abs().max() > 1e-3


@every_case
def test_vendor_equals_reference(case: Case) -> None:
    """And what the vendor cannot compute, block-wise."""
    results = []
    fast = "vendor" if "vendor" in build(case.spec, SHAPE).backends else "blockwise"
    for backend in ("reference", fast):
        mechanism, leaves = randomised(case, torch.float32, backend), inputs(torch.float32)
        y = mechanism(*leaves)
        results.append([y, *gradients(y, leaves + list(mechanism.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs, 1e-5)


@every_case
def test_parameters_have_the_stated_shapes(case: Case) -> None:
    mechanism = build(case.spec, SHAPE)
    assert {name: tuple(p.shape) for name, p in mechanism.named_parameters()} == case.shapes


INITIAL = {  # mean and standard deviation of every parameter; nothing is drawn where the deviation is 0
    "fixed_bias": {"vector": (0, 0)},
    "context_bias": {"key": (0, 0.02), "vector": (0, 0.02)},
    "sink_key_value": {"keys": (0, 0.02), "values": (0, 0.02)},
    "sink_key": {"keys": (0, 0.02)},
    "sink_logit": {"logits": (0, 0)},
    "context_scaling": {"scale.weight": (0, 0.02), "scale.bias": (0, 0)},
    "gated_head": {"gate.weight": (0, 0.02)},
    "gated_element": {"gate.weight": (0, 0.02)},
    "gated_slice": {"weight": (0, 0.02), "bias": (math.log(1 / 3), 0)},
    "elastic_softmax": {"offset": (-1, 0)},
}


@every_name
def test_initial_values(spec: dict[str, Any]) -> None:
    shape = AttentionShape(width=2048, heads=32, kv_heads=32, head_dim=64, context=16)
    values = {key: value.detach() for key, value in build(spec, shape).named_parameters()}
    expected = INITIAL.get(spec["name"], {})
    assert set(values) == set(expected)
    for parameter, (mean, std) in expected.items():
        assert float(values[parameter].mean()) == pytest.approx(mean, abs=0.2 * std + 1e-6), parameter
        assert float(values[parameter].std()) == pytest.approx(std, rel=0.1, abs=1e-6), parameter


@every_case
def test_start_relative_to_softmax(case: Case) -> None:
    """At initial values and small inputs, where a sink's share is 1/(visible keys + slots)."""
    if case.start is None:
        assert not build(case.spec, SHAPE).start.startswith(("softmax", "near softmax"))
        return
    mechanism = build(case.spec, SHAPE, "reference").double()
    q, k, v, x = inputs(size=0.3)
    softmax = build("softmax", SHAPE, "reference")(q, k, v, x)
    share = case.start(torch.arange(1.0, T + 1, dtype=torch.float64))[:, None]
    y = mechanism(q, k, v, x)
    if case.exact:
        assert torch.equal(y, softmax)
        assert "exactly" in mechanism.start or mechanism.prefix_tokens
    else:
        # Slots start with values of size 0.02 and gates spread about their mean; v is of size 0.3.
        assert (y - share * softmax).abs().max() < 0.05
        assert not torch.equal(y, softmax)


@pytest.mark.parametrize(
    ("spec", "mean"),
    [
        ("context_scaling", 1.0),
        ({"name": "context_scaling", "init": "zero"}, 1.0),
        ("gated_head", 0.5),
        ({"name": "gated_head", "span": 2}, 1.0),
        ("gated_element", 0.5),
        ("gated_slice", 0.25),
    ],
)
def test_a_gate_starts_at_its_mean(spec: str | dict[str, Any], mean: float) -> None:
    shape = AttentionShape(width=768, heads=12, kv_heads=12, head_dim=64, context=16)
    mechanism = build(spec, shape)
    x = torch.randn(8, 64, 768, generator=torch.Generator().manual_seed(1))  # what a norm with gain 1 gives
    gate = mechanism.parts(torch.empty(0), torch.empty(0), x).gate
    values = (gate.span * torch.sigmoid(gate.logits)).detach()
    assert abs(float(values.mean()) - mean) < 0.01
    if spec == "context_scaling":
        low, high = values.quantile(torch.tensor([0.05, 0.95])).tolist()
        assert abs(low - 0.57) < 0.03
        assert abs(high - 1.43) < 0.03


CONFIG = GPTConfig(vocab_size=50, context=16, layers=2, heads=4, kv_heads=2, width=32)
TOKENS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))


@every_name
def test_variants_share_every_common_parameter_and_seeds_differ(spec: dict[str, Any]) -> None:
    softmax, variant = GPT(CONFIG, seed=1).state_dict(), GPT(CONFIG, spec, seed=1).state_dict()
    assert set(softmax) <= set(variant)
    assert all(torch.equal(variant[key], value) for key, value in softmax.items())
    other = GPT(CONFIG, spec, seed=2).state_dict()
    constants = {key for key, value in variant.items() if value.numel() == 1 or value.flatten().diff().abs().max() == 0}
    assert all(torch.equal(other[key], value) == (key in constants) for key, value in variant.items())


@every_name
def test_state_dict_round_trip(spec: dict[str, Any]) -> None:
    first, second = GPT(CONFIG, spec, seed=1), GPT(CONFIG, spec, seed=2)
    assert not torch.equal(first(TOKENS), second(TOKENS))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(TOKENS), second(TOKENS))


@every_name
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_no_token_sees_the_future(spec: dict[str, Any], positions: str) -> None:
    config = GPTConfig(vocab_size=50, context=16, layers=2, heads=4, width=32, positions=positions, init_std=0.3)
    gpt = GPT(config, spec)
    changed = TOKENS.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 50
    before, after = gpt(TOKENS), gpt(changed)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-5)
    assert not torch.allclose(before[:, 7], after[:, 7], atol=1e-2)
    assert not torch.allclose(before[:, 8:], after[:, 8:], atol=1e-3)


@every_name
def test_compiles_without_a_graph_break(spec: dict[str, Any]) -> None:
    config = GPTConfig(
        vocab_size=50, context=16, layers=1, heads=4, kv_heads=2, width=32, positions="rotary", qk_norm=True,
        norm="rmsnorm", mlp="swiglu", dropout=0.0,
    )  # fmt: skip
    eager, compiled = GPT(config, spec), GPT(config, spec)
    torch._dynamo.reset()
    for block in compiled.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    expected, found = eager(TOKENS), compiled(TOKENS)
    close(found, expected, 1e-5)
    for gpt, logits in ((eager, expected), (compiled, found)):
        logits.square().mean().backward()
        assert all(p.grad is not None for p in gpt.parameters())
    for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        close(ours.grad, theirs.grad, 1e-4)


@every_name
def test_bf16_autocast_stays_near_fp32(spec: dict[str, Any]) -> None:
    gpt = GPT(CONFIG, spec)
    expected = gpt(TOKENS)
    with torch.autocast("cpu", torch.bfloat16):
        logits = gpt(TOKENS)
    assert logits.dtype == torch.bfloat16
    close(logits, expected, 0.03)
    logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in gpt.parameters())


@every_name
def test_decay_groups(spec: dict[str, Any]) -> None:
    decayed, undecayed = GPT(CONFIG, spec).decay_groups()
    own = [key for key in (*decayed, *undecayed) if ".mechanism." in key or key == "prefix"]
    assert not set(own) & set(decayed)
    assert set(decayed) - set(own) == set(GPT(CONFIG).decay_groups()[0])
    assert all(p.ndim >= 2 for p in decayed.values())
    if not any(p.ndim >= 2 for key, p in undecayed.items() if key in own):
        return
    decayed, undecayed = GPT(CONFIG, {**spec, "decay_slots": True}).decay_groups()
    assert set(own) & set(decayed)
    assert all(p.ndim == 1 for p in undecayed.values())


def test_packed_documents_reach_the_mechanism() -> None:
    """Two documents in a row are the two documents alone: no first key, no attention across."""
    config = GPTConfig(vocab_size=50, context=16, layers=2, heads=4, width=32, positions="none")
    first_key = torch.tensor([[0] * 5 + [5] * 7] * 2, dtype=torch.int32)
    for spec in ("softmax", "sink_key_value", "context_scaling", "sigmoid", "softpick", "elastic_softmax"):
        gpt = GPT(config, spec)
        packed = gpt(TOKENS, first_key)
        close(packed[:, :5], gpt(TOKENS[:, :5]), 1e-5)
        close(packed[:, 5:], gpt(TOKENS[:, 5:]), 1e-5)
