"""What a group's scores have in common, computed once.

A group has one GT and M candidates. pyiqa, called on one pair after the other, passes the GT through the network M times, and its MANIQA
runs two blocks that it does not read. Here a module that remembers the GT's features stands in the place of that network, and MANIQA has
the blocks that it reads. All else is pyiqa's: scores equal pyiqa's (to float rounding) on one image at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dp2osr.device import free_device_bytes, has_own_memory
from dp2osr.rewards.building import LocalMetric, quiet_imports
from dp2osr.rewards.own import is_foreign
from dp2osr.rewards.perceptual import DistsForm, LpipsForm
from dp2osr.rewards.qalign import BYTES_A_PARAMETER as QALIGN_BYTES

MAPS, FLOAT = 3, 4  # of MANIQA's attention at once: product, scaled, softmax; bytes of a number
MANIQA_BLOCKS_READ = 10  # of twelve: `extract_feature` takes the outputs 6 to 9
DISTS_STAGES = ("stage1", "stage2", "stage3", "stage4", "stage5")


class RememberedGt(torch.nn.Module):
    """Stands in the place of a network of a metric, and passes the GT through it once a group.

    Args:
        network: images (B, 3, H, W) → features.
        turn: which of its passes within one call of the metric is the GT's, 0 or 1.
    """

    gt: torch.Tensor | None
    features: torch.Tensor | Sequence[torch.Tensor] | None

    def __init__(self, network: torch.nn.Module, turn: int) -> None:
        super().__init__()
        self.network, self.turn = network, turn
        self.begin(None)

    def begin(self, gt: torch.Tensor | None) -> None:
        """Before each call of the metric, with its (1, 3, H, W) GT; None lets go of the last one's features."""
        if gt is None or gt is not self.gt:
            self.gt, self.features = gt, None
        self.passes = 0

    def run(self, images: torch.Tensor) -> torch.Tensor | Sequence[torch.Tensor]:
        return self.network(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor | Sequence[torch.Tensor]:
        """(B, 3, H, W) → features; where the GT comes once for each of B candidates, so do its features."""
        self.passes += 1
        if self.passes - 1 != self.turn:
            return self.run(images)
        if self.features is None:
            self.features = self.run(images[:1])
        return self.features if len(images) == 1 else [feature.expand(len(images), -1, -1, -1) for feature in self.features]


class RememberedClip(RememberedGt):
    """The same for A-FINE's CLIP, of which only `encode_image` is called."""

    def run(self, images: torch.Tensor) -> torch.Tensor | Sequence[torch.Tensor]:
        return self.network.encode_image(images)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor | Sequence[torch.Tensor]:
        return self(images)


class LogisticFit(torch.nn.Module):
    """A-FINE's map of a term to a fixed range. pyiqa's asks on which side of the curve a value lies, which a GPU has to wait for.

    Args:
        fit: pyiqa's.
    """

    def __init__(self, fit: Any) -> None:
        super().__init__()
        self.fit = fit

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Of any shape; y₂ + (y₁ − y₂) σ((x − y₃) / |y₄|)."""
        fit, middle, width = self.fit, self.fit.yita3, self.fit.yita4
        if hasattr(fit, "yita3_lower"):
            middle, width = middle.clamp(fit.yita3_lower, fit.yita3_upper), width.clamp(fit.yita4_lower, fit.yita4_upper)
        return (fit.yita1 - fit.yita2) * torch.sigmoid((values - middle) / (width.abs() + 1e-10)) + fit.yita2


class GroupMetric:
    """A metric, called with (B, 3, H, W) images, and with a (1, 3, H, W) GT if it compares with one.

    Attributes:
        own_precision: whether it runs in the precision of its weights, whatever the suite's.
        foreign: whether its code is the user's.
    """

    own_precision = foreign = False
    __call__: Callable[..., torch.Tensor]

    def __init__(self, metric: torch.nn.Module) -> None:
        self.metric = metric

    def forget(self) -> None:
        """After a group: let go of what was kept for it."""


class PlainMetric(GroupMetric):
    """Any metric: pyiqa's call on the batch."""

    def __call__(self, images: torch.Tensor, gt: torch.Tensor | None = None) -> torch.Tensor:
        return self.metric(images) if gt is None else self.metric(images, gt.expand_as(images))


class FullReference(GroupMetric):
    """A metric that compares with the GT, which broadcasts, through networks that are each seen through a `RememberedGt`.

    Args:
        networks: names of the metric's networks; turn: as `RememberedGt` has it.
    """

    stand_in = RememberedGt

    def __init__(self, metric: torch.nn.Module, networks: Sequence[str], turn: int) -> None:
        super().__init__(metric)
        self.remembered = [self.stand_in(getattr(metric.net, name), turn) for name in networks]
        for name, stand_in in zip(networks, self.remembered, strict=True):
            setattr(metric.net, name, stand_in)

    def begin(self, gt: torch.Tensor | None) -> None:
        for remembered in self.remembered:
            remembered.begin(gt)

    def __call__(self, images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        self.begin(gt)
        return self.metric(images, gt)

    def forget(self) -> None:
        self.begin(None)


class Topiq(FullReference):
    """TOPIQ-FR concatenates the candidates' features with the GT's, and so needs as many of these."""

    def __call__(self, images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        self.begin(gt)
        return self.metric(images, gt.expand_as(images))


class Afine(FullReference):
    """A-FINE's terms with a GT. pyiqa's call takes one image at a time, and overwrites it and the GT."""

    stand_in = RememberedClip

    def __call__(self, images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        scores = []
        for image in images.split(1):
            self.begin(gt)
            scores.append(self.metric(image.clone(), gt.clone()).flatten())
        return torch.cat(scores)


class GtAnalysedOnce(GroupMetric):
    """FSIM and VSI: pyiqa's functions accept a GT of batch 1 and then analyse it once, a third of their time."""

    def __init__(self, metric: torch.nn.Module, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(metric)
        self.function = function

    def __call__(self, images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        return self.function(images, gt)


class OneByOne(GroupMetric):
    """A-FINE without a GT, which overwrites its one image."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.metric(image.clone()).flatten() for image in images.split(1)])


class Maniqa(OneByOne):
    """MANIQA, for which an image is twenty crops, of which each holds a map of attention among thousands of channels.

    On a CPU a batch of more than one image is only more memory; a GPU takes as many as its free memory lets.
    """

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if not has_own_memory(images.device):
            return super().__call__(images)
        net = self.metric.net
        each = net.test_sample * MAPS * net.conv1.in_channels**2 * FLOAT
        together = max(1, int(free_device_bytes(images.device) / 2 // each))
        return torch.cat([self.metric(part).flatten() for part in images.split(together)])


class QAlignMetric(OneByOne):
    """In the precision of its weights, whatever the other metrics run in."""

    own_precision = True

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with quiet_imports(), torch.autocast(images.device.type, enabled=False):
            return super().__call__(images)


class ForeignMetric(PlainMetric):
    """A metric of the user's code. It gets copies: what it does to its images in place, the next metric does not see."""

    foreign = True

    def __call__(self, images: torch.Tensor, gt: torch.Tensor | None = None) -> torch.Tensor:
        return torch.as_tensor(super().__call__(images.clone(), None if gt is None else gt.clone()))


def for_groups(metric: torch.nn.Module) -> GroupMetric:
    """`metric` as a function of (images (B, 3, H, W)[, gt (1, 3, H, W)]) → B scores, repeated work taken out.

    Args:
        metric: pyiqa's InferenceModel or a `LocalMetric`; it is changed in place.
    """
    if is_foreign(type(metric.net)):
        return ForeignMetric(metric)
    if isinstance(metric.net, (LpipsForm, DistsForm)):
        return FullReference(metric, ["features"], turn=1)
    return PlainMetric(metric) if isinstance(metric, LocalMetric) else _pyiqas_for_groups(metric)


def _pyiqas_for_groups(metric: torch.nn.Module) -> GroupMetric:
    from pyiqa.archs.afine_arch import AFINE
    from pyiqa.archs.dists_arch import DISTS
    from pyiqa.archs.fsim_arch import FSIM
    from pyiqa.archs.lpips_arch import LPIPS
    from pyiqa.archs.maniqa_arch import MANIQA
    from pyiqa.archs.topiq_arch import CFANet
    from pyiqa.archs.vsi_arch import VSI
    from timm.models import FeatureListNet

    net = metric.net
    if isinstance(net, (LPIPS, DISTS)):
        net.to(memory_format=torch.channels_last)  # a fifth off VGG's time on a CPU
    if isinstance(net, LPIPS):
        return FullReference(metric, ["net"], turn=0)
    if isinstance(net, DISTS):
        return FullReference(metric, DISTS_STAGES, turn=1)
    if isinstance(net, CFANet) and net.use_ref and net.crops == 1 and isinstance(net.semantic_model, FeatureListNet):
        return Topiq(metric, ["semantic_model"], turn=1)
    if isinstance(net, AFINE):
        net.net_scale_fr, net.net_scale_nr = LogisticFit(net.net_scale_fr), LogisticFit(net.net_scale_nr)
        return Afine(metric, ["clip_model"], turn=1) if metric.metric_mode == "FR" else OneByOne(metric)
    if isinstance(net, (FSIM, VSI)):
        return GtAnalysedOnce(metric, net.fsim if isinstance(net, FSIM) else net.vsi)
    if isinstance(net, MANIQA):
        net.vit.blocks = net.vit.blocks[:MANIQA_BLOCKS_READ]
        return Maniqa(metric)
    return QAlignMetric(metric) if metric.metric_name in QALIGN_BYTES else PlainMetric(metric)
