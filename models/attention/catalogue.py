"""docs/variants.md, made from the mechanisms' docstrings.

A mechanism's docstring is a first line that says what it does, then fields `Paper:`, `Formula:`, `Parameters:`, then
free text. `python -m models.attention` prints the page.
"""

import inspect
import re
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from models.attention.base import Mechanism
from models.attention.registry import BUILTIN, options, plain

FIELDS = ("Paper", "Formula", "Parameters")


@dataclass(frozen=True)
class Card:
    """What a mechanism's docstring and class attributes say; an absent field is an empty string."""

    summary: str
    paper: str
    formula: str
    parameters: str
    start: str
    notes: str


def card(mechanism: type[Mechanism]) -> Card:
    """The card of a built-in mechanism or of a user's."""
    first, *paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(mechanism.__doc__ or ""))
    fields = dict.fromkeys(FIELDS, "")
    notes = []
    for paragraph in paragraphs:
        current = None
        for line in paragraph.splitlines():
            name, colon, text = line.partition(": ")
            if colon and name in FIELDS:
                current = name
                fields[name] = text.strip()
            elif current:
                fields[current] += " " + line.strip()
            else:
                notes.append(line.strip())
    return Card(
        " ".join(first.split()), fields["Paper"], fields["Formula"], fields["Parameters"], mechanism.start,
        " ".join(notes),
    )  # fmt: skip


def describe(name: str, mechanism: type[Mechanism]) -> str:
    """One mechanism's section of the page."""
    about = card(mechanism)
    rows = [
        ("Formula", f"`{about.formula}`"),
        ("Parameters: initial values", about.parameters),
        ("Start", about.start),
        ("Options", "; ".join(option_text(*item) for item in options(mechanism).items()) or "none"),
        ("Paper", linked(about.paper)),
    ]
    lines = [f"## `{name}`", "", about.summary, ""]
    lines += ["| | |", "|---|---|"] + [f"| {head} | {cell(text)} |" for head, text in rows]
    return "\n".join([*lines, *(["", about.notes] if about.notes else [])])


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


def option_text(name: str, kind_and_default: tuple[object, object]) -> str:
    """An option with its choices and its default."""
    kind, default = kind_and_default
    if default is inspect.Parameter.empty:
        return f"`{name}` (must be given)"
    if get_origin(kind) is Literal:
        return f"`{name}`: {' or '.join(f'`{plain(choice)}`' for choice in get_args(kind))} (`{plain(default)}`)"
    return f"`{name}` (`{plain(default)}`)"


def linked(paper: str) -> str:
    """arXiv numbers as links."""
    return re.sub(r"(?<![\d/])(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", paper)


def page() -> str:
    """The whole of docs/variants.md."""
    index = "\n".join(f"| [`{name}`](#{name}) | {card(cls).summary} |" for name, cls in BUILTIN.items())
    sections = "\n\n".join(describe(name, cls) for name, cls in BUILTIN.items())
    return f"{HEAD}\n| name | what it does |\n|---|---|\n{index}\n\n{YOUR_OWN}\n{sections}\n"


HEAD = """# Attention variants

<!-- Made by `python -m models.attention > docs/variants.md` from the mechanisms' docstrings; edit those. -->

Choose one in the configuration, by name, with its options, or by the import path of a class of your own:

```yaml
model:
  attention: context_scaling
  # attention: {name: sink_key_value, slots: 4}
  # attention: {name: my_attention.SharedGate, span: 1.5}
```

Within a seed all variants share every common initial value bit for bit. Letters: i a query, j a visible key, h a head,
H heads, D head size, C width, τ = 1/√D, S_ij = τ q_i·k_j, L_i = ln Σ_j exp(S_ij), P_ij = exp(S_ij − L_i),
o_i = Σ_j P_ij v_j, σ the logistic function. Queries and keys are taken after QK-norm and rotary positions.
A mechanism's own parameters have no weight decay; the papers' authors' code decays them: set `decay_slots: true` to
reproduce it. One-dimensional parameters are never decayed.
"""

YOUR_OWN = """## Your own

A class in a file of yours, anywhere on the Python path (the working directory is on it); nothing in this repository
changes. It says what it adds to softmax attention, and is then fused, measured by the probe, compared and reported as
the built-in ones are. Save this as `my_attention.py` and set `attention: my_attention.SharedGate`:

```python
from torch import nn
from kernels import Parts, RowGate
from models.attention import Mechanism

class SharedGate(Mechanism):
    \"\"\"All heads of a token share one gate: y_i = span · σ(w·x_i + b) · o_i.\"\"\"

    start = "softmax in the mean at span 2"

    def __init__(self, shape, *, span: float = 2.0):
        super().__init__(shape)
        self.gate = nn.Linear(shape.width, 1)
        self.span = span

    def parts(self, q_BHTD, k_BGTD, hidden_BTC):
        logits_B1T = self.gate(hidden_BTC).transpose(1, 2)
        return Parts(gate=RowGate(logits_B1T.expand(-1, self.shape.heads, -1), self.span))
```

Options are the keyword-only parameters, checked against their annotations. `Parts` combines a score (softmax, sigmoid,
…), sinks (a logit, or learned slots), an added vector and a gate (one a row, or one a channel);
`kernels/parts.py` says what each means. What `Parts` cannot say, write as
`forward(q_BHTD, k_BGTD, v_BGTD, hidden_BTC, first_key_BT) -> y_BHTD` in place of `parts`: it trains, and the
measurements that need the attention weights are then absent.
"""
