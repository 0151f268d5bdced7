"""Imported by the server that `programs` forks from: what the programs import inside functions, and one thread."""

import importlib
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
TESTS = Path(__file__).resolve().parent
sys.path[:] = [str(TESTS.parent), *(place for place in sys.path if Path(place) != TESTS)]  # programs do not see the tests' modules

NAMES = {  # {module: what of it is imported when it is asked for}
    "diffusers": [
        "AutoencoderKL", "ControlNetModel", "DDPMScheduler", "FlowMatchEulerDiscreteScheduler", "FluxControlNetModel",
        "FluxTransformer2DModel", "UNet2DConditionModel",
    ],
    "transformers": ["CLIPTextModel", "CLIPTokenizer", "T5EncoderModel", "T5TokenizerFast"],
    **dict.fromkeys(["diffusers.optimization", "matplotlib.figure", "pandas", "peft", "pyarrow.dataset", "pyarrow.parquet"], []),
    **dict.fromkeys(["pyiqa.archs", "scipy.stats", "timm", "torch.distributed.launcher.api", "torch.distributed.run"], []),
}  # fmt: skip
MODULES = [
    "backbones.flux", "backbones.sd2", "evaluation.compare", "evaluation.report", "experiments.run", "launch", "rewards.label",
    "rewards.reuse", "sampling.restore", "training.trainer",
]  # fmt: skip
for name, wanted in (NAMES | dict.fromkeys([f"dp2osr.{module}" for module in MODULES], [])).items():
    module = importlib.import_module(name)
    for each in wanted:
        getattr(module, each)
