"""From a YAML value to a mechanism: names, options, import paths, labels, and the documentation page."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from errors import InputError
from models import GPT, GPTConfig
from models.attention import (
    AttentionShape,
    Mechanism,
    build,
    card,
    examples,
    find,
    label,
    names,
    normalise,
)
from models.attention.catalogue import page

ROOT = Path(__file__).parents[2]
CONFIG = GPTConfig(vocab_size=50, context=16, layers=2, heads=4, width=32)
TOKENS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))

USER = '''
from typing import Annotated, Literal, Optional
from kernels import Parts
from models.attention import AtLeast, Mechanism

class Everything(Mechanism):
    """Every form of option."""
    def __init__(self, shape, *, count: int = 3, beta: float = 0.5, on: bool = False, mode: Literal["a", "b"] = "a",
                 note: str = "x", limit: Optional[int] = None, share: Annotated[float, AtLeast(0)] = 0.0,
                 cap: float | None = 1.0, either: int | str = 1, free=None):
        super().__init__(shape)
        self.given = (count, beta, on, mode, note, limit, share, cap, either, free)
    def parts(self, q_BHTD, k_BGTD, hidden_BTC):
        return Parts()

class Needs(Everything):
    def __init__(self, shape, *, beta: float):
        super().__init__(shape, beta=beta)

class Forward(Mechanism):
    """The mean of all values so far."""
    def forward(self, q_BHTD, k_BGTD, v_BGTD, hidden_BTC, first_key_BT=None):
        return v_BGTD.cumsum(2) / q_BHTD.new_ones(q_BHTD.shape[2]).cumsum(0)[:, None]

class Nothing(Mechanism):
    pass

class Plain:
    pass

NUMBER = 3
'''

BROKEN = """from kernels import Parts
from models.attention import Mechanism

class Base(Mechanism):
    def parts(self, q_BHTD, k_BGTD, hidden_BTC):
        return Parts()

class Unreadable(Base):
    def __init__(self, shape, *, span: "Flaot" = 2.0): ...

class Raises(Base):
    def __init__(self, shape):
        self.scale = 1 / 0

class Positional(Base):
    def __init__(self, shape, beta): ...

