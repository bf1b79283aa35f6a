"""docs/metrics.md, made from the table of definitions."""

import textwrap

from outliers.definitions import DEFINITIONS, NOTATION, SITES, Definition
from outliers.nulls import Setting

EXAMPLE = Setting(context=256, width=128, sequences=16, mlp_width=512)

OPENING = f"""# Metrics

Made by `python -m outliers > docs/metrics.md` from the one table in `outliers/definitions.py`; do not edit.

{textwrap.fill(NOTATION, 120)}

A number without its null says little. Three are recorded: the value at initialisation (the probe at step 0), on random
tokens (rows with `inputs` = `random`), and the closed form where there is one, here at T = 256, C = 128, 16 sequences.
The closed forms are those of one layer: a maximum over layers lies slightly higher. Where softmax itself does not
exceed its null, no variant can be said to improve on it. Gaussian nulls do not hold at `down_input`: after GELU the
entries are not Gaussian.

With learned prefix tokens (`sink_token`), activation metrics and value norms read the real tokens only; the mass on
the prefix is explicit. A mechanism that defines `forward` only has no rows that need attention weights (its headlines
are NaN); a NaN or inf in the activations reaches the metric.
"""


def page() -> str:
    """The whole of docs/metrics.md."""
    parts = [OPENING, "## Sites\n", "| site | what |", "|---|---|"]
    parts += [f"| `{site}` | {what} |" for site, what in SITES.items()]
    parts.append("| `q` `k` `v` `o` `up` `gate` `down` | the weight matrices of a block |")
    for scopes, title, everywhere in (
        (("activation",), "Activations, for each layer and site", "every site but `out_input`"),
        (("head", "layer"), "Attention, for each layer and head", ""),
        (("weight",), "Weights, for each layer and matrix", ""),
        (("model",), "The whole model, where it is asked for", ""),
    ):
        definitions = [definition for definition in DEFINITIONS.values() if definition.scope in scopes]
        parts += ["", f"## {title}", ""]
        if everywhere:
            parts += [f"At {everywhere}; `channel_ratio` there too.", ""]
        parts += ["| metric | definition | source | null | closed form | headline |", "|---|---|---|---|---|---|"]
        parts += [row(definition) for definition in definitions]
    parts += [
        "",
        "## Headlines",
        "",
        HEADLINES_TEXT,
        "",
        "| name | metric | reduced | fewer outliers |",
        "|---|---|---|---|",
    ]
    for definition in DEFINITIONS.values():
        for headline in definition.headlines:
            over = (
                f"layers and {', '.join(f'`{site}`' for site in headline.sites)}" if headline.sites else "layers, heads"
            )
            reduced = f"{headline.reduction} over {over}"
            parts.append(f"| `{headline.name}` | `{definition.id}` | {reduced} | {definition.direction} |")
    return "\n".join(parts) + "\n"


HEADLINES_TEXT = "Logged beside the loss as `outliers/<name>`, from the probe's held-out text."


def row(definition: Definition) -> str:
    """One metric as a line of a Markdown table."""
    closed = definition.null.closed_form
    cells = (
        f"`{definition.id}` {definition.title} ({definition.unit})",
        definition.formula,
        definition.source,
        definition.null.text,
        f"{closed(EXAMPLE):.3g}" if closed else "",
        "yes" if definition.headline else "",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
