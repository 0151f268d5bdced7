"""Imported by the server that `programs` forks from: what the programs import inside functions, and one thread."""

import importlib
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

for name in ("backbones.flux", "backbones.sd2", "evaluation.run_images", "rewards.label", "sampling.restore", "training.trainer"):
    importlib.import_module(f"dp2osr.{name}")
