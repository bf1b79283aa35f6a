"""What the command line accepts and refuses, without training: every refusal is one line that names the value."""

from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest
import yaml

from data.command import LOADING_KEYS
from data.options import PrepareOptions
from errors import InputError
from models.presets import PRESETS
from training.cli import check
from training.data_module import CorpusData

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZES = ("context", "layers", "heads", "width", "positions", "norm", "mlp", "mlp_width", "kv_heads", "tie_embeddings")


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(text: str, name: str = "my.yaml") -> list[str]:
    Path(name).write_text(text)
    return ["--config", name]


def refusal(argv: list[str]) -> str:
    with pytest.raises(InputError) as caught:
        check(argv)
    message = str(caught.value)
    assert "\n" not in message
    assert not list(Path.cwd().glob("runs"))
    return message


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--model.network.widht", "3"], ["--model.network.widht", "Did you mean", "model.network.width"]),
        (["--max_steps", "3"], ["--max_steps", "trainer.max_steps"]),
        (["--attention=softmax"], ["--attention", "model.attention"]),
        (["--model.network.wid", "3"], ["--model.network.wid"]),
        (["--frobnicate"], ["--frobnicate", "--help.all"]),
        (["softmax"], ["softmax", "--name value"]),
        (["--model.network.width", "wide"], ["model.network.width", "int", "wide"]),
        (["--model.network.width", "3.5"], ["model.network.width", "int", "3.5"]),
        (["--model.network.norm", "layernrom"], ["layernrom", "layernorm, rmsnorm", "did you mean layernorm"]),
        (["--model.optimizer.name", "muno"], ["muno", "adamw, muon", "did you mean muon"]),
        (["--model.optimizer.skip_spikes", "0.5"], ["model.optimizer.skip_spikes is 0.5", "greater than 1"]),
        (["--model.network.pad_vocab", "0"], ["pad_vocab is 0", "at least 1"]),
        (["--model.optimizer.betas", "[0.9]"], ["model.optimizer.betas", "2 elements", "0.9"]),
        (["--trainer.max_steps"], ["--trainer.max_steps", "expected one argument"]),
        (["--trainer.max_steps", "0"], ["trainer.max_steps is 0"]),
        (["--trainer.max_epochs", "3"], ["--trainer.max_epochs"]),
        (["--trainer.max_steps", "-1"], ["trainer.max_steps is -1", "1 or more"]),
        (["--trainer.accumulate_grad_batches", "0"], ["trainer.accumulate_grad_batches is 0", "1 or more"]),
        (["--trainer.accumulate_grad_batches", "-2"], ["trainer.accumulate_grad_batches is -2", "1 or more"]),
        (["--data.tokens_per_step", "0"], ["data.tokens_per_step is 0", "null"]),
        (
            [
                "--data.tokens_per_step",
                "20480",
                "--data.batch_size",
                "12",
                "--trainer.devices",
                "2",
                "--trainer.accelerator",
                "cpu",
            ],
            [
                "data.tokens_per_step is 20480",
                "2 ranks",
                "batch_size 12",
                "context 256",
                "6144 tokens at once",
                "data.batch_size 10 or 20",
                "data.tokens_per_step 18432 or 24576",
            ],
        ),
        (
            ["--data.tokens_per_step", "8192", "--trainer.accumulate_grad_batches", "3"],
            ["trainer.accumulate_grad_batches is 3", "tokens_per_step 8192", "batch_size 16", "takes 2", "leave one"],
        ),
        (["--trainer.log_every_n_steps", "0"], ["trainer.log_every_n_steps is 0", "1 or more"]),
        (["--trainer.gradient_clip_val", "-1"], ["trainer.gradient_clip_val is -1", "null"]),
        (["--trainer.devices", "none", "--trainer.accelerator", "cpu"], ["devices: none"]),
        (["--trainer.devices", "999", "--trainer.accelerator", "cpu"], ["trainer.devices is 999", "cores", "at most"]),
        (
            [
                "--model.optimizer.name",
                "muon",
                "--trainer.strategy",
                "fsdp2",
                "--trainer.devices",
                "2",
                "--trainer.accelerator",
                "cpu",
            ],
            ["model.optimizer.name is muon", "whole matrices", "adamw"],
        ),
        (["--trainer.precision", "8"], ["trainer.precision", "32-true or bf16-mixed", "got 8"]),
        (["--trainer.precision", "16-mixed"], ["trainer.precision", "got 16-mixed", "did you mean bf16-mixed?"]),
        (["--model.compile", "maybe"], ["model.compile is 'maybe'", "auto, true, false"]),
        (["--data.validation_sequences", "0"], ["data.validation_sequences is 0", "null for all"]),
        (["--trainer.accelerator", "abacus"], ["trainer", "abacus"]),
        (["--data.seed", "3"], ["data.seed", "seed_everything"]),
        (["--data.context", "3"], ["data.context", "model.network.context"]),
        (["--seed_everything", "-1"], ["seed_everything is -1"]),
        (["--seed_everything", "one"], ["seed_everything", "int", "one"]),
        (["--stop_after", "0"], ["stop_after is 0"]),
        (["--model.attention", "sotfmax"], ["sotfmax", "did you mean softmax", "sink_key_value"]),
        (["--model.attention", "my_module.Mine"], ["my_module"]),
        (["--model.attention", "{name: sink_key_value, slot: 4}"], ["'slot'", "did you mean slots"]),
        (["--model.attention.name", "sink_key_value", "--model.attention.slots", "many"], ["slots", "many", "whole"]),
        (["--model.attention.slots"], ["--model.attention.slots needs a value"]),
        (["--model.network.heads", "3"], ["width 128", "3 heads"]),
        (["--model.optimizer.lr", "-1"], ["model.optimizer.lr is -1"]),
        (["--model.schedule.name", "step"], ["step", "constant, cosine, linear, wsd"]),
        (["--model.backend", "cuda"], ["cuda", "reference"]),
        (["--data.batch_size", "0"], ["data.batch_size is 0"]),
        (["--data.documents", "mask"], ["data.documents", "packed, masked", "did you mean masked?"]),
        (["--data.bos", "null"], ["data.bos", "document, sequence, none"]),
        (["--data.documents", "masked", "--model.attention", "sink_token"], ["masked", "sink_token", "packed"]),
        (["--evaluation.every", "-5"], ["evaluation.every is -5"]),
        (["--loggers", "[wandbb]"], ["loggers", "wandbb", "wandb"]),
        (["--loggers", "wandb"], ["loggers: expected a list in brackets, such as [wandb], got wandb"]),
        (["--model.optimizer.betas", "0.9"], ["model.optimizer.betas: expected a list in brackets", "got 0.9"]),
        (["--model.optimizer.lr", ".nan"], ["model.optimizer.lr is nan", "finite"]),
        (["--model.optimizer.lr", ".inf"], ["model.optimizer.lr is inf", "finite"]),
        (["--model.optimizer.weight_decay", ".nan"], ["model.optimizer.weight_decay is nan", "finite"]),
        (["--model.optimizer.lr", "inf"], ["model.optimizer.lr: expected a finite number, got inf"]),
        (["--config", "nothing.yaml"], ["nothing.yaml"]),
        (["--config"], ["--config needs a value"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argv, parts):
    message = refusal(argv)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model:\n  network:\n    widht: 3\n", ["my.yaml, line 3", "model.network.widht", "model.network.width"]),
        ("modl:\n  attention: softmax\n", ["my.yaml, line 1", "modl", "model"]),
        ("evaluation:\n  evry: 3\n", ["line 2", "evaluation.evry", "evaluation.every"]),
        ("data: stdlib\n", ["line 1", "data is a group of options", "stdlib", "source"]),
        ("data:\n  source: stdlib\n  source: other\n", ["line 3", "data.source is given twice"]),
        ("model:\n  attention: softmax\n   network: 3\n", ["my.yaml, line 3", "not valid YAML"]),
        ("model: [\n", ["my.yaml, line 2", "not valid YAML"]),
        ("", ["my.yaml holds no options"]),
        ("- a\n- b\n", ["my.yaml holds no options"]),
        ("model:\n  network:\n    width: wide\n", ["model.network.width", "int", "wide"]),
        ("model:\n  attention: sotfmax\n", ["sotfmax", "did you mean softmax"]),
        ("model:\n  attention: 3\n", ["model.attention", "str or mapping", "got 3"]),
        ("model:\n  attention: [softmax]\n", ["model.attention", "str or mapping", "softmax"]),
    ],
)
def test_a_mistake_in_a_file_is_one_line(text, parts):
    message = refusal(written(text))
    for part in parts:
        assert part in message, message


