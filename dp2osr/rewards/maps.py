"""Where in an image a full-reference metric lost: maps over the crop, 0 = like the GT, higher = worse."""

from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional as F

from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.reuse import FullReference, GroupMetric


def has_map(name: str) -> bool:
    """Whether a pyiqa metric is of a kind that `spatial_maps` draws."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    return DEFAULT_CONFIGS.get(name, {}).get("metric_opts", {}).get("type") in ("LPIPS", "DISTS", "CFANet", "GMSD")


@torch.no_grad()
def spatial_maps(suite: MetricSuite, images: torch.Tensor, gt: torch.Tensor) -> dict[str, torch.Tensor]:
    """The maps of the suite's metrics that have one, and SSIM's.

    LPIPS gives its own; of DISTS and TOPIQ it is the difference of the features, each layer on its own scale, averaged; GMSD's is one
    minus the similarity of the gradients, whose spread is the score; SSIM's is one minus the index.

    Args:
        suite: `MetricSuite`.
        images: (B, 3, H, W) in [0, 1]; gt: (3, H, W).

    Returns:
        metric → (B, H, W) float32, not negative.
    """
    images, gt = images.to(suite.device), gt.to(suite.device)[None]
    maps = {}
    for name, metric in suite.networks().items():
        if suite.modes[name] == "FR" and has_map(name):
            maps[name] = _map_of(metric, images, gt)
    maps["ssim"] = ssim_map(images, gt)
    for metric in suite.networks().values():
        metric.forget()
    return {name: _to_size(values, images.shape[-2:]).clamp(min=0).cpu() for name, values in maps.items()}


def _to_size(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(values[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]


def _map_of(metric: GroupMetric, images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    from pyiqa.archs.dists_arch import DISTS
    from pyiqa.archs.gmsd_arch import GMSD
    from pyiqa.archs.lpips_arch import LPIPS

    net = metric.metric.net
    if isinstance(net, LPIPS):
        return _lpips_map(metric, images, gt)
    if isinstance(net, GMSD):
        return gmsd_map(images, gt)
    if isinstance(metric, FullReference):
        metric.begin(gt)
    if isinstance(net, DISTS):
        return _feature_map(net.forward_once(images), net.forward_once(gt), images.shape[-2:])
    return _feature_map(net.semantic_model(net.preprocess(images)), net.semantic_model(net.preprocess(gt)), images.shape[-2:])


def _lpips_map(metric: GroupMetric, images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    net = metric.metric.net
    net.spatial = True
    try:
        return metric(images, gt).reshape(len(images), *images.shape[-2:])
    finally:
        net.spatial = False


def _feature_map(theirs: Iterable[torch.Tensor], of_gt: Iterable[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
    layers = [(first - second).abs().mean(dim=1) for first, second in zip(theirs, of_gt)]
    scaled = [_to_size(layer / layer.mean().clamp(min=1e-12), size) for layer in layers]
    return torch.stack(scaled).mean(dim=0)


def gmsd_map(images: torch.Tensor, gt: torch.Tensor, stability: float = 170.0) -> torch.Tensor:
    """1 − gradient magnitude similarity (Xue et al. 2013, Eqs. 2–4) at half the size, (B, H/2, W/2); pyiqa's GMSD is its deviation."""
    from pyiqa.utils.color_util import to_y_channel

    prewitt = torch.tensor([[1.0, 0.0, -1.0]] * 3, device=images.device) / 3
    kernels = torch.stack([prewitt, prewitt.t()])[:, None]

    def gradient(image: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.avg_pool2d(to_y_channel(image, 255), 2), kernels, padding=1).square().sum(dim=1).add(1e-12).sqrt()

    first, second = gradient(images), gradient(gt)
    return 1 - (2 * first * second + stability) / (first**2 + second**2 + stability)


def ssim_map(images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """1 − SSIM of the luma over 11 × 11 windows (Wang et al. 2004), (B, H − 10, W − 10), by pyiqa."""
    from pyiqa.archs.ssim_arch import ssim
    from pyiqa.utils.color_util import to_y_channel

    first, second = (to_y_channel(image, 255).double() for image in (images, gt.expand_as(images)))
    return 1 - ssim(first, second, get_ssim_map=True, data_range=255)[:, 0]
