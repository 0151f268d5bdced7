"""What a group's scores have in common, computed once: pyiqa's networks with repeated and unread passes taken out.

A group has one GT and M candidates. pyiqa, called on one pair after the other, passes the GT through the network M times; its MANIQA
runs two blocks that it does not read, its CLIP-IQA+ embeds its two prompts at every call, its A-FINE takes one image at a time and
**overwrites the image that it is given**. Here each metric keeps pyiqa's modules, weights and formulas; only the calls around them change,
so that scores equal pyiqa's (to float rounding) on one image at a time.
"""

from functools import cache

import torch
from torch.nn import functional as F
from torchvision.transforms.functional import normalize

from dp2osr.rewards.own import is_foreign

MANIQA_CROPS_TOGETHER = 4  # of the twenty 224 x 224 crops of an image; the attention of more does not fit a processor's cache


class RememberedGt:
    """A backbone's pass that keeps the features of the GT.

    Args:
        run: the pass, images (B, 3, H, W) → features.
        turn: which call within one call of the metric is the GT's, from 0.
        expand: give the GT's features (a list of tensors) once for each candidate, for a metric that concatenates them.
    """

    def __init__(self, run, turn, expand=False):
        self.run, self.turn, self.expand = run, turn, expand
        self.gt = self.features = None

    def begin(self, gt, count):
        """Before each call of the metric: (1, 3, H, W) GT and the number of candidates."""
        if gt is not self.gt:
            self.gt, self.features = gt, None
        self.calls, self.count = 0, count

    def __call__(self, images):
        self.calls += 1
        if self.calls - 1 != self.turn:
            return self.run(images)
        if self.features is None:
            self.features = self.run(images[:1])
        return [feature.expand(self.count, -1, -1, -1) for feature in self.features] if self.expand else self.features


class PlainMetric:
    """Any metric: pyiqa's call on the batch. Called with (B, 3, H, W) images, and with a (1, 3, H, W) GT if it compares with one.

    Attributes:
        own_precision: whether it runs in the precision of its weights, whatever the suite's.
        foreign: whether its code is the user's.
    """

    own_precision = foreign = False

    def __init__(self, metric):
        self.metric = metric

    def __call__(self, images, gt=None):
        return self.metric(images) if gt is None else self.metric(images, gt.expand_as(images))

    def forget(self):
        """After a group: let go of what was kept for it."""

    @property
    def at_hand(self):
        """Whether the next scores were already computed beside another metric's."""
        return False


class FullReference(PlainMetric):
    """A metric that compares with the GT, through a backbone that is seen through `RememberedGt`."""

    def __init__(self, metric, owner, attribute, turn, expand=False):
        super().__init__(metric)
        self.remembered = RememberedGt(getattr(owner, attribute), turn, expand)
        setattr(owner, attribute, self.remembered)

    def __call__(self, images, gt):
        self.remembered.begin(gt, len(images))
        # Where its features come once for each candidate the GT must, too; elsewhere one broadcasts.
        return self.metric(images, gt.expand_as(images) if self.remembered.expand else gt)

    def forget(self):
        self.remembered.begin(None, 0)


class GtAnalysedOnce(PlainMetric):
    """FSIM and VSI: pyiqa's functions accept a GT of batch 1 and then analyse it once, a third of their time."""

    def __call__(self, images, gt):
        return getattr(self.metric.net, type(self.metric.net).__name__.lower())(images, gt)


class Afine(PlainMetric):
    """A-FINE's term of a batch: CLIP sees candidates together and the GT once; each candidate's heads are pyiqa's own call.

    Attributes:
        naturalness: another `Afine` with the same weights that scores naturalness; its scores are a by-product of fidelity's features.
    """

    def __init__(self, metric):
        super().__init__(metric)
        self.net, self.term = metric.net, metric.net.model_type
        self.encode, self.net.clip_model.encode_image = self.net.clip_model.encode_image, lambda image: self._features.pop(0)
        self.naturalness, self.ready, self.gt, self.of_gt = None, [], None, None

    def __call__(self, images, gt=None):
        if self.ready:
            scores, self.ready = self.ready[: len(images)], self.ready[len(images) :]
            return torch.cat(scores)
        if gt is not self.gt:
            self.gt, self.of_gt = gt, self._encode(gt)
        tokens, layers = self._encode(images)
        scores = []
        for index, image in enumerate(images.split(1)):
            own = tokens[index : index + 1], [layer[index : index + 1] for layer in layers]
            scores.append(self._score(self.term, image, gt, own))
            if self.naturalness:
                self.naturalness.ready.append(self._score(self.naturalness.term, image, gt, own))
        return torch.cat(scores)

    def _encode(self, images):
        return self.encode(normalize(images, self.net.mean, self.net.std))

    def _score(self, term, image, gt, own):
        self.net.model_type = term
        self._features = [own, own if gt is None else self.of_gt]  # without a GT pyiqa takes the image for it, and reads nothing of it
        return self.metric(image.clone(), *([] if gt is None else [gt.clone()])).reshape(1)

    def forget(self):
        self.ready, self.gt, self.of_gt = [], None, None

    @property
    def at_hand(self):
        return bool(self.ready)


