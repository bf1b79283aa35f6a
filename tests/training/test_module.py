import logging
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny_run import CONTEXT, differences, metrics, tensors, tiny_run

from errors import InputError
from kernels.flash import FlashCPU
from models import GPTConfig
from training import compilation
from training.callbacks.evaluation import evaluate
from training.module import LanguageModel
from training.optimizers import OptimizerConfig
from training.schedules import ScheduleConfig

SMALL = GPTConfig(vocab_size=30, context=8, layers=1, heads=2, width=8)


def test_loss_under_accumulation_equals_the_big_batch(tmp_path, text):
    def run(accumulation):
        options = {"batch_size": 8 // accumulation, "accumulation": accumulation, "precision": "64-true"}
        return tiny_run(tmp_path / f"a{accumulation}", text, steps=3, log_every=1, **options).fit()

    one, four = run(1), run(4)
    for big, small in zip(one.module.parameters(), four.module.parameters(), strict=True):
        assert torch.allclose(big, small, rtol=0, atol=1e-14)
        assert torch.allclose(big.grad, small.grad, rtol=0, atol=1e-14)


def test_the_gradient_is_that_of_the_mean_over_the_steps_tokens(tmp_path, text):
    run = tiny_run(tmp_path / "run", text, steps=1, accumulation=2, gradient_clip_val=0.0, precision="64-true").fit()
    before = LanguageModel(network=run.module.network).gpt.double()
    batches = list(run.data.step_batches(0))
    inputs, targets = (torch.cat([batch[name] for batch in batches]) for name in ("inputs", "targets"))
    F.cross_entropy(before(inputs).flatten(0, 1), targets.flatten()).backward()
    for trained, fresh in zip(run.module.gpt.parameters(), before.parameters(), strict=True):
        assert torch.allclose(trained.grad, fresh.grad, rtol=0, atol=1e-14)


def test_clipping_with_fused_adamw_under_bf16_mixed(tmp_path, text):
    run = tiny_run(tmp_path / "run", text, steps=4, precision="bf16-mixed", gradient_clip_val=0.1, outliers=4).fit()
    optimizer = run.trainer.optimizers[0]
    assert all(group["fused"] for group in optimizer.param_groups)
    norm = torch.stack([parameter.grad.norm() for parameter in run.module.parameters()]).norm()
    assert norm.item() == pytest.approx(0.1, rel=1e-4)
    assert run.module.gradient_norm.item() > 0.2
    assert {parameter.dtype for parameter in run.module.parameters()} == {torch.float32}


def test_variants_of_a_seed_train_on_the_same_batches_from_the_same_values(tmp_path, text):
    runs = {
        (name, seed): tiny_run(
            tmp_path / f"{name}{seed}", text, steps=2, attention=name, seed=seed, log_every=1, evaluation=0
        ).fit()
        for name, seed in (("softmax", 0), ("fixed_bias", 0), ("sink_token", 0), ("softmax", 1))
    }
    batches = {key: [batch["inputs"] for step in (0, 1) for batch in run.data.step_batches(step)]
               for key, run in runs.items()}  # fmt: skip
    for key, found in batches.items():
        same = [torch.equal(one, other) for one, other in zip(found, batches["softmax", 0], strict=True)]
        assert same == [key[1] == 0] * 2, key
    # fixed_bias starts as softmax exactly: the first step's loss is the same number.
    first = {key: metrics(tmp_path / f"{key[0]}{key[1]}")[1]["train/loss"] for key in runs}
    assert first["fixed_bias", 0] == first["softmax", 0]
    assert first["softmax", 1] != first["softmax", 0]


def test_compile_in_place_keeps_keys_and_numbers_and_probes_do_not_recompile(tmp_path, text):
    if compilation.obstacle(torch.device("cpu")):
        pytest.skip("this machine has no C++ compiler or no Python headers")
    from torch._dynamo.utils import counters

    options = {"steps": 3, "outliers": 1, "evaluation": 0}
    eager = tiny_run(tmp_path / "eager", text, **options).fit()
    torch._dynamo.reset()  # graphs of another test's run would serve this one too
    counters.clear()
    run = tiny_run(tmp_path / "compiled", text, compile="true", **options).fit()
    assert all(block._compiled_call_impl is not None for block in run.module.gpt.blocks)
    assert counters["stats"]["unique_graphs"] == 2  # that of both blocks and the loss; four probes added none
    assert run.module.state_dict().keys() == eager.module.state_dict().keys()
    for one, other in zip(eager.module.parameters(), run.module.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-5)


def test_compile_auto_is_off_with_one_line_without_a_compiler(monkeypatch, caplog, tmp_path, text):
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    caplog.set_level(logging.INFO, logger="sinkless")
    run = tiny_run(tmp_path / "run", text, steps=1, compile="auto").fit()
    assert run.module.gpt.blocks[0]._compiled_call_impl is None
    lines = [r.message for r in caplog.records if r.message.startswith("compile")]
    assert len(lines) == 1
    assert "there is no C++ compiler" in lines[0]
    with pytest.raises(InputError, match=r"compile is true, but there is no C\+\+ compiler"):
        compilation.wanted("true", torch.device("cpu"))
    with pytest.raises(InputError, match="compile is 'yes'"):
        compilation.wanted("yes", torch.device("cpu"))
    assert compilation.wanted(False, torch.device("cpu")) is False


@pytest.mark.parametrize("attention", ["context_scaling", {"name": "sink_key_value", "slots": 3}])
def test_load_from_checkpoint_rebuilds_the_mechanism_with_weights_only(tmp_path, text, attention):
    run = tiny_run(tmp_path / "run", text, steps=2, attention=attention).fit()
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert loaded.attention == run.module.attention
    assert loaded.network == run.module.network
    assert (loaded.optimizer_config, loaded.schedule) == (run.module.optimizer_config, run.module.schedule)
    tokens = torch.arange(CONTEXT)[None]
    assert torch.equal(loaded(tokens), run.module(tokens))


def test_the_whole_checkpoint_loads_with_weights_only(tmp_path, text):
    tiny_run(tmp_path / "run", text, steps=2).fit()
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert len(checkpoint["rng"]) == 1
    assert checkpoint["CorpusData"]["rows_per_step"] == 4
    assert "lr_schedulers" in checkpoint


def test_loss_is_in_fp32_under_autocast_and_ignores_minus_100():
    module = LanguageModel(network=SMALL)
    tokens = torch.arange(16).view(2, 8)
    batch = {"inputs": tokens, "targets": tokens + 1}
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.loss_sum(batch)
    assert loss.dtype == torch.float32
    some = {"inputs": tokens, "targets": torch.where(tokens < 8, tokens + 1, -100)}
    first = {name: tensor[:1] for name, tensor in batch.items()}
    assert module.loss_sum(some).item() == pytest.approx(module.loss_sum(first).item(), rel=1e-6)


def test_validation_loss_and_bits_per_byte_are_sums_over_counts(tmp_path, text):
    run = tiny_run(tmp_path / "run", text, steps=1).fit()
    found = evaluate(run.trainer, run.module)
    nats = count = 0.0
    for batch in run.data.validation_loader():
        logits = run.module.gpt(batch["inputs"]).double()
        chosen = batch["targets"] != -100
        logp = logits.log_softmax(-1)[chosen]
        nats -= logp.gather(1, batch["targets"][chosen][:, None]).sum().item()
        count += chosen.sum().item()
    assert count < 12 * CONTEXT  # the last batch is padded
    assert found["validation/loss"] == pytest.approx(nats / count, rel=1e-6)
    size = run.data.corpus.token_bytes.max()
    assert size == 1
    assert found["validation/bits_per_byte"] == pytest.approx(nats / math.log(2) / count, rel=1e-2)


def test_validate_gives_the_same_numbers_from_a_checkpoint(tmp_path, text):
    run = tiny_run(tmp_path / "run", text, steps=3).fit()
    other = tiny_run(tmp_path / "other", text, steps=3, limit_val_batches=1.0, logger=False)
    path = tmp_path / "run/checkpoints/last.ckpt"
    (found,) = other.trainer.validate(other.module, other.data, ckpt_path=path, verbose=False)
    assert found["validation/loss"] == pytest.approx(float(metrics(tmp_path / "run")[-1]["validation/loss"]), rel=1e-6)
    assert (
        differences({n: t for n, t in tensors(run).items() if "optimizer" not in n}, dict(other.module.state_dict()))
        == []
    )


def test_loaders_pin_their_memory_where_batches_go_to_a_gpu(tmp_path, text):
    run = tiny_run(tmp_path / "run", text, steps=1).fit()
    assert not run.data.validation_loader().pin_memory
    device = SimpleNamespace(root_device=torch.device("cuda"))
    run.data.trainer = SimpleNamespace(
        strategy=device, global_rank=0, world_size=1, global_step=0, max_steps=1, accumulate_grad_batches=1
    )
    assert run.data.validation_loader().pin_memory
    assert run.data.train_dataloader().pin_memory


def test_bits_per_byte_is_absent_for_the_synthetic_task(tmp_path):
    run = tiny_run(tmp_path / "run", "bigram_backcopy", steps=1).fit()
    assert set(evaluate(run.trainer, run.module)) == {"validation/loss"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": {"vocab_size": 100}}, r"vocab_size is 100, but the corpus has 257 tokens"),
        ({"network": {"context": 8}}, r"data.context is 16, longer than model.network.context 8"),
        ({"precision": "16-true"}, r"precision '16-true' is not supported"),
        ({"steps": -1}, r"max_steps is -1; give the number"),
        ({"gradient_clip_algorithm": "value"}, "clipped by norm"),
    ],
)
def test_what_would_fail_or_mislead_is_refused_in_one_line(tmp_path, text, options, message):
    with pytest.raises(InputError, match=message):
        tiny_run(tmp_path / "run", text, **options).fit()


