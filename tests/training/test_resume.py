import os
import random

import numpy as np
import pytest
import torch
from tiny_run import differences, metrics, tensors, tiny_run

from errors import InputError
from training import compilation, rng
from training.resume import rewrite_counters

# Loader workers, accumulation, dropout, compiled: each pair of values occurs. The interruption: an odd step, inside a
# logging interval.
PAIRS = [
    (0, 1, 0.0, False),
    (0, 4, 0.1, True),
    (2, 1, 0.1, False),
    (2, 4, 0.0, False),
    (2, 1, 0.0, True),
]


@pytest.mark.parametrize(("workers", "accumulation", "dropout", "compiled"), PAIRS)
def test_exact_resume(tmp_path, text, workers, accumulation, dropout, compiled):
    if compiled and compilation.obstacle(torch.device("cpu")):
        pytest.skip("this machine has no C++ compiler or no Python headers")
    options = {
        "compile": str(compiled).lower(),
        "accumulation": accumulation,
        "network": {"dropout": dropout},
        "steps": 8,
        "outliers": 3,
    }
    whole = tiny_run(tmp_path / "whole", text, **options).fit()
    tiny_run(tmp_path / "parts", text, stop_after=5, **options).fit()
    resumed = tiny_run(tmp_path / "parts", text, workers=workers, **options)
    resumed.fit(tmp_path / "parts/checkpoints/last.ckpt")
    assert resumed.trainer.global_step == 8
    assert differences(tensors(whole), tensors(resumed)) == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    probes = sorted(path.name for path in (tmp_path / "whole/probes").glob("*.parquet"))
    assert probes == [f"step={step:06d}.parquet" for step in (0, 3, 6, 8)]
    for name in probes:
        assert (tmp_path / "whole/probes" / name).read_bytes() == (tmp_path / "parts/probes" / name).read_bytes()


@pytest.mark.parametrize(
    ("first", "second", "precision", "limit"),
    [(1, 2, "32-true", 3e-8), (1, 4, "32-true", 3e-8), (4, 1, "32-true", 3e-8), (4, 2, "64-true", 1e-15)],
)
def test_another_accumulation_resumes_within_rounding(tmp_path, text, first, second, precision, limit):
    def run(name, accumulation, **options):
        options |= {"batch_size": 8 // accumulation, "accumulation": accumulation, "precision": precision}
        return tiny_run(tmp_path / name, text, steps=7, rate=1e-3, **options)

    whole = run("whole", first).fit()
    run("parts", first, stop_after=3).fit()
    resumed = run("parts", second).fit(tmp_path / "parts/checkpoints/last.ckpt")
    assert resumed.trainer.global_step == 7
    one, other = (torch.cat([p.flatten() for p in run.module.parameters()]).double() for run in (whole, resumed))
    assert ((one - other).norm() / one.norm()).item() <= limit
    assert [row["step"] for row in metrics(tmp_path / "parts")] == [row["step"] for row in metrics(tmp_path / "whole")]


def test_two_runs_of_one_seed_are_identical_and_another_seed_is_not(tmp_path, text):
    runs = {name: tiny_run(tmp_path / name, text, seed=seed).fit() for name, seed in (("a", 3), ("b", 3), ("c", 4))}
    assert differences(tensors(runs["a"]), tensors(runs["b"])) == []
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert len(differences(tensors(runs["a"]), tensors(runs["c"]))) > 5


def test_csv_survives_a_crash_after_the_checkpoint_without_gap_or_repeat(tmp_path, text):
    tiny_run(tmp_path / "whole", text, steps=8, checkpoints=4, evaluation=2).fit()
    tiny_run(tmp_path / "parts", text, steps=8, checkpoints=4, evaluation=2, stop_after=6).fit()
    last, previous = (tmp_path / "parts/checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    os.replace(previous, last)  # as if the run had died after step 6 with a checkpoint of step 4
    tiny_run(tmp_path / "parts", text, steps=8, checkpoints=4, evaluation=2).fit(last)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_run_from_scratch_in_an_old_directory_starts_its_files_anew(tmp_path, text):
    tiny_run(tmp_path / "run", text, steps=8, outliers=2).fit()
    tiny_run(tmp_path / "run", text, steps=4, outliers=4).fit()
    assert [row["step"] for row in metrics(tmp_path / "run")] == ["0", "2", "3", "4"]
    assert {path.name for path in (tmp_path / "run/probes").glob("*.parquet")} == {
        "step=000000.parquet",
        "step=000004.parquet",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2}, "global batch .* of 4, this run has 2"),
        ({"seed": 1}, "trained with the seed 0, this run has 1"),
    ],
)
def test_a_checkpoint_of_other_data_is_refused(tmp_path, text, options, message):
    tiny_run(tmp_path / "run", text, stop_after=2).fit()
    with pytest.raises(InputError, match=message):
        tiny_run(tmp_path / "run", text, **options).fit(tmp_path / "run/checkpoints/last.ckpt")


def test_a_changed_rate_is_not_replaced_by_the_checkpoints(tmp_path, text):
    tiny_run(tmp_path / "run", text, rate=1e-3, stop_after=2).fit()
    resumed = tiny_run(tmp_path / "run", text, rate=7e-4).fit(tmp_path / "run/checkpoints/last.ckpt")
    assert float(metrics(tmp_path / "run")[-1]["learning_rate"]) == pytest.approx(7e-5)
    assert resumed.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(7e-5)


def test_the_four_counters_are_rewritten():
    counters = {"ready": 7, "started": 7, "processed": 7, "completed": 6}
    progress = {"total": dict(counters), "current": dict(counters), "is_last_batch": True}
    checkpoint = {"global_step": 3, "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}
    rewrite_counters(checkpoint, 4)
    assert progress["total"] == progress["current"] == dict.fromkeys(counters, 12)
    assert progress["is_last_batch"] is False


def test_rng_state_is_restored_from_what_loads_with_weights_only(tmp_path):
    torch.save(rng.state(), tmp_path / "rng.pt")
    drawn = torch.rand(3), np.random.standard_normal(3).tolist(), random.gauss(0, 1)
    rng.restore(torch.load(tmp_path / "rng.pt", weights_only=True))
    again = torch.rand(3), np.random.standard_normal(3).tolist(), random.gauss(0, 1)
    assert torch.equal(drawn[0], again[0])
    assert drawn[1:] == again[1:]


def test_rng_seed_differs_between_ranks_and_repeats():
    draws = []
    for rank in (0, 1, 0):
        rng.seed(5, rank)
        draws.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert draws[0] == draws[2]
    assert all(one != other for one, other in zip(draws[0], draws[1], strict=True))
