"""DP²O-SR: direct perceptual preference optimisation for real-world image super-resolution.

    import dp2osr

    model = dp2osr.load("preset/models/tiny-sd2", controlnet="preset/models/c-tiny-sd2")
    images = model.restore("preset/test/lr/000.png", upscale=4, samples=8, seed=0)
    scores = dp2osr.Reward("embedded").score(images, gt="preset/test/gt/000.png")

docs/python.md has all of it. A name is imported when it is first used: `import dp2osr` alone reads nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp2osr.api.model import Model, load
    from dp2osr.api.programs import evaluate, label, make_pairs, restore, sample, train, train_base
    from dp2osr.api.scorer import Reward
    from dp2osr.data.settings import PairsSettings
    from dp2osr.errors import UserError
    from dp2osr.evaluation.settings import EvaluateSettings
    from dp2osr.rewards.settings import BestOfSettings, LabelSettings
    from dp2osr.sampling.settings import GenerateSettings, RestoreSettings
    from dp2osr.training.baseline_settings import BaselineSettings
    from dp2osr.training.settings import TrainSettings

__version__ = "0.1.0"

_MODULES = {  # where each name is imported from at its first use
    "Model": "dp2osr.api.model",
    "load": "dp2osr.api.model",
    "Reward": "dp2osr.api.scorer",
    "sample": "dp2osr.api.programs",
    "label": "dp2osr.api.programs",
    "train": "dp2osr.api.programs",
    "train_base": "dp2osr.api.programs",
    "evaluate": "dp2osr.api.programs",
    "restore": "dp2osr.api.programs",
    "make_pairs": "dp2osr.api.programs",
    "GenerateSettings": "dp2osr.sampling.settings",
    "RestoreSettings": "dp2osr.sampling.settings",
    "BestOfSettings": "dp2osr.rewards.settings",
    "LabelSettings": "dp2osr.rewards.settings",
    "TrainSettings": "dp2osr.training.settings",
    "BaselineSettings": "dp2osr.training.baseline_settings",
    "EvaluateSettings": "dp2osr.evaluation.settings",
    "PairsSettings": "dp2osr.data.settings",
    "UserError": "dp2osr.errors",
}

__all__ = [
    "BaselineSettings",
    "BestOfSettings",
    "EvaluateSettings",
    "GenerateSettings",
    "LabelSettings",
    "Model",
    "PairsSettings",
    "RestoreSettings",
    "Reward",
    "TrainSettings",
    "UserError",
    "evaluate",
    "label",
    "load",
    "make_pairs",
    "restore",
    "sample",
    "train",
    "train_base",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'dp2osr' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