def test_a_vendor_back_end_without_an_operator_for_the_precision_is_refused(tmp_path, text, monkeypatch):
    monkeypatch.setattr(FlashCPU, "dtypes", (torch.bfloat16,))  # as flash attention on CUDA
    run = tiny_run(tmp_path / "run", text)
    run.module.backend = "vendor"
    with pytest.raises(InputError, match=r"vendor, which cannot compute dtype torch\.float32 on cpu .*; auto can"):
        run.fit()


def test_the_fused_kernels_are_refused_where_they_cannot_run(tmp_path, text):
    run = tiny_run(tmp_path / "run", text, precision="64-true")
    run.module.backend = "triton"
    with pytest.raises(InputError, match=r"triton, which cannot compute (dtype torch\.float64|device cpu) "):
        run.fit()


def test_without_a_vocabulary_or_a_corpus_the_network_is_not_guessed():
    module = LanguageModel()
    module._trainer = SimpleNamespace(datamodule=None)
    with pytest.raises(InputError, match="vocab_size is not set"):
        module.setup("fit")


def test_bad_configuration_is_refused_when_the_module_is_made():
    with pytest.raises(InputError, match="lr is -1"):
        LanguageModel(optimizer=OptimizerConfig(lr=-1))
    with pytest.raises(InputError, match="warmup"):
        LanguageModel(schedule=ScheduleConfig(warmup=-3))
    with pytest.raises(InputError, match="softmx"):
        LanguageModel(attention="softmx")
