import math
import os

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from tiny_run import differences, metrics, tensors, tiny_run

import outliers
from errors import InputError
from models.checkpoints import load_weights
from outliers.access.ours import decoder_of
from outliers.compression.study import w8a8_gap
from training import rng
from training.callbacks.checkpoints import Checkpoints
from training.callbacks.evaluation import Evaluation, evaluate
from training.callbacks.outlier_probe import OutlierProbe
from training.callbacks.signals import Stop
from training.callbacks.steps import StepCallback


def steps_with(folder, column):
    return [int(row["step"]) for row in metrics(folder) if row[column]]


def test_eval_every_counts_optimizer_steps_under_accumulation(tmp_path, text):
    tiny_run(tmp_path / "run", text, steps=7, accumulation=3, evaluation=3, log_every=2, outliers=4).fit()
    assert steps_with(tmp_path / "run", "validation/loss") == [0, 3, 6, 7]
    assert steps_with(tmp_path / "run", "train/loss") == [2, 4, 6, 7]
    assert steps_with(tmp_path / "run", "outliers/first_key_mass") == [0, 4, 7]
    rows = metrics(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == [0, 2, 3, 4, 6, 7]
    tokens = {int(row["step"]): row["tokens"] for row in rows}
    assert tokens[6] == str(6 * 3 * 4 * 16)


def test_train_loss_is_the_mean_since_the_last_report(tmp_path, text):
    for every in (1, 3):
        tiny_run(tmp_path / f"every{every}", text, steps=6, log_every=every, accumulation=2).fit()
    single = [float(row["train/loss"]) for row in metrics(tmp_path / "every1") if row["train/loss"]]
    mean = [float(row["train/loss"]) for row in metrics(tmp_path / "every3") if row["train/loss"]]
    assert mean == pytest.approx([np.mean(single[:3]), np.mean(single[3:])], rel=1e-6)
    assert single[0] == pytest.approx(np.log(257), abs=0.05)  # of bytes and one more token, at the start


def test_train_loss_does_not_depend_on_the_accumulation(tmp_path, text):
    for accumulation in (1, 4):
        tiny_run(
            tmp_path / str(accumulation), text, batch_size=4 // accumulation, accumulation=accumulation, log_every=1
        ).fit()
    losses = [[float(row["train/loss"]) for row in metrics(tmp_path / name)[1:]] for name in ("1", "4")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] == pytest.approx(np.log(257), rel=0.02)  # in nats, of 257 tokens at the start


def test_checkpoint_after_evaluation_and_probe_and_two_are_kept(tmp_path, text):
    order = []

    class Watch(StepCallback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            rows = metrics(trainer.default_root_dir)
            probes = os.listdir(f"{trainer.default_root_dir}/probes")
            order.append(
                (rows[-1]["step"], bool(rows[-1]["validation/loss"]), f"step={order_step(rows)}" in str(probes))
            )

    def order_step(rows):
        return f"{int(rows[-1]['step']):06d}"

    tiny_run(tmp_path / "run", text, steps=6, evaluation=2, outliers=2, checkpoints=2, extra=(Watch(),)).fit()
    assert order == [("2", True, True), ("4", True, True), ("6", True, True)]
    folder = tmp_path / "run/checkpoints"
    assert sorted(os.listdir(folder)) == ["last.ckpt", "previous.ckpt"]
    saved = [torch.load(folder / name, weights_only=True)["global_step"] for name in sorted(os.listdir(folder))]
    assert saved == [6, 4]


def test_checkpoints_refuse_to_stand_before_what_they_must_follow(tmp_path, text):
    run = tiny_run(tmp_path / "run", text)
    run.trainer.callbacks.reverse()
    with pytest.raises(RuntimeError, match="last callback"):
        run.fit()


def test_weights_alone_are_saved_and_load_into_a_network(tmp_path, text):
    run = tiny_run(tmp_path / "run", text, steps=4, weights=2).fit()
    folder = tmp_path / "run/checkpoints"
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        "weights-step=000002.safetensors",
        "weights-step=000004.safetensors",
    ]
    state, description = load_weights(folder / "weights-step=000004.safetensors")
    run.module.gpt.load_state_dict(state)
    assert description["step"] == 4
    assert description["attention"] == {"name": "softmax"}
    assert description["network"]["vocab_size"] == 257


def test_the_probe_and_the_evaluation_leave_no_trace_in_the_training(tmp_path, text):
    options = {"steps": 5, "network": {"dropout": 0.2}, "checkpoints": 0}
    plain = tiny_run(tmp_path / "plain", text, evaluation=0, **options).fit()
    probed = tiny_run(tmp_path / "probed", text, evaluation=1, outliers=1, **options).fit()
    assert differences(tensors(plain), tensors(probed)) == []
    assert probed.module.training
    assert all(parameter.grad is not None for parameter in probed.module.parameters())


def test_probe_files_hold_both_inputs_at_the_ends_and_the_autocast_residual(tmp_path, text):
    run = tiny_run(tmp_path / "run", text, steps=4, outliers=2, precision="bf16-mixed").fit()
    tables = {step: parquet.read_table(tmp_path / f"run/probes/step={step:06d}.parquet") for step in (0, 2, 4)}
    for step, table in tables.items():
        assert table.schema.equals(outliers.SCHEMA)
        assert set(table["inputs"].to_pylist()) == ({"probe"} if step == 2 else {"probe", "random"})
        assert set(table["step"].to_pylist()) == {step}
        assert set(table["tokens"].to_pylist()) == {step * 4 * 16}
        rate = run.module.rate(max(step - 1, 0))
        assert set(table["learning_rate"].to_pylist()) == {rate}
    with run.trainer.precision_plugin.train_step_context():
        dtype = run.module.gpt.blocks[0](run.module.gpt.embedding.weight[None, :16]).dtype
    assert set(tables[2]["residual_dtype"].to_pylist()) == {str(dtype).removeprefix("torch.")}
    tiny_run(tmp_path / "plain", text, steps=4, outliers=2).fit()
    mixed, full = (metrics(tmp_path / name)[0] for name in ("run", "plain"))
    assert mixed["outliers/kurtosis_sequence"] != full["outliers/kurtosis_sequence"]  # the probe saw bf16 products
    headlines = outliers.headlines(tables[2].filter(np.array(tables[2]["inputs"]) == "probe"))
    row = next(row for row in metrics(tmp_path / "run") if row["step"] == "2")
    assert float(row["outliers/first_key_mass"]) == headlines["first_key_mass"]
    sentence = np.load(tmp_path / "run/probes/sentence.npz")
    assert sentence["block_output"].shape == (2, 16, 16)
    assert len(sentence["texts"]) == 16


def test_the_probe_reads_the_trained_weights_without_dropout(tmp_path, text):
    """One context serves the callback and `Probe` alike: evaluation mode, no gradient, eager execution."""
    run = tiny_run(tmp_path / "run", text, steps=2, outliers=2, network={"dropout": 0.5}).fit()
    table = parquet.read_table(tmp_path / "run/probes/step=000002.parquet")
    data = run.data
    tokens = {"probe": data.probe_tokens(2), "random": data.random_tokens(2)}
    probe = outliers.Probe(run.module.gpt.train(), tokens["probe"], random_tokens_BT=tokens["random"])
    for inputs in tokens:
        written = table.filter(np.array(table["inputs"]) == inputs)
        assert written["value"].to_pylist() == probe.measure(2, inputs)["value"].to_pylist()


OWN = """
import torch
from models.attention import Mechanism

class Uniform(Mechanism):
    \"\"\"Every token looks at all before it alike.\"\"\"

    start = "uniform"

    def forward(self, q_BHTD, k_BGTD, v_BGTD, hidden_BTC, first_key_BT=None):
        T = v_BGTD.shape[2]
        return v_BGTD.cumsum(2) / torch.arange(1, T + 1, device=v_BGTD.device)[:, None]
"""


def test_what_an_attention_does_not_let_us_measure_is_an_empty_cell(tmp_path, text, monkeypatch):
    (tmp_path / "own_mechanism.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    tiny_run(tmp_path / "run", text, steps=1, outliers=1, attention="own_mechanism.Uniform").fit()
    row = metrics(tmp_path / "run")[-1]
    assert row["outliers/first_key_mass"] == ""
    assert float(row["outliers/inf_norm"]) > 0


def test_evaluation_is_repeatable_and_restores_the_generators(tmp_path, text):
    run = tiny_run(tmp_path / "run", text, steps=1, network={"dropout": 0.3}).fit()
    before = rng.state()["torch"]
    assert evaluate(run.trainer, run.module) == evaluate(run.trainer, run.module)
    assert torch.equal(before, rng.state()["torch"])


def test_stop_after_ends_there_with_a_checkpoint_and_exit_code_0(tmp_path, text):
    run = tiny_run(tmp_path / "run", text, steps=9, checkpoints=0, stop_after=5).fit()
    assert run.trainer.global_step == 5
    assert run.stop.exit_code == 0
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


def test_the_run_keeps_what_it_was_trained_on(tmp_path, text):
    run = tiny_run(tmp_path / "run", text, steps=1).fit()
    assert run.data.corpus.hash in (tmp_path / "run/corpus.json").read_text()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Evaluation(-1), "evaluation.every is -1"),
        (lambda: OutlierProbe(-2), "outliers.every is -2"),
        (lambda: OutlierProbe(sequences=0), "outliers.sequences is 0"),
        (lambda: Checkpoints(-1), "checkpoints.every is -1"),
        (lambda: Checkpoints(weights_every=-1), "checkpoints.weights_every is -1"),
        (lambda: Stop(0), "stop_after is 0"),
    ],
)
def test_bad_cadences_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_the_quantization_gap_is_logged_with_the_probe_and_changes_no_number(tmp_path, text):
    """As measured by hand on the final weights; the run is otherwise the one without it."""
    run = tiny_run(tmp_path / "gap", text, steps=2, outliers=2, quantization_gap=True).fit()
    plain = tiny_run(tmp_path / "plain", text, steps=2, outliers=2).fit()
    assert differences(tensors(run), tensors(plain)) == []
    rows = {row["step"]: row for row in metrics(tmp_path / "gap")}
    gap, error = w8a8_gap(decoder_of(run.module.gpt), run.data.probe_tokens(2))
    assert float(rows["2"]["outliers/quantization_gap"]) == gap != 0.0
    assert math.isnan(error)  # one sequence is evaluated, the other one calibrates
    assert rows["2"]["outliers/quantization_gap_error"] == ""
    assert [row["outliers/quantization_gap"] for row in metrics(tmp_path / "plain")] == ["", "", ""][: len(rows)]
    table = parquet.read_table(tmp_path / "gap/probes/step=000000.parquet").to_pylist()
    at_start = next(row for row in table if row["metric"] == "quantization_gap" and row["statistic"] == "value")
    assert at_start["value"] == float(rows["0"]["outliers/quantization_gap"])
    with pytest.raises(InputError, match=r"needs outliers\.sequences of at least 2"):
        OutlierProbe(sequences=1, quantization_gap=True)
