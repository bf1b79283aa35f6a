"""Shared by all tests: one thread a process (the suite runs in several), no network, Triton's interpreter for a GPU."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported

import torch

torch.set_num_threads(1)