def _lean_clipiqa(metric):
    """The two learnt prompts are embedded once, not at every call."""
    learner = getattr(metric.net, "prompt_learner", None)
    if learner is not None:
        embed = learner.forward

        @cache
        def embed_in_full_precision(clip_model):
            with torch.autocast(learner.ctx.device.type, enabled=False):
                return embed(clip_model)

        learner.forward = embed_in_full_precision
    return PlainMetric(metric)


class _ReadBlocks(torch.nn.Module):
    """MANIQA's ViT up to the last block that is read, a few crops at a time."""

    def __init__(self, vit):
        super().__init__()
        self.vit, self.features = vit, None
        for block in vit.blocks:
            block._forward_hooks.clear()  # MANIQA collects every block's output

    def forward(self, crops):
        parts = [
            torch.cat(
                self.vit.forward_intermediates(part, indices=[6, 7, 8, 9], stop_early=True, output_fmt="NLC", intermediates_only=True), 2
            )
            for part in crops.split(MANIQA_CROPS_TOGETHER)
        ]
        self.features = torch.cat(parts)

    def take(self, _):
        features, self.features = self.features, None
        return features


def _lean_maniqa(metric):
    """Blocks 7 to 10 of the ViT are read, so 11 and 12 are not run; attention over channels is fused; one image at a time."""
    net = metric.net
    net.vit = _ReadBlocks(net.vit)
    net.extract_feature = net.vit.take
    for block in [*net.tablock1, *net.tablock2]:
        block.forward = _fused_attention(block)
    return OneByOne(metric)


def _fused_attention(block):
    def forward(x):
        parts = []
        for part in x.split(MANIQA_CROPS_TOGETHER):
            query, key, value = (project(part)[:, None] for project in (block.c_q, block.c_k, block.c_v))
            attended = F.scaled_dot_product_attention(query, key, value, scale=block.norm_fact)[:, 0]
            parts.append(attended.transpose(1, 2).reshape(part.shape) + part)
        return torch.cat(parts)

    return forward


class OneByOne(PlainMetric):
    """A metric that cuts each image into so many crops that a batch of images is only more memory."""

    def __call__(self, images):
        return torch.cat([self.metric(image).flatten() for image in images.split(1)])


class ForeignMetric(PlainMetric):
    """A metric of the user's code. It gets copies: what it does to its images in place, the next metric does not see."""

    foreign = True

    def __call__(self, images, gt=None):
        return torch.as_tensor(super().__call__(images.clone(), None if gt is None else gt.clone()))


def lean(metric, others=()):
    """`metric` (pyiqa's InferenceModel) as a function of (images (B, 3, H, W)[, gt (1, 3, H, W)]) → B scores, repeated work taken out.

    Args:
        metric: is changed in place.
        others: what this function gave for the suite's other metrics; an A-FINE with the same weights shares its features.
    """
    net, kind = metric.net, type(metric.net).__name__
    if is_foreign(type(net)):
        return ForeignMetric(metric)
    if kind in ("LPIPS", "DISTS"):
        net.to(memory_format=torch.channels_last)  # a fifth off VGG's time on a CPU
    if kind == "LPIPS":
        return FullReference(metric, net.net, "forward", turn=0)
    if kind in ("LpipsForm", "DistsForm"):
        return FullReference(metric, net.features, "forward", turn=1)
    if kind == "DISTS":
        return FullReference(metric, net, "forward_once", turn=1)
    if kind == "CFANet" and net.use_ref and net.crops == 1 and type(net.semantic_model).__name__ == "FeatureListNet":
        return FullReference(metric, net.semantic_model, "forward", turn=1, expand=True)
    if kind in ("FSIM", "VSI"):
        return GtAnalysedOnce(metric)
    if kind == "AFINE":
        return _pair(Afine(metric), [other for other in others if isinstance(other, Afine)])
    if kind == "CLIPIQA":
        return _lean_clipiqa(metric)
    if kind == "MANIQA":
        return _lean_maniqa(metric)
    if kind == "QAlign":
        from dp2osr.rewards.qalign import QAlignMetric

        return QAlignMetric(metric)
    return PlainMetric(metric)


def _pair(afine, others):
    """`afine`, if it scores naturalness, as a by-product of another term's pass through the same weights."""
    weights = afine.net.state_dict()
    for other in others:
        theirs = other.net.state_dict()
        if afine.term == "afine_nr" and all(torch.equal(weights[key], theirs[key]) for key in weights):
            other.naturalness = afine
    return afine
