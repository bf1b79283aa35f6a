"""The report's file: self-contained, complete, and there whatever is missing."""

import re
from html.parser import HTMLParser

import pytest
from synthetic_runs import flat, write_run

from errors import InputError
from experiments.drawing.canvas import wrapped
from experiments.report import build, main
from experiments.report.comparison import load
from experiments.report.figures import over_seeds
from experiments.report.maps import head_grid, layer_grid
from experiments.runs import Run
from outliers.definitions import DEFINITIONS
from outliers.table import Rows, write


class Reader(HTMLParser):
    """Every attribute that fetches something, every tag's balance, and the text."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.text, self.alternatives = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.alternatives += [dict(attrs).get("alt") for _ in [0] if tag == "img"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    page = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    # Nothing is fetched: data and anchors within the page alone, also from the style sheet.
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in reader.fetched)
    assert not re.search(r"url\(|@import|<script", page)
    assert all(reader.alternatives)
    return reader, " ".join(" ".join(reader.text).split())


def test_a_whole_report(tmp_path, capsys):
    for seed in range(3):
        for attention in ("softmax", "context_scaling", "sink_key_value"):
            write_run(tmp_path, attention, seed)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"
    reader, text = read(tmp_path / "report.html")
    for heading in ("What this comparison shows", "Where no difference was seen", "What it cannot say"):
        assert heading in text
    for words in ("Parameters added", "tokens per second", "GiB", "Steps to softmax’s final validation loss", "c0ffee"):
        assert words in text
    for definition in DEFINITIONS.values():
        assert definition.title in text
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"training-loss.png", "validation-loss.png", "validation-loss-difference.png", "first-key.png"} <= figures
    assert {"sentence.png", "curve-first_key_mass_gated.png", "layers-top1_to_median.png"} <= figures
    assert "layers-attention.png" in figures
    assert len(figures) == len(reader.alternatives)


def test_a_cell_says_the_variants_own_null(tmp_path):
    for attention in ("softmax", "sink_logit", "sigmoid"):
        write_run(tmp_path, attention, 0)
    page = build(tmp_path).read_text(encoding="utf-8")
    rows = {
        title: re.findall(r"<td>(.*?)</td>", page.partition(f'<th scope="row">{title}')[2].partition("</tr>")[0])
        for title in ("Mass on the first key, raw", "Mass moved to a slot (not removed)", "Mean gate")
    }
    own = {title: [re.findall(r"null ([\d.]+)", cell) for cell in cells[1:]] for title, cells in rows.items()}
    # Columns: softmax, sink_logit, sigmoid. Judged: only where it is not the baseline's. No closed form: at the start.
    assert own["Mass on the first key, raw"] == [[], ["0.059"], ["0.015"]]
    assert own["Mass moved to a slot (not removed)"] == [["0"], ["0.059"], ["0"]]
    assert own["Mean gate"] == [["0.100"]] * 3


def test_what_all_runs_share_is_said_once(tmp_path):
    write_run(tmp_path, "softmax", 0, probes=False)
    write_run(tmp_path, "softmax", 1, probes=False, corpus="dead")
    page = build(tmp_path).read_text(encoding="utf-8")
    assert page.count("torch 2.13") == 1
    details = page.partition("Run details")[2]
    assert "<td>c0ffee</td>" in details
    assert "<td>dead</td>" in details


def test_a_metric_that_is_the_same_everywhere_is_told_not_drawn(tmp_path):
    none = lambda metric, step: 0.0 if metric in ("outlier_tokens", "dead_rows") else flat(metric, step)  # noqa: E731
    write_run(tmp_path, "softmax", 0, number=none)
    _, text = read(build(tmp_path))
    assert "Closed-form null: 0. It is 0 everywhere" in text
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert not drawn & {"layers-outlier_tokens.png", "curve-dead_rows.png"}
    assert {"layers-massive_ratio.png", "curve-gate_mean.png"} <= drawn


def test_unlike_variants_have_no_paired_curve(tmp_path):
    write_run(tmp_path, "softmax", 0, probes=False)
    write_run(tmp_path, "sink_logit", 0, probes=False, corpus="dead")
    _, text = read(build(tmp_path))
    assert "trained on different corpora" in text
    assert not (tmp_path / "figures" / "validation-loss-difference.png").exists()


def test_two_comparisons_have_a_section_each(tmp_path):
    for place in ("text", "task"):
        write_run(tmp_path / place, "softmax", 0, probes=False)
    reader, text = read(build(tmp_path))
    assert {"#s0", "#s1", "#definitions"} <= set(reader.fetched)
    assert (tmp_path / "figures" / "text-training-loss.png").is_file()
    assert "Comparisons: task · text" in text


def test_whatever_is_missing_it_renders(tmp_path):
    missing = {
        "no_probes": {"probes": False},
        "no_random_tokens": {"random": False},
        "no_sentence": {"sentence": False},
        "unfinished": {"steps": 100, "state": "running"},
        "only_begun": {"steps": 0, "state": "running"},
        "unknown_corpus": {"corpus": None},
        "not_measured": {"skipped": ("first_key_mass_gated", "first_key_mass", "explicit_sink_mass")},
        "constant": {"number": lambda metric, step: 0.0},
        "blown_up": {"number": lambda metric, step: float("nan") if step else flat(metric, step)},
    }
    write_run(tmp_path, "softmax", 0)
    for name, options in missing.items():
        write_run(tmp_path, f"mine.{name}", 0, label=name, **options)
    (tmp_path / "failed_at_once" / "seed=0").mkdir(parents=True)
    (tmp_path / "failed_at_once" / "seed=0" / "config.yaml").write_text("{}")
    _, text = read(build(tmp_path))
    assert "not assessable" in text
    assert "running, step 100 of 200" in text
    assert "unfinished: step 100" in text
    assert "failed_at_once" in text
    for name in missing:
        assert f"mine.{name}" in text.replace("\u200b", "")


def test_runs_without_any_probe(tmp_path):
    write_run(tmp_path, "softmax", 0, probes=False)
    write_run(tmp_path, "sink_logit", 0, probes=False)
    read(build(tmp_path))
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"training-loss.png", "validation-loss.png", "validation-loss-difference.png"}


def test_one_variant_with_one_seed(tmp_path):
    write_run(tmp_path, "softmax", 0)
    _, text = read(build(tmp_path))
    assert "There is one variant only" in text
    assert not (tmp_path / "figures" / "validation-loss-difference.png").exists()


def test_long_names_and_many_variants(tmp_path):
    long = {"name": "a_package_of_mine.attention_variants.AttentionWithAVeryLongName", "strength": 0.25}
    write_run(tmp_path, long, 0, label="long")
    for i in range(8):
        write_run(tmp_path, {"name": f"mine.Variant{i}"}, 0, label=f"v{i}", probes=False)
    (comparison,) = load(tmp_path)
    looks = {(variant.colour, variant.style) for variant in comparison.variants}
    assert len(looks) == 9
    _, text = read(build(tmp_path))
    assert "AttentionWithAVeryLongName" in text.replace("\u200b", "")


def test_a_long_name_is_broken_at_its_marks():
    name = "a_package_of_mine.attention_variants.AttentionWithAVeryLongName,beta=2,strength=0.25"
    assert wrapped(name).split("\n") == [
        "a_package_of_mine.",
        "attention_variants.",
        "AttentionWithAVeryLongName,",
        "beta=2, strength=0.25",
    ]
    assert wrapped("softmax") == "softmax"


def test_names_are_escaped(tmp_path):
    write_run(tmp_path / "<b>&", {"name": "<script>alert(1)</script>"}, 0, label="odd", probes=False)
    _, text = read(build(tmp_path))
    assert "<script>alert(1)</script>" in text.replace("\u200b", "")


def test_grids_hold_what_the_probe_wrote(tmp_path):
    run = Run(write_run(tmp_path, "softmax", 0))
    steps, grid = layer_grid(run, "inf_norm", "block_output")
    assert steps.tolist() == [0, 50, 100, 150, 200]
    assert grid.shape == (2, 5)
    assert grid[1].tolist() == pytest.approx([0.1, 0.125, 0.15, 0.175, 0.2])
    assert head_grid(run, "first_key_mass") == pytest.approx(0.2)
    assert layer_grid(run, "inf_norm", "nowhere") is None


def test_a_layers_heads_are_averaged_but_for_the_largest_logit(tmp_path):
    rows = Rows()
    for metric, values in (("first_key_mass", ((0.1, 0.3), (0.5, 0.7))), ("max_logit", ((1.0, 3.0), (9.0, 5.0)))):
        for layer, heads in enumerate(values):
            for head, entry in enumerate(heads):
                rows.add(metric, entry, layer=layer, head=head)
    write(tmp_path / "probes" / "step=000000.parquet", rows.table(0, "probe", {}))
    assert layer_grid(Run(tmp_path), "first_key_mass", "")[1].tolist() == [[pytest.approx(0.2)], [pytest.approx(0.6)]]
    assert layer_grid(Run(tmp_path), "max_logit", "")[1].tolist() == [[3.0], [9.0]]


def test_curves_of_runs_of_unequal_length(tmp_path):
    runs = [Run(write_run(tmp_path, "softmax", 0)), Run(write_run(tmp_path, "softmax", 1, steps=100, state="stopped"))]
    steps, values = over_seeds(runs, lambda run: run.series("validation/loss"))
    assert steps.tolist() == [0, 50, 100, 150, 200]
    assert values[0].tolist() == [3.0, 2.5, 2.0, 1.5, 1.0]
    assert values[1][:3].tolist() == [3.0, 2.5, 2.0]
    assert values.shape == (2, 5)
    assert str(values[1][3]) == "nan"


def test_the_same_runs_give_the_same_report(tmp_path):
    write_run(tmp_path, "softmax", 0, probes=False)
    first = build(tmp_path).read_bytes()
    assert build(tmp_path).read_bytes() == first


def test_no_runs(tmp_path):
    with pytest.raises(InputError, match="contains no run"):
        main([str(tmp_path)])
    with pytest.raises(InputError, match="not a directory"):
        main([str(tmp_path / "missing")])
    with pytest.raises(InputError, match="DIR"):
        main([])
