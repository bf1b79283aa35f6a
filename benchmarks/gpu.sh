#!/usr/bin/env bash
# The checks that need a GPU, a stage at a time; each ends within 9 minutes and goes on where it stopped when called again.
#
#     benchmarks/gpu.sh STAGE [OUT]      OUT: where the rows go (default runs/gpu)
#
# STAGE: correctness | determinism | speed | statistics | train | all. Every row is on the disk when it has been measured.
# Needs torch and triton; the row `softmax/fit` of train also lightning; nothing of datasets, jsonargparse or wandb.
# The stage train ends with a line on each bar: tokens/s, share of softmax's, share of the bare loop's.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:?"give a stage: correctness, determinism, speed, statistics, train or all"}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
PYTHONUNBUFFERED=1 exec "$python" -m benchmarks.gpu "$stage" --out "${2:-runs/gpu}"
