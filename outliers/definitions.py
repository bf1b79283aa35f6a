"""Every outlier metric of this project, written once. docs/metrics.md and the report print this table.

A name such as "kurtosis" stands for several numbers in the literature (on one tensor: 3416, 35.6 and 57), so every
logged value carries the id of its definition.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kernels.parts import Elastic, Sigmoid, Softmax
from outliers import nulls
from outliers.nulls import Setting

SITES = {
    "block_output": "the residual stream after a block, h_l",
    "norm_attention": "output of the norm before attention (input of q, k, v)",
    "norm_mlp": "output of the norm before the MLP (input of up and gate)",
    "norm_final": "output of the last norm (input of the head); layer −1",
    "attention_output": "output of the attention's out projection",
    "mlp_output": "output of the MLP's down projection",
    "down_input": "input of the MLP's down projection: after GELU, or the product gate · up",
    "out_input": "input of the attention's out projection",
}
FULL_SITES = tuple(site for site in SITES if site != "out_input")
QUALCOMM_SITES = ("block_output", "mlp_output", "norm_attention", "norm_mlp", "attention_output", "norm_final")
NORM_SITES = ("norm_attention", "norm_mlp")
NOTATION = (
    "Notation: x the activations of one site and layer, T tokens by C channels for each of B sequences, read in "
    "float32; A_ij the weight that query i gives to key j, with explicit sinks in the normaliser and before a gate; "
    "g_i the gate; W (outputs, inputs) a weight matrix. “Kurtosis” alone names several numbers: every logged value "
    "carries its id."
)
WEIGHT_SITES = ("q", "k", "v", "o", "up", "gate", "down")

Reduction = Literal["mean", "max"]


@dataclass(frozen=True)
class Null:
    """What the metric reads where nothing is learned. closed_form: its value for a Setting, where there is one; it
    returns None for a setting that has none. measured: the metric that is this null under the model's own gates, in the
    place of the closed form where a probe has it."""

    text: str
    closed_form: Callable[[Setting], float | None] | None = None
    measured: str = ""


@dataclass(frozen=True)
class Headline:
    """One number a probe: the metric's rows at these sites, reduced over layers, sites and heads at once."""

    name: str
    sites: tuple[str, ...]
    reduction: Reduction
    statistic: str = "value"


@dataclass(frozen=True)
class Definition:
    """One metric.

    direction: where fewer outliers lie ("lower", "higher"), or "neutral" where neither is better.
    cases: what a share is counted over in each head, so that it moves in steps of 1 / cases; None where it is no count.
    """

    id: str
    title: str
    formula: str
    source: str
    unit: str
    scope: Literal["activation", "head", "layer", "weight", "model"]
    sites: tuple[str, ...]
    null: Null
    direction: Literal["lower", "higher", "neutral"]
    headlines: tuple[Headline, ...] = ()
    cases: Literal["sequences", "queries"] | None = None

    @property
    def headline(self) -> bool:
        """Whether one of its reductions is logged beside the loss."""
        return bool(self.headlines)


def top1(setting: Setting) -> float:
    """Largest |x| of one sequence of standard normals at the residual stream's width."""
    return nulls.gaussian_top1(setting.context * setting.width)


def channel_ratio(setting: Setting) -> float:
    """Largest over median channel maximum of standard normals, over all tokens of the probe batch."""
    tokens = setting.context * setting.sequences
    median = nulls.half_normal_quantile(-math.expm1(math.log(0.5) / tokens))
    return nulls.gaussian_top1(tokens * setting.width) / median


def sink_rate(setting: Setting) -> float:
    """Uniform attention: 1 where the first key's mean mass, the largest, exceeds the threshold, else 0."""
    return float(nulls.harmonic_share(min(setting.context, nulls.SINK_QUERIES)) > 0.3)


def exchangeable(setting: Setting, value: float) -> float | None:
    """`value` where the score gives equal logits equal weights above 0 and ties have probability 0, else None."""
    if isinstance(setting.score, Elastic):
        return value if bool((setting.score.offset > -1).all()) else None
    return value if isinstance(setting.score, Softmax | Sigmoid) else None


