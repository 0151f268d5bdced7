"""A metric by its name: this repository's, pyiqa's, or one that the user registers with pyiqa."""

import inspect
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from dp2osr.errors import UserError, is_full_disk
from dp2osr.places import ROOT
from dp2osr.rewards.brisque import Brisque
from dp2osr.rewards.config import MetricSpec, nearest
from dp2osr.rewards.consistency import LrPsnr
from dp2osr.rewards.efficientnet import content_hash
from dp2osr.rewards.grid import Grid
from dp2osr.rewards.naturalness import load_naturalness
from dp2osr.rewards.own import described, import_modules, registered
from dp2osr.rewards.perceptual import dists_form, lpips_form
from dp2osr.rewards.rank_metric import load_rank_metric
from dp2osr.rewards.weight_files import FROM_HUB, metric_weights, metrics_folder

BRISQUE_PARAMETERS = "preset/metrics/brisque.safetensors"


class LocalMetric(torch.nn.Module):
    """A metric of this repository with the attributes of pyiqa's: `network` maps (B, 3, H, W) in [0, 1], and GTs if FR, to (B,).

    Attributes:
        weights: hash of the weights, where they are made anew now and then: scores of other weights are computed again.
    """

    def __init__(self, network: torch.nn.Module, lower_better: bool, mode: str = "NR", weights: str | None = None) -> None:
        super().__init__()
        self.net, self.lower_better, self.metric_mode, self.weights = network.eval(), lower_better, mode, weights

    @torch.no_grad()
    def forward(self, images: torch.Tensor, *gt: torch.Tensor) -> torch.Tensor:
        return self.net(images, *gt)


def _brisque(parameters: str) -> LocalMetric:
    return LocalMetric(Brisque(ROOT / parameters), lower_better=True)


def _dp2o_rank(weights: str = "preset/metrics/tiny_rank.safetensors") -> LocalMetric:
    return LocalMetric(load_rank_metric(ROOT / weights), lower_better=False)


def _dp2o_naturalness(weights: str = "preset/metrics/naturalness.safetensors") -> LocalMetric:
    network = load_naturalness(ROOT / weights)
    return LocalMetric(network, lower_better=False, weights=content_hash(network.head.state_dict()))


def _perceptual(form: Callable[..., torch.nn.Module], network: str) -> Callable[..., LocalMetric]:
    def build(weights: str | None = None) -> LocalMetric:
        return LocalMetric(form(network, weights and ROOT / weights), lower_better=True, mode="FR")

    return build


def _dp2o_lr_psnr(scale: float = 4) -> LocalMetric:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 1 < scale < float("inf"):
        raise UserError(f"metric 'dp2o_lr_psnr': scale is {scale!r}, must be a number above 1, the factor of the super-resolution")
    return LocalMetric(LrPsnr(scale), lower_better=False, mode="FR")


def _dp2o_grid(period: int = 8) -> LocalMetric:
    if isinstance(period, bool) or not isinstance(period, int) or period < 4:
        raise UserError(f"metric 'dp2o_grid': period is {period!r}, must be a whole number of pixels, 4 or more")
    return LocalMetric(Grid(period), lower_better=True)


LOCAL_METRICS: dict[str, Callable[..., LocalMetric]] = {
    "dp2o_rank": _dp2o_rank,
    "dp2o_naturalness": _dp2o_naturalness,
    "dp2o_lpips": _perceptual(lpips_form, "efficientnet_lite0"),
    "dp2o_dists": _perceptual(dists_form, "efficientnet_lite0"),
    "dp2o_lr_psnr": _dp2o_lr_psnr,
    "dp2o_grid": _dp2o_grid,
    # On another network, for evaluation alone: a model that was trained with the two above is judged by others.
    "dp2o_lpips2": _perceptual(lpips_form, "efficientnet_lite2"),
    "dp2o_dists2": _perceptual(dists_form, "efficientnet_lite2"),
}


