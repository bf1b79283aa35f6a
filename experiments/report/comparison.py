"""A comparison: the runs of one folder by variant and seed, the baseline, and what must be equal between them."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.report.measures import Measure, measured
from experiments.runs import Run, comparison_folder, find
from training.run_directory import FREE, SPLIT, flatten

# Okabe and Ito's palette without its yellow, which is too pale on paper; safe for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Differ between the runs of one comparison by design, or say nothing about what was trained.
FREE_KEYS = (
    "model.attention",
    "model.seed",
    "seed_everything",
    "data.seed",
    "out",
    "ckpt_path",
    "stop_after",
    "config",
)
# Settings that a compared number depends on; elsewhere (loggers, cadences) the runs may differ, and in how the global
# batch is split: its size is compared as the number of tokens.
LEARNED_KEYS = ("model.", "data.", "outliers.sequences", "trainer.max_steps", "trainer.precision",
                "trainer.gradient_clip")  # fmt: skip
# What may be changed to give two variants as many parameters, and how far apart they may then be.
MATCHING_KEY = "model.network.mlp_width"
EXTRA_PARAMETERS = 0.005


@dataclass
class Variant:
    """One attention variant: its runs by seed, and the colour, line and marker that it keeps over all figures."""

    label: str
    runs: dict[int, Run]
    colour: str
    style: str
    marker: str

    @property
    def finished(self) -> dict[int, Run]:
        """The runs that took all their steps, by seed."""
        return {seed: run for seed, run in self.runs.items() if run.finished}

    @property
    def parameters(self) -> int | None:
        """The model's number of parameters, where a run recorded it."""
        counts = [run.parameters for run in self.runs.values() if run.parameters is not None]
        return counts[0] if counts else None


@dataclass
class Comparison:
    """All variants of one folder; the first one is the baseline (softmax where it is there).

    name: the folder's, or more of its path where `load` finds several of that name.
    """

    folder: Path
    variants: list[Variant]
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.folder.name

    @property
    def baseline(self) -> Variant:
        """What the others are compared with."""
        return self.variants[0]

    @property
    def others(self) -> list[Variant]:
        """Every variant but the baseline."""
        return self.variants[1:]

    @property
    def runs(self) -> list[Run]:
        """All runs, variant by variant, seed by seed."""
        return [run for variant in self.variants for _, run in sorted(variant.runs.items())]

    @cached_property
    def measures(self) -> list[Measure]:
        """What its runs are measured by."""
        return measured(self.runs)

    @property
    def seeds(self) -> list[int]:
        """Every seed that some variant ran."""
        return sorted({seed for variant in self.variants for seed in variant.runs})

    def extra_parameters(self, variant: Variant) -> tuple[int, float] | None:
        """(parameters more than the baseline, the same as a share of the baseline's), or None where not recorded."""
        if variant.parameters is None or not self.baseline.parameters:
            return None
        extra = variant.parameters - self.baseline.parameters
        return extra, extra / self.baseline.parameters

    @cached_property
    def differing(self) -> dict[str, list[Any]]:
        """Configuration keys that should be equal and are not, with their values."""
        return differing_keys(run.config for run in self.runs if run.config)

    def unlike(self, variant: Variant) -> str:
        """Why the variant cannot be compared with the baseline: another corpus, number of tokens, or setting; or ""."""
        runs = [*self.baseline.finished.values(), *variant.finished.values()]
        if len({run.corpus for run in runs if run.corpus}) > 1:
            return "trained on different corpora"
        if len({tokens for run in runs if (tokens := run.last("tokens")) is not None}) > 1:
            return "trained on different numbers of tokens"
        keys = [key for key in differing_keys(run.config for run in runs if run.config) if key.startswith(LEARNED_KEYS)]
        extra = self.extra_parameters(variant)
        if keys == [MATCHING_KEY] and extra is not None and abs(extra[1]) <= EXTRA_PARAMETERS:
            return ""
        return f"other settings differ too: {', '.join(keys)}" if keys else ""

    def schedule(self) -> str:
        """The learning-rate schedule's name, empty where the configuration does not say."""
        return str(self.baseline_option("model.schedule.name") or "")

    def baseline_option(self, dotted: str) -> Any:
        """The first run's configuration value."""
        return next((run.option(dotted) for run in self.runs if run.config), None)


def load(folder: Path | str) -> list[Comparison]:
    """Every comparison under `folder`, in the order of their paths. Raises InputError where there is no run."""
    groups: dict[Path, list[Run]] = defaultdict(list)
    for path in find(folder):
        groups[comparison_folder(path)].append(Run(path))
    named = {path: _by_label(runs) for path, runs in groups.items()}
    labels = _ordered({label for by_label in named.values() for label in by_label})
    looks = {label: _look(i) for i, label in enumerate(labels)}
    comparisons = []
    for path, by_label in sorted(named.items()):
        variants = [Variant(label, by_label[label], *looks[label]) for label in labels if label in by_label]
        comparisons.append(Comparison(path, variants))
    _tell_apart(comparisons)
    return comparisons


def _tell_apart(comparisons: list[Comparison]) -> None:
    """Folders of one name get their paths below the folder that holds all comparisons for a name."""
    count = Counter(comparison.name for comparison in comparisons)
    ground = Path(os.path.commonpath([comparison.folder for comparison in comparisons]))
    for comparison in comparisons:
        if count[comparison.name] > 1 and comparison.folder != ground:
            comparison.name = comparison.folder.relative_to(ground).as_posix()


def _by_label(runs: list[Run]) -> dict[str, dict[int, Run]]:
    """Variant -> seed -> run. Where two runs share both, their folders' names tell the variants apart."""
    count = Counter((run.label, run.seed) for run in runs)
    twice = {label for (label, _), times in count.items() if times > 1}
    found: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        folder = run.path.parent if run.path.name.startswith("seed=") else run.path
        label = f"{run.label} ({folder.name})" if run.label in twice else run.label
        found[label][-1 if run.seed is None else run.seed] = run
    return found


def differing_keys(configs: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """Dotted keys whose values are not the same in all configurations, apart from those that differ by design."""
    flats = [flatten(config) for config in configs]
    found = {}
    for key in sorted({key for flat in flats for key in flat}):
        if key.startswith((*FREE, *SPLIT)) or any(key == free or key.startswith(free + ".") for free in FREE_KEYS):
            continue
        values: list[Any] = []
        for flat in flats:
            value = flat.get(key)
            if value not in values:
                values.append(value)
        if len(values) > 1:
            found[key] = values
    return found


def _look(index: int) -> tuple[str, str, str]:
    """Colour, line and marker of the index-th variant: colours first, then another line for the next round."""
    n = len(COLOURS)
    return COLOURS[index % n], STYLES[index // n % len(STYLES)], MARKERS[index % n]


def _ordered(labels: set[str]) -> list[str]:
    """softmax, then the built-in mechanisms in their documented order, then the rest by name."""
    from models.attention import names

    known = {name: i for i, name in enumerate(names())}
    return sorted(labels, key=lambda label: (known.get(label.split(" ")[0].split(",")[0], len(known)), label))
