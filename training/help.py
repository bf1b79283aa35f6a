"""The short help of `fit` and `validate`. It is text, because asking the parser means importing torch and Lightning.

A test compares every option and default below with the parser's; `--help.all` prints the parser's own list.
"""

_COMMON = """\
  --config FILE                 YAML with any of the options below; may be repeated, the later one wins
  --NAME.OPTION VALUE           an option of that file, for example --model.network.width 256
  --print_config                print the whole configuration, and leave
  --out DIR                     run directory [runs/<config>/<attention>/seed=<n>]
  --seed_everything N           seed of initial values, data order and dropout [0]
"""

_MODEL = """\
model
  --model.attention NAME        softmax, fixed_bias, context_bias, sink_key_value, sink_key, sink_logit, off_by_one,
                                sink_token, context_scaling, gated_head, gated_element, gated_slice, sigmoid, softpick,
                                clipped_softmax, elastic_softmax, or your own class as package.module.Class [softmax]
  --model.attention.OPTION V    an option of that mechanism, as --model.attention.slots 4; both at once:
                                --model.attention '{name: sink_key_value, slots: 4}'
  --model.network.context N     longest sequence, in tokens [256]
  --model.network.layers N      [4]      --model.network.heads N    [4]      --model.network.width N    [128]
  --model.network.positions P   learned, rotary or none [learned]
  --model.network.norm P        layernorm, rmsnorm or rmsnorm_single [layernorm]
  --model.network.norm_position P    pre or sandwich [pre]
  --model.network.mlp P         gelu or swiglu [gelu]
  --model.network.vocab_size N  [null: the tokenizer's]
  --model.optimizer.name P      adamw, or muon for the blocks' matrices [adamw]
  --model.optimizer.lr X        peak learning rate [0.001]
  --model.optimizer.weight_decay X   [0.1]
  --model.schedule.name P       constant, cosine, linear or wsd [cosine]
  --model.schedule.warmup N     steps [100]
  --model.compile C             auto, true or false [auto]
  --model.backend B             auto, vendor, triton, blockwise or reference [auto]
  --model.activation_checkpointing C   true computes each block again in the backward: less memory [False]
"""

_DATA = """\
data
  --data.source S               stdlib, bigram_backcopy, a text, .jsonl or .parquet file, a folder of them,
                                or hub:OWNER/NAME [stdlib]
  --data.tokenizer T            bpe, bytes, or the path of a tokenizer.json [bpe]
  --data.vocab_size N           tokens of a trained BPE [2048]
  --data.max_tokens N           end the training split at exactly N tokens [null: the whole source]
  --data.batch_size N           sequences in a micro-batch, on each device [16]
  --data.tokens_per_step N      tokens in an optimizer step on all devices; the accumulation follows from it
                                [null: batch_size × accumulation × devices × context]
  --data.validation_sequences N [null: all of the held-out text]
  --data.documents D            packed or masked: whether attention crosses from one document to the next [packed]
  --data.bos B                  document, sequence or none: where a BOS stands [document]
"""

_TRAINER = """\
training
  --trainer.max_steps N         optimizer steps [1000]
  --trainer.accumulate_grad_batches N   micro-batches a step [null: 1, or what data.tokens_per_step takes]
  --trainer.gradient_clip_val X [1.0]
  --trainer.precision P         32-true or bf16-mixed [null: 32-true]
  --trainer.devices N           [auto]   --trainer.accelerator A    [auto]
  --trainer.strategy S          auto, ddp, fsdp2 or single_device [auto]
  --evaluation.every N          steps between two validations [200]
  --outliers.every N            steps between two probes of outliers and attention sinks [200]
  --outliers.quantization_gap B true: log what 8 bits cost with each probe [False]
  --checkpoints.every N         steps between two checkpoints [500]
  --checkpoints.sharded C       true: under fsdp2 every rank writes its part into a folder [False]
  --loggers '[wandb]'           wandb, tensorboard or both, beside metrics.csv [none]
"""

HELP = {
    "fit": f"""\
usage: python train.py fit --config FILE [--out DIR] [--NAME.OPTION VALUE ...]

Train one model. The same command again goes on where it was interrupted, a finished run says so, and a directory that
holds a run of another configuration is refused. A source that is not prepared yet is prepared first.

{_COMMON}  --ckpt_path last              insist on going on from a checkpoint; or a file to start from [null]
  --stop_after N                stop and save at step N, as if interrupted there [null]

{_MODEL}
{_DATA}
{_TRAINER}
In brackets: the default. All options: python train.py fit --help.all
""",
    "validate": f"""\
usage: python train.py validate --config RUN/config.yaml [--ckpt_path FILE]

Print the validation loss, and bits per byte where the corpus has bytes, of a run's checkpoint.

{_COMMON}  --ckpt_path last              the run's newest checkpoint, or a file; null for the initial weights [last]

The other options are those of fit. All options: python train.py validate --help.all
""",
}