def _of_this_repository(spec: MetricSpec) -> LocalMetric | None:
    """A metric that needs no pyiqa weights: a name in `LOCAL_METRICS`, and `brisque` where its parameters are a file; else None."""
    build = _brisque if spec.name == "brisque" and "parameters" in spec.options else LOCAL_METRICS.get(spec.name)
    if build is None:
        return None
    known = inspect.signature(build).parameters
    for option in spec.options:
        if option not in known:
            raise UserError(f"metric '{spec.name}' has no option '{option}'{nearest(option, known)}")
    return build(**spec.options)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Keep libraries' notices about optional packages and deprecations off the screen; a first-time user reads them as a failure."""
    loggers = [logging.getLogger(name) for name in ("transformers", "pyiqa", "timm")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def create_metric(spec: MetricSpec, device: str | torch.device, weights_dir: str | Path | None = None) -> torch.nn.Module:
    """A metric of this repository, pyiqa's or, through `spec.imports`, the user's; see `MetricSuite`, also for what it raises."""
    if spec.better:
        problem = f"metric '{spec.name}' is a column of a score table ('better: {spec.better}' in the YAML) and cannot be computed"
        raise UserError(f"{problem}; leave it out here")
    import_modules(spec.imports)
    local = _of_this_repository(spec)
    if local:
        return local.to(device)
    import pyiqa
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    if spec.name not in DEFAULT_CONFIGS:
        own = "for a metric of your own see docs/rewards.md"
        raise UserError(f"unknown metric '{spec.name}'{nearest(spec.name, [*DEFAULT_CONFIGS, *LOCAL_METRICS])}; {own}")
    kind = _checked_entry(spec.name, DEFAULT_CONFIGS[spec.name])
    try:
        with metric_weights(kind, metrics_folder(weights_dir)), redirect_stdout(io.StringIO()):
            return pyiqa.create_metric(spec.name, device=device, **spec.options)
    except UserError:
        raise
    except Exception as error:
        if is_full_disk(error):
            raise
        own = f", a metric of your own, cannot be built with the options {spec.options}: {described(error)}"
        told = own if registered(kind) else _problem(spec, kind, error, device)
        if told is None:
            raise
        raise UserError(f"metric '{spec.name}'{told}") from None


def _checked_entry(name: str, entry: Any) -> str:
    """pyiqa's name of a metric's network; `UserError` where the entry, the user's own, lacks something that pyiqa reads."""
    kind = entry["metric_opts"].get("type") if isinstance(entry, dict) and isinstance(entry.get("metric_opts"), dict) else None
    if not kind or entry.get("metric_mode") not in ("FR", "NR"):
        form = "{'metric_opts': {'type': CLASS}, 'metric_mode': 'FR' or 'NR', 'lower_better': True or False}"
        raise UserError(f"metric '{name}': its entry in pyiqa's DEFAULT_CONFIGS must be {form}; see docs/rewards.md")
    return kind


def _problem(spec: MetricSpec, kind: str, error: Exception, device: str | torch.device) -> str | None:
    """What a user can do about an error in the building of pyiqa's metric; None for one that is nobody's mistake."""
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, ImportError):
        return f" needs a package that this environment lacks ({reason}); install it, or leave the metric out"
    if isinstance(error, TypeError):
        return f": pyiqa refuses the options {spec.options} ({reason})"
    if isinstance(error, torch.OutOfMemoryError):
        return f": out of memory on {device} while its network was built; use fewer metrics at a time"
    if isinstance(error, KeyError) and "registry" in reason:
        return f": {reason}; its class must be registered with pyiqa's ARCH_REGISTRY, see docs/rewards.md"
    if isinstance(error, (RuntimeError, EOFError, KeyError, UnpicklingError)):
        return f": a weights file of it cannot be read ({reason}); fetch it again"
    if isinstance(error, OSError):
        return f": its weights are not here and cannot be fetched ({reason}); {_ways_without(spec.name, kind)}"
    return None


def _ways_without(name: str, kind: str) -> str:
    """What to do about a metric whose weights are not on this machine."""
    asked = "--fid" if name == "fid" else f"--extra_metrics {name}"
    fetched = f"python scripts/fetch_metrics.py {asked} --metrics_dir metrics"
    ways = f"run {fetched} on a machine with a network and pass --metrics_dir metrics"
    if kind in FROM_HUB and kind != "QAlign":
        ways += ", with that machine's hub cache (HF_HOME)"
    if name == "brisque":
        return f"write brisque: {{parameters: {BRISQUE_PARAMETERS}}} in the YAML for the one that is shipped here, or {ways}"
    if name == "fid":
        return ways
    return f"take --reward_config embedded (evaluate.py --images: --protocol offline), which needs no download, or {ways}"