def test_a_binary_file_and_a_near_miss_of_a_file_name():
    Path("demo.yaml").write_bytes(b"\xff\xfe\x00")
    assert "demo.yaml is not a text file" in refusal(["--config", "demo.yaml"])
    assert "Did you mean demo.yaml?" in refusal(["--config", "demmo.yaml"])


def test_prepare_knows_every_key_of_the_data_group():
    linked = {"self", "context", "seed"}  # they follow from keys of other groups
    keys = {field.name for field in fields(PrepareOptions)} | LOADING_KEYS.keys()
    assert keys == signature(CorpusData.__init__).parameters.keys() - linked


def test_bos_none_is_a_name():
    for argv in (["--data.bos", "none"], written("data:\n  bos: none\n")):
        assert check(argv)["data"]["bos"] == "none"


def test_an_attention_is_the_same_in_every_spelling():
    options = {"name": "sink_key_value", "slots": 4}
    as_dict = "{name: sink_key_value, slots: 4}"
    in_file = written(f"model:\n  attention: {as_dict}\n")
    other = written("model:\n  attention: sink_key\n", "other.yaml")
    for argv in (
        ["--model.attention", as_dict],
        ["--model.attention", "sink_key_value", "--model.attention.slots", "4"],
        ["--model.attention.slots=4", "--model.attention.name=sink_key_value"],
        in_file,
        [*other, *in_file],
        [*other, "--model.attention.name", "sink_key_value", "--model.attention.slots", "4"],
    ):
        assert check(argv)["model"]["attention"] == options, argv
    # A default is not written out, so that equal mechanisms have equal configurations.
    assert check([*in_file, "--model.attention.slots", "1"])["model"]["attention"] == {"name": "sink_key_value"}
    # Another name starts from that mechanism's own defaults.
    assert check([*in_file, "--model.attention", "softmax"])["model"]["attention"] == {"name": "softmax"}
    assert check([*in_file, "--model.attention.name", "sink_key"])["model"]["attention"] == {"name": "sink_key"}