class Initial(Base):
    def __init__(self, shape):
        super().__init__(shape)
        self.initial = {"nothing": None}
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's, on the path and outside the repository."""
    (tmp_path / "user_mechanisms.py").write_text(USER)
    (tmp_path / "needs_a_package.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "user_mechanisms"
    sys.modules.pop("user_mechanisms", None)


@pytest.mark.parametrize(
    ("spec", "canonical", "text"),
    [
        ("softmax", {"name": "softmax"}, "softmax"),
        ({"name": "softmax"}, {"name": "softmax"}, "softmax"),
        ({"name": "sink_key_value", "slots": 1}, {"name": "sink_key_value"}, "sink_key_value"),
        ({"name": "sink_key_value", "slots": 4}, {"name": "sink_key_value", "slots": 4}, "sink_key_value,slots=4"),
        (
            {"decay_slots": True, "name": "sink_key", "slots": 2},
            {"name": "sink_key", "slots": 2, "decay_slots": True},
            "sink_key,slots=2,decay_slots=true",
        ),
        ({"name": "softmax", "softcap": None}, {"name": "softmax"}, "softmax"),
        ({"name": "softmax", "softcap": 30}, {"name": "softmax", "softcap": 30.0}, "softmax,softcap=30.0"),
        (
            {"name": "clipped_softmax", "zeta": 1, "alpha": 4},
            {"name": "clipped_softmax", "alpha": 4.0},
            "clipped_softmax,alpha=4.0",
        ),
        ({"name": "gated_head", "span": 2.0}, {"name": "gated_head", "span": 2}, "gated_head,span=2"),
        (
            {"name": "context_scaling", "init": "zero"},
            {"name": "context_scaling", "init": "zero"},
            "context_scaling,init=zero",
        ),
    ],
)
def test_canonical_form_and_label(spec: Any, canonical: dict[str, Any], text: str) -> None:
    assert normalise(spec) == canonical
    assert list(normalise(spec)) == list(canonical)
    assert repr(normalise(spec)) == repr(canonical)
    assert normalise(canonical) == canonical
    assert label(spec) == text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sofmax", "unknown attention 'sofmax' (did you mean softmax?); choose from softmax, fixed_bias"),
        ("zzz", "unknown attention 'zzz'; choose from"),
        ("", "unknown attention ''"),
        (3, "attention is 3; give a name"),
        (None, "attention is None"),
        ({"slots": 3}, "attention is {'slots': 3}; give a name"),
        ({"name": 3}, "attention is {'name': 3}"),
        ({"name": "sink_key", "slot": 3}, "sink_key has no option 'slot' (did you mean slots?)"),
        ({"name": "off_by_one", "slots": 3}, "off_by_one has no option 'slots'; its options: none"),
        ({"name": "softmax", "decay_slots": True}, "softmax has no option 'decay_slots'"),
        ({"name": "sink_key", "slots": 0}, "option slots is 0; it must be at least 1"),
        ({"name": "sink_key", "slots": "2"}, "option slots is '2'; it must be a whole number"),
        ({"name": "sink_key", "slots": 2.0}, "option slots is 2.0; it must be a whole number"),
        ({"name": "sink_key", "slots": True}, "option slots is True; it must be a whole number"),
        ({"name": "sink_key", "decay_slots": 1}, "option decay_slots is 1; it must be true or false"),
        ({"name": "gated_head", "span": 3}, "option span is 3; choose from 1, 2"),
        ({"name": "gated_head", "span": True}, "option span is True; choose from 1, 2"),
        (
            {"name": "context_scaling", "init": "zeros"},
            "init is 'zeros' (did you mean zero?); choose from normal, zero",
        ),
        ({"name": "softmax", "softcap": 0}, "option softcap is 0.0; it must be above 0"),
        ("clipped_softmax", "needs its option 'alpha', which has no default: {name: clipped_softmax, alpha: ...}"),
        ({"name": "clipped_softmax", "alpha": -1}, "option alpha is -1.0; it must be at least 0"),
        ({"name": "clipped_softmax", "alpha": None}, "option alpha is None; it must be a finite number"),
        ({"name": "clipped_softmax", "alpha": 4, "zeta": 0.9}, "option zeta is 0.9; it must be at least 1"),
        ({"name": "clipped_softmax", "alpha": 4, "per_row": 1}, "option per_row is 1; it must be true or false"),
        ({"name": "context_scaling", "init": None}, "init is None; choose from normal, zero"),
        ("no_such_package.module.Class", "there is no module 'no_such_package' on the Python path"),
        ("models.no_such_module.Class", "there is no module 'models.no_such_module' on the Python path"),
        ("models.gpt.Blok", "module 'models.gpt' has no class 'Blok' (did you mean Block?)"),
        ("models.gpt.Block", "'models.gpt.Block' is not a subclass of models.attention.Mechanism"),
        ("a..b", "is not an import path"),
        (".b", "'.b'"),
        ("../x.Class", "is not an import path"),
        ("user_mechanisms.Plain", "is not a subclass"),
        ("user_mechanisms.NUMBER", "is not a subclass"),
        ("user_mechanisms.Nothing", "defines neither `parts` nor `forward`"),
        ("user_mechanisms.Needs", "needs its option 'beta'"),
        ({"name": "user_mechanisms.Everything", "beta": "much"}, "option beta is 'much'; it must be a finite number"),
        ({"name": "user_mechanisms.Everything", "beta": float("nan")}, "option beta is nan"),
        ({"name": "user_mechanisms.Everything", "beta": True}, "option beta is True"),
        ({"name": "user_mechanisms.Everything", "note": 3}, "option note is 3; it must be text"),
        ({"name": "user_mechanisms.Everything", "share": -0.5}, "option share is -0.5; it must be at least 0"),
        ({"name": "user_mechanisms.Everything", "limit": 1.5}, "option limit is 1.5; it must be a whole number"),
    ],
)
def test_a_mistake_is_one_line(user: str, spec: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        normalise(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("needs_a_package.Class", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("broken_syntax.Class", "SyntaxError: invalid syntax (broken_syntax.py, line 2)"),
        ("raises_at_import.Class", "RuntimeError: one two (raises_at_import.py, line 3)"),
        ("broken_classes.Unreadable", "an annotation of its options cannot be read: name 'Flaot' is not defined"),
        ("broken_classes.Raises", "cannot be built: ZeroDivisionError: division by zero (broken_classes.py, line 13)"),
        ("broken_classes.Positional", "cannot be built: TypeError"),
        ("broken_classes.Initial", "cannot be built: ValueError: `initial` names 'nothing'"),
    ],
)
def test_a_users_class_that_fails_is_one_line_with_the_place(
    user: str, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "broken_syntax.py").write_text("\ndef f(:\n")
    (tmp_path / "raises_at_import.py").write_text("\n\nraise RuntimeError('one\\ntwo')\n")
    (tmp_path / "broken_classes.py").write_text(BROKEN)
    with pytest.raises(InputError) as error:
        build(name, AttentionShape(width=8, heads=2, kv_heads=2, head_dim=4, context=16))
    assert message in str(error.value)
    assert f"attention '{name}'" in str(error.value)
    assert "\n" not in str(error.value)


def test_options_of_every_form(user: str) -> None:
    name = f"{user}.Everything"
    given = {
        "count": 4, "beta": 2, "on": True, "mode": "b", "note": "a/b", "limit": 7, "share": "1e-3", "cap": None,
        "either": "y", "free": [1, 2],
    }  # fmt: skip
    canonical = normalise({"name": name, **given})
    assert canonical == {"name": name, **given, "beta": 2.0, "share": 0.001}
    assert isinstance(canonical["beta"], float)
    gpt = GPT(CONFIG, canonical)
    assert gpt.blocks[0].attention.mechanism.given == (4, 2.0, True, "b", "a/b", 7, 0.001, None, "y", [1, 2])
    assert gpt.spec == canonical
    assert normalise({"name": name, "count": 3, "beta": 0.5, "on": False, "limit": None}) == {"name": name}


def test_labels_are_safe_and_distinct(user: str) -> None:
    name = f"{user}.Everything"
    assert label(name) == name
    assert label({"name": name, "on": True, "cap": None}) == f"{name},on=true,cap=null"
    notes = ["a/b", "a b", "a-b", "../..", "ü", "z" * 300]
    labels = [label({"name": name, "note": note}) for note in notes]
    assert len(set(labels)) == len(notes)
    assert all(re.fullmatch(r"[A-Za-z0-9._+,=-]{1,120}", text) for text in labels)


def test_forward_alone_is_enough(user: str) -> None:
    gpt = GPT(CONFIG, f"{user}.Forward")
    assert not gpt.blocks[0].attention.mechanism.measurable()
    gpt(TOKENS).square().mean().backward()
    changed = TOKENS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 50
    assert torch.allclose(gpt(TOKENS)[:, :-1], gpt(changed)[:, :-1], atol=1e-6)
    assert all(find(name).measurable() for name in names())


def test_an_option_can_take_a_back_end_away() -> None:
    assert GPT(CONFIG, "softmax", backend="vendor")
    with pytest.raises(
        InputError, match=r"softmax,softcap=30.0 has no backend 'vendor'.*; choose from auto, reference"
    ):
        GPT(CONFIG, {"name": "softmax", "softcap": 30}, backend="vendor")


def test_every_built_in_has_a_working_example() -> None:
    assert list(examples()) == names()
    assert all(normalise(spec)["name"] == name for name, spec in examples().items())


# docs/variants.md


def test_the_page_is_current() -> None:
    assert (ROOT / "docs" / "variants.md").read_text(encoding="utf-8") == page(), (
        "run: python -m models.attention > docs/variants.md"
    )


@pytest.mark.parametrize("name", names())
def test_every_card_is_complete(name: str) -> None:
    about = card(find(name))
    assert all((about.summary, about.paper, about.formula, about.parameters))
    assert about.start != Mechanism.start
    assert about.formula.startswith("y_i = ")


def test_the_pages_example_runs_by_its_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) < 20
    (tmp_path / "my_attention.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = {"name": "my_attention.SharedGate", "span": 1.5}
    assert label(spec) == "my_attention.SharedGate,span=1.5"
    assert normalise({"name": "my_attention.SharedGate", "span": 2}) == {"name": "my_attention.SharedGate"}

    gpt, softmax = GPT(CONFIG, spec, seed=1), GPT(CONFIG, seed=1)
    torch.rand(5)
    assert torch.equal(gpt(TOKENS), GPT(CONFIG, spec, seed=1)(TOKENS)), "its values follow from the seed"
    assert not torch.equal(gpt(TOKENS), GPT(CONFIG, spec, seed=2)(TOKENS))
    assert all(torch.equal(gpt.state_dict()[key], value) for key, value in softmax.state_dict().items())

    mechanism = gpt.blocks[0].attention.mechanism
    assert mechanism.measurable()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 12, 8, generator=generator) for _ in range(3))
    x = torch.randn(2, 12, 32, generator=generator)
    gate = 1.5 * torch.sigmoid(mechanism.gate(x)).view(2, 1, 12, 1)
    expected = gate * torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(mechanism(q, k, v, x), expected, atol=1e-5)
    eager = gpt(TOKENS)
    for block in gpt.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    assert torch.allclose(gpt(TOKENS), eager, atol=1e-6)
    gpt(TOKENS).square().mean().backward()
    assert mechanism.gate.weight.grad.abs().max() > 0
    assert "blocks.0.attention.mechanism.gate.weight" in gpt.decay_groups()[1]
    sys.modules.pop("my_attention", None)
