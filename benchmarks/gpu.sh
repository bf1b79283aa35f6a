#!/usr/bin/env bash
# The checks that need a GPU, a stage at a time; each ends within 9 minutes and goes on where it stopped when called again.
#
#     benchmarks/gpu.sh STAGE [OUT]      OUT: where the rows go (default runs/gpu)
#
# STAGE: correctness | determinism | speed | statistics | train | outliers | all. Every row is on the disk when it has been
# measured; a training goes on from its last checkpoint. Exit code 0: all rows are there, 3: some are missing (call again),
# 1: a row says that something is wrong, 2: nothing can be done as things are.
# Needs torch and triton; the row `softmax/fit` of train also lightning, outliers also tokenizers, pyarrow, yaml and
# safetensors; nothing of datasets, jsonargparse or wandb.
# speed ends with a line on each target of the kernels (ratios within the run), train with one on each bar (tokens/s, share
# of softmax's, share of the bare loop's), outliers with the table of
# mechanisms: GPT-2 124M, 2,000 steps each, probes, onsets, and what compression costs.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:?"give a stage: correctness, determinism, speed, statistics, train, outliers or all"}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
PYTHONUNBUFFERED=1 exec "$python" -m benchmarks.gpu "$stage" --out "${2:-runs/gpu}"