def test_the_command_line_overrides_the_file():
    file = written("seed_everything: 3\ntrainer:\n  max_steps: 7\nmodel:\n  optimizer: {lr: 3e-4}\ndata:\n")
    config = check([*file, "--trainer.max_steps", "9"])
    assert (config["seed_everything"], config["trainer"]["max_steps"]) == (3, 9)
    assert config["model"]["optimizer"]["lr"] == 3e-4


def test_the_resolved_configuration_parses_to_itself():
    config = check(
        [
            "--model.attention",
            "{name: sink_key_value, slots: 4}",
            "--seed_everything",
            "5",
            "--loggers",
            "[tensorboard]",
        ]
    )
    assert check(written(yaml.safe_dump(config))) == config
    for key in ("out", "stop_after", "ckpt_path", "config"):
        assert key not in config
    for group in ("model", "data"):
        assert "seed" not in config[group]
    assert "context" not in config["data"]


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_configuration_is_accepted(file):
    text = file.read_text()
    for word in ("Tokens", "Parameters", "Memory"):
        assert word in text
    config = check(["--config", str(file)])
    network = config["model"]["network"]
    preset = {"demo_text": "demo", "own_text": "demo", "gpt2_124m_sinks": "gpt2_124m"}.get(file.stem, file.stem)
    if preset in PRESETS:
        for name in SIZES:
            assert network[name] == getattr(PRESETS[preset], name), name
    else:
        sizes = {"bigram_backcopy": (1, 1, 64, 32), "python_text": (6, 6, 192, 256)}[file.stem]
        assert (network["layers"], network["heads"], network["width"], network["context"]) == sizes


def test_the_paper_recipe_has_its_tokens_a_step():
    config = check(["--config", str(CONFIGS / "gpt2_124m.yaml")])
    assert config["data"]["tokens_per_step"] == 491_520
