"""A suite of metrics, mostly pyiqa's, that scores a batch of images at once. Draws no random number."""

import inspect
import logging
from contextlib import contextmanager
from pathlib import Path

import torch

from dp2osr.errors import UserError
from dp2osr.rewards.config import nearest

REPOSITORY = Path(__file__).resolve().parents[2]
# These two accept a GT of batch 1 and then analyse it once, not once a candidate: a third of their time.
ANALYSE_GT_ONCE = ("fsim", "vsi")


class LocalMetric(torch.nn.Module):
    """A metric of this repository with the attributes of pyiqa's: `network` maps (B, 3, H, W) in [0, 1] to (B,)."""

    def __init__(self, network, lower_better):
        super().__init__()
        self.net, self.lower_better, self.metric_mode = network.eval(), lower_better, "NR"

    @torch.no_grad()
    def forward(self, images):
        return self.net(images)


def _brisque(parameters):
    from dp2osr.rewards.brisque import Brisque

    return LocalMetric(Brisque(REPOSITORY / parameters), lower_better=True)


def _dp2o_rank(weights="preset/metrics/tiny_rank.safetensors"):
    from dp2osr.rewards.rank_metric import load_rank_metric

    return LocalMetric(load_rank_metric(REPOSITORY / weights), lower_better=False)


def _local_builder(spec):
    """The builder of a metric that needs no pyiqa weights: `dp2o_rank`, and `brisque` where its parameters are a file."""
    if spec.name == "dp2o_rank":
        return _dp2o_rank
    return _brisque if spec.name == "brisque" and "parameters" in spec.options else None


@contextmanager
def quiet_imports():
    """Keep libraries' notices about optional packages off the screen; a first-time user reads them as a failure."""
    loggers = [logging.getLogger(name) for name in ("transformers", "pyiqa", "timm")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def pyiqa_version():
    """Version string of the installed pyiqa: scores of one metric may differ between versions."""
    from importlib.metadata import version

    return version("pyiqa")


class MetricSuite:
    """Several metrics, built once, each scoring whole batches.

    Args:
        specs: `MetricSpec`s; a name given twice must have the same options.
        device: where the metrics run.

    Attributes:
        specs: name → `MetricSpec`; lower_better: name → bool; modes: name → "FR" | "NR"; both as pyiqa says.

    Raises:
        UserError: unknown metric (nearest names shown), an option that it does not have, or weights or a package of it
            that are not on this machine.
    """

    def __init__(self, specs, device="cpu"):
        self.specs = {}
        for spec in specs:
            if self.specs.setdefault(spec.name, spec) != spec:
                raise UserError(f"metric '{spec.name}' is asked for with {self.specs[spec.name].options} and with {spec.options}; keep one")
        self.device = torch.device(device)
        with quiet_imports():
            self._metrics = {name: _create(spec, self.device) for name, spec in self.specs.items()}
        self.lower_better = {name: bool(metric.lower_better) for name, metric in self._metrics.items()}
        self.modes = {name: metric.metric_mode for name, metric in self._metrics.items()}

    def describe(self):
        """name → {"lower_better", "mode", "options"}, for the score table's metadata."""
        return {
            name: {"lower_better": self.lower_better[name], "mode": self.modes[name], "options": spec.options}
            for name, spec in self.specs.items()
        }

    def score(self, images, gt=None, image_id="", candidates=None, names=None):
        """Raw scores of a batch.

        Args:
            images: (B, 3, H, W) in [0, 1].
            gt: (3, H, W) in [0, 1], or None: then only the NR metrics are scored.
            image_id, candidates: what an error names: the image, and B candidate numbers (default 0 … B − 1; −1 is the GT).
            names: metrics to score (default all).

        Returns:
            name → (B,) float64 numpy array.

        Raises:
            UserError: NaN or infinite score (metric, image and candidate named), or a size that a metric cannot score.
        """
        images = images.to(self.device)
        gt = None if gt is None else gt.to(self.device)[None]
        scores = {}
        for name, mode in self.modes.items():
            if (mode == "FR" and gt is None) or (names is not None and name not in names):
                continue
            values = self._call(name, images, gt if mode == "FR" else None, image_id).double().flatten()
            bad = (~values.isfinite()).nonzero().flatten().tolist()
            if bad:
                number = bad[0] if candidates is None else candidates[bad[0]]
                where = f"image '{image_id}', candidate {number}{' (the GT)' * (number == -1)}"
                raise UserError(f"metric '{name}' gives {values[bad[0]].item()} for {where}; look at that image, or leave the metric out")
            scores[name] = values.cpu().numpy()
        return scores

    @torch.no_grad()
    def _call(self, name, images, gt, image_id):
        metric, size = self._metrics[name], f"{images.shape[-1]} x {images.shape[-2]}"
        try:
            if gt is None:
                return metric(images)
            if name in ANALYSE_GT_ONCE:
                return getattr(metric.net, name)(images, gt)
            return metric(images, gt.expand_as(images))
        except torch.OutOfMemoryError:
            raise UserError(f"metric '{name}': out of memory on {len(images)} images of {size}; lower --batch_size") from None
        except (AssertionError, RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            problem = f"metric '{name}' cannot score image '{image_id}' of {size} pixels ({reason})"
            raise UserError(f"{problem}; it may need a bigger image, leave the metric out") from None


def check_modes(config, suite):
    """Refuse a config that lists an NR metric under `fr` or an FR one under `nr` (UserError)."""
    for mode, specs in (("FR", config.fr), ("NR", config.nr)):
        for spec in specs:
            actual = suite.modes[spec.name]
            if actual != mode:
                raise UserError(f"reward config '{config.name}': '{spec.name}' is a {actual} metric; list it under '{actual.lower()}'")


def _create(spec, device):
    builder = _local_builder(spec)
    if builder:
        return _check_options(spec, builder)(**spec.options).to(device)
    import pyiqa
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    if spec.name not in DEFAULT_CONFIGS:
        raise UserError(f"unknown metric '{spec.name}'{nearest(spec.name, [*DEFAULT_CONFIGS, 'dp2o_rank'])}")
    try:
        return pyiqa.create_metric(spec.name, device=device, **spec.options)
    except ImportError as error:
        problem = f"metric '{spec.name}' needs a package that this environment lacks ({error})"
        raise UserError(f"{problem}; install it, or leave the metric out") from None
    except TypeError as error:
        raise UserError(f"metric '{spec.name}': pyiqa refuses the options {spec.options} ({error})") from None
    except OSError as error:
        if error.errno in (28, 122):  # a full disk is reported as such
            raise
        problem = f"metric '{spec.name}': its weights are not here and cannot be fetched ({error})"
        raise UserError(f"{problem}; connect once, or take the embedded reward config") from None


def _check_options(spec, builder):
    known = inspect.signature(builder).parameters
    for option in spec.options:
        if option not in known:
            raise UserError(f"metric '{spec.name}' has no option '{option}'{nearest(option, known)}")
    return builder