def outlier_keys(setting: Setting) -> float | None:
    """Number of keys that receive a tenth of all queries where no key is preferred."""
    received = nulls.even_received(setting)
    return None if received is None else float(sum(mass >= 0.1 * setting.context for mass in received))


def weight_ratio(setting: Setting) -> float:
    """Largest column (or row) ratio of a Gaussian matrix of the down projection's size."""
    return nulls.gaussian_column_max(setting.width, setting.mlp_width)


AT_START = "No closed form: compare with the value at initialisation (step 0)"

DEFINITIONS: dict[str, Definition] = {
    definition.id: definition
    for definition in (
        Definition(
            id="top1_to_median",
            title="Largest activation over the median",
            formula="max|x| / median|x| over a sequence's T·C entries (the lower median); mean over sequences",
            source="2402.17762, section 2",
            unit="ratio",
            scope="activation",
            sites=FULL_SITES,
            null=Null("Gaussian: E max of T·C |g| / 0.6745", lambda s: top1(s) / nulls.HALF_NORMAL_MEDIAN),
            direction="lower",
            headlines=(Headline("top1_to_median", ("block_output",), "max"),),
        ),
        Definition(
            id="top1_to_mean",
            title="Largest activation over the mean",
            formula="max|x| / mean|x| over a sequence's T·C entries; mean over sequences",
            source="2502.06415, its code (an outlier above τ = 1000)",
            unit="ratio",
            scope="activation",
            sites=FULL_SITES,
            null=Null("Gaussian: E max of T·C |g| / 0.7979", lambda s: top1(s) / nulls.HALF_NORMAL_MEAN),
            direction="lower",
        ),
        Definition(
            id="inf_norm",
            title="Infinity norm",
            formula="max|x| of a sequence; mean over sequences",
            source="2306.12929, section 5",
            unit="activation",
            scope="activation",
            sites=FULL_SITES,
            null=Null(AT_START),
            direction="lower",
            headlines=(Headline("inf_norm", QUALCOMM_SITES, "max"),),
        ),
        Definition(
            id="massive_ratio",
            title="Massive-activation criterion",
            formula="min(max|x| / 100, max|x| / (1000 · median|x|)), the largest over sequences; "
            "above 1: some sequence holds a massive activation",
            source="2402.17762, section 2",
            unit="ratio",
            scope="activation",
            sites=FULL_SITES,
            null=Null("Well below 0.1 at initialisation; small models rarely reach 1"),
            direction="lower",
        ),
        Definition(
            id="outlier_tokens",
            title="Tokens with an activation outlier",
            formula="share of tokens with max_c|x_tc| > 1000 · mean|x| of the sequence; mean over sequences",
            source="2502.06415, its code",
            unit="share of tokens",
            scope="activation",
            sites=FULL_SITES,
            null=Null("Gaussian: 0", lambda s: 0.0),
            direction="lower",
        ),
        Definition(
            id="kurtosis_sequence",
            title="Kurtosis of a sequence",
            formula="μ₄ / (s⁴ + 1e-6) of a sequence's T·C entries, centred on their mean, s the unbiased standard "
            "deviation; mean over sequences. Per sequence at every site (their code flattens two of OPT's to tokens). "
            "The 1e-6 makes a tensor of standard deviation 0.02 read 0.41 in place of 3",
            source="2306.12929, section 5 and its code",
            unit="1",
            scope="activation",
            sites=FULL_SITES,
            null=Null("Gaussian of standard deviation 1: 3", lambda s: 3.0),
            direction="lower",
            headlines=(Headline("kurtosis_sequence", QUALCOMM_SITES, "mean"),),
        ),
        Definition(
            id="kurtosis_sequence_no_eps",
            title="Kurtosis of a sequence, without the constant",
            formula="μ₄ / s⁴, otherwise as kurtosis_sequence",
            source="2306.12929, without its code's constant",
            unit="1",
            scope="activation",
            sites=FULL_SITES,
            null=Null("Gaussian: 3", lambda s: 3.0),
            direction="lower",
            headlines=(Headline("kurtosis_sequence_no_eps", QUALCOMM_SITES, "mean"),),
        ),
        Definition(
            id="kurtosis_token_context",
            title="Excess kurtosis of a token, in context",
            formula="relu(E_c[x⁴] / s⁴ − 3) over a token's C channels, numerator not centred, s the unbiased standard "
            "deviation; mean over tokens. Their script feeds every token as a sequence of its own (another number, "
            "kurtosis_token_isolated, not measured here) and counts the embeddings as a layer",
            source="2506.19697 and its code",
            unit="1",
            scope="activation",
            sites=FULL_SITES,
            null=Null(
                "Gaussian: about σφ(b/σ) + bΦ(b/σ), b and σ² the mean and variance of the sample kurtosis − 3 "
                "(simulated: 0.066 at C = 768, 0.140 at C = 128)",
                lambda s: nulls.gaussian_kurtosis_token(s.width),
            ),
            direction="lower",
            headlines=(Headline("kurtosis_token_context", ("block_output",), "mean"),),
        ),
        Definition(
            id="kurtosis_channel",
            title="Kurtosis over channels",
            formula="x centred over channels, divided by (its RMS over all tokens + 1e-8); "
            "unbiased variance over channels j of mean_i x_ij²; range 0 … C",
            source="2405.19279, section 2 and its code",
            unit="1",
            scope="activation",
            sites=FULL_SITES,
            null=Null(
                "Gaussian: 2 / (B·T); an untrained network lies higher, its tokens are not independent",
                lambda s: 2 / (s.context * s.sequences),
            ),
            direction="lower",
            headlines=(Headline("kurtosis_channel", ("block_output",), "mean"),),
        ),
        Definition(
            id="channel_ratio",
            title="Largest channel over the median channel",
            formula="p_c = max over all tokens of |x_c|; max_c p_c / median_c p_c (the lower median)",
            source="2505.21670 (channel-wise outliers); the ratio is this project's",
            unit="ratio",
            scope="activation",
            sites=tuple(SITES),
            null=Null("Gaussian: E max of B·T·C |g| / median max of B·T |g|", channel_ratio),
            direction="lower",
            headlines=(Headline("channel_ratio", NORM_SITES, "max"),),
        ),
        Definition(
            id="first_key_mass",
            title="Mass on the first key, raw",
            formula="mean over sequences and queries i of A_i0, explicit sinks in the normaliser, before the gate; "
            "for other scores than softmax the weight as it is, not normalised",
            source="2309.17453; 2410.10781",
            unit="share of mass",
            scope="head",
            sites=(),
            null=Null(
                "no key preferred: H_T / T, H_T the harmonic number; with n slots mean_i 1 / (n + i); "
                "sigmoid with bias −ln T: 1 / (1 + T)",
                nulls.even_first,
            ),
            direction="lower",
            headlines=(Headline("first_key_mass", (), "mean"),),
        ),
        Definition(
            id="first_key_mass_gated",
            title="Mass on the first key, gate-weighted",
            formula="Σ g_i A_i0 / Σ g_i over sequences and queries (0 where the gate is 0 everywhere); "
            "equal to first_key_mass without a gate",
            source="this project: a closed gate makes a raw sink harmless",
            unit="share of mass",
            scope="head",
            sites=(),
            null=Null(
                "first_key_mass_gated_even; the closed form is first_key_mass’s, of gates that are constant",
                nulls.even_first,
                measured="first_key_mass_gated_even",
            ),
            direction="lower",
            headlines=(
                Headline("first_key_mass_gated", (), "mean"),
                Headline("first_key_mass_gated_max", (), "max"),
            ),
        ),
        Definition(
            id="first_key_mass_gated_even",
            title="Mass on the first key that the gates alone make",
            formula="Σ g_i e_i / Σ g_i over sequences and queries, e_i the first key’s weight where query i prefers no "
            "key (first_key_mass’s null, query by query); equal to that null without a gate",
            source="this project: the first queries have few keys to choose from, so gates that are open there and "
            "closed later raise the gate-weighted mass without any sink",
            unit="share of mass",
            scope="head",
            sites=(),
            null=Null("constant gates: as first_key_mass", nulls.even_first),
            direction="neutral",
            headlines=(Headline("first_key_mass_gated_even", (), "mean"),),
        ),
        Definition(
            id="explicit_sink_mass",
            title="Mass moved to a slot (not removed)",
            formula="mean over sequences and queries of the weight on slots, a sink logit or prefix tokens",
            source="2402.17762, section 4; 2410.10781",
            unit="share of mass",
            scope="head",
            sites=(),
            null=Null(
                "n slots with the logits of real keys: mean_i n / (n + i); 0 without slots",
                lambda s: nulls.uniform_slot_mass(s.context, s.slots),
            ),
            direction="neutral",
            headlines=(Headline("explicit_sink_mass", (), "mean"),),
        ),
        Definition(
            id="sink_rate@0.3",
            title="Sink rate, first key",
            formula="α_k = Σ_{i≥k} A_ik / (T − k + 1), k from 1, over the first T = 64 queries (all, if shorter); "
            "share of sequences with α_1 > 0.3. Softmax's rows are not renormalised for explicit "
            "sinks; those of every other score are",
            source="2410.10781, section 3",
            unit="share of sequences",
            scope="head",
            sites=(),
            null=Null(
                "uniform attention: 0, as α_1 = H_64 / 64 = 0.074",
                sink_rate,
            ),
            direction="lower",
            headlines=(Headline("sink_rate@0.3", (), "mean"),),
            cases="sequences",
        ),
        Definition(
            id="sink_rate@0.3_any",
            title="Sink rate, any key",
            formula="as sink_rate@0.3, share of sequences with α_k > 0.3 for some key k that has at least 16 later "
            "queries within the 64 (else a head that looks at itself scores 1); absent below 17 tokens",
            source="2410.10781, section 3, with this project's limit on k",
            unit="share of sequences",
            scope="head",
            sites=(),
            null=Null(
                "uniform attention: 0, as α_1 = H_64 / 64 = 0.074 is the largest",
                sink_rate,
            ),
            direction="lower",
            headlines=(Headline("sink_rate@0.3_any", (), "mean"),),
            cases="sequences",
        ),
        Definition(
            id="argmax_first",
            title="Queries that look at the first key most",
            formula="share of (sequence, query) in which no real key has a larger weight than the first; "
            "a dead row does not count",
            source="first-token share of softmax₁ studies (2410.17174)",
            unit="share of queries",
            scope="head",
            sites=(),
            null=Null("exchangeable keys: H_T / T", lambda s: exchangeable(s, nulls.harmonic_share(s.context))),
            direction="lower",
            headlines=(Headline("argmax_first", (), "mean"),),
            cases="queries",
        ),
        Definition(
            id="outlier_keys",
            title="Keys with an attention outlier",
            formula="number of keys j with Σ_i mean_h A_ij >= 0.1 · T; mean over sequences. "
            "Meaningless up to T = 43, where uniform attention reaches it",
            source="2502.06415, its code",
            unit="keys a sequence",
            scope="layer",
            sites=(),
            null=Null(
                "no key preferred: 0 from T = 44",
                outlier_keys,
            ),
            direction="lower",
        ),
        Definition(
            id="max_logit",
            title="Largest attention logit",
            formula="max over sequences, queries and visible real keys of q·k · scale, before a soft-cap and any sink",
            source="2302.05442 (logit growth)",
            unit="logit",
            scope="head",
            sites=(),
            null=Null(AT_START),
            direction="neutral",
            headlines=(Headline("max_logit", (), "max"),),
        ),
        Definition(
            id="entropy",
            title="Entropy of attention",
            formula="mean over sequences and queries of −Σ_j p_ij ln p_ij, p the weights on real keys over their sum; "
            "0 for a dead row",
            source="2303.06296",
            unit="nats",
            scope="head",
            sites=(),
            null=Null("uniform attention: ln(T!) / T", lambda s: exchangeable(s, nulls.uniform_entropy(s.context))),
            direction="neutral",
            headlines=(Headline("entropy", (), "mean"),),
        ),
        Definition(
            id="effective_support",
            title="Keys in use",
            formula="mean over sequences and queries of (Σ_j A_ij)² / Σ_j A_ij² over real keys: the number of keys, "
            "were all of one weight; 0 for a dead row",
            source="participation ratio (inverse Simpson index); of attention: this project",
            unit="keys",
            scope="head",
            sites=(),
            null=Null("uniform attention: (T + 1) / 2", lambda s: exchangeable(s, (s.context + 1) / 2)),
            direction="neutral",
            headlines=(Headline("effective_support", (), "mean"),),
        ),
        Definition(
            id="zero_weights",
            title="Weights that are exactly 0",
            formula="mean over sequences and queries of the share of visible real keys with A_ij = 0; "
            "never for softmax and sigmoid, whose smallest weights are rounded to 0 but are not counted",
            source="sparsity in 2504.20966 and 2601.00919",
            unit="share of keys",
            scope="head",
            sites=(),
            null=Null("uniform attention: 0; softpick about a half", lambda s: exchangeable(s, 0.0)),
            direction="neutral",
            headlines=(Headline("zero_weights", (), "mean"),),
        ),
        Definition(
            id="dead_rows",
            title="Dead rows",
            formula="share of (sequence, query) that see a real key and give every one a weight of exactly 0: "
            "no output and no gradient",
            source="this project: what a threshold can do to 2306.12929, section 4.1",
            unit="share of queries",
            scope="head",
            sites=(),
            null=Null("uniform attention: 0", lambda s: exchangeable(s, 0.0)),
            direction="neutral",
            headlines=(Headline("dead_rows", (), "mean"),),
            cases="queries",
        ),
        Definition(
            id="gate_mean",
            title="Mean gate",
            formula="mean over sequences and queries of g_i, span included; over channels too for an element gate",
            source="2505.06708; 2502.06415, table 2 (e)",
            unit="factor",
            scope="head",
            sites=(),
            null=Null("1 without a gate; at initialisation σ(0) times its span"),
            direction="neutral",
            headlines=(Headline("gate_mean", (), "mean"),),
        ),
        Definition(
            id="value_drain",
            title="Value norm, first key over the others",
            formula="mean over sequences of ‖v_0‖ / mean over sequences and j > 0 of ‖v_j‖; near 0: a drained sink. "
            "With grouped heads a group's value counts for each of its heads",
            source="2410.13835",
            unit="ratio",
            scope="head",
            sites=(),
            null=Null("identically distributed values: 1", lambda s: 1.0),
            direction="higher",
            headlines=(Headline("value_drain", (), "mean"),),
        ),
        Definition(
            id="weight_column_max_to_mean",
            title="Largest weight of a column over its mean",
            formula="max|W_·j| / (mean|W_·j| + 1e-8) of each column (input feature) j; maximum and median over columns",
            source="2502.06415, its code",
            unit="ratio",
            scope="weight",
            sites=WEIGHT_SITES,
            null=Null(
                "Gaussian: E max of all |g| / 0.7979 for the maximum (6 to 7 at the sizes of LLaMA)",
                weight_ratio,
            ),
            direction="lower",
            headlines=(Headline("weight_column_down", ("down",), "max", "max"),),
        ),
        Definition(
            id="weight_row_max_to_mean",
            title="Largest weight of a row over its mean",
            formula="the same of each row (output feature). Their figure over modules shows the larger of both",
            source="2502.06415, its code",
            unit="ratio",
            scope="weight",
            sites=WEIGHT_SITES,
            null=Null(
                "Gaussian: E max of all |g| / 0.7979 for the maximum",
                weight_ratio,
            ),
            direction="lower",
        ),
        Definition(
            id="quantization_gap",
            title="Log perplexity lost in 8 bits",
            formula="log perplexity with the matrices of the blocks and their inputs in 8 bits, minus in full "
            "precision: `w8a8 absmax` of the recipe compress-1 (docs/compression.md), every fifth sequence for "
            "calibration; statistic `standard_error`: over sequences, paired. Measured with "
            "`outliers.quantization_gap: true`",
            source="2306.12929, section 5; the recipe is this project's",
            unit="nats per token",
            scope="model",
            sites=(),
            null=Null("no outliers: little more than 0; " + AT_START),
            direction="lower",
        ),
    )
}

HEADLINES: tuple[str, ...] = tuple(h.name for d in DEFINITIONS.values() for h in d.headlines)
"""The fixed set of numbers that a probe adds to the loss's log, in the table's order."""


def find_headline(name: str) -> tuple[Definition, Headline]:
    """The definition that a headline belongs to, and its reduction. KeyError for an unknown name."""
    for definition in DEFINITIONS.values():
        for headline in definition.headlines:
            if headline.name == name:
                return definition, headline
    raise KeyError(name)
