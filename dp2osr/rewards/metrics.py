"""A suite of metrics, mostly pyiqa's, that scores all candidates of a group."""

from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dp2osr.device import check_compiler, computes_in_tf32, tf32_kept
from dp2osr.errors import UserError
from dp2osr.rewards.batches import Batches
from dp2osr.rewards.building import LocalMetric, create_metric, quiet_imports
from dp2osr.rewards.config import MetricSpec, RewardConfig
from dp2osr.rewards.draws import one_seeded_image_at_a_time, random_state_kept
from dp2osr.rewards.own import code_hash, described, is_foreign
from dp2osr.rewards.reuse import GroupMetric, for_groups


@cache
def pyiqa_version() -> str:
    """Version string of the installed pyiqa, looked up once: scores of one metric may differ between versions."""
    return version("pyiqa")


class MetricSuite:
    """Several metrics, built once, each scoring all candidates of a group.

    Args:
        specs: `MetricSpec`s; a name given twice must have the same options.
        device: where the metrics run.
        batches: `Batches`, how many images are scored together; 8 by default.
        precision: "fp32", or "bf16": the networks under autocast.
        compiled: whether the networks go through `torch.compile`, at the first image of each size; scores change by rounding alone.
        weights_dir: folder of `scripts/fetch_metrics.py`; None for what the environment variable DP2OSR_METRICS_DIR says, else the
            libraries' own places.

    Attributes:
        specs: name → `MetricSpec`; lower_better: name → bool; modes: name → "FR" | "NR"; both as pyiqa says.
        code: name → hash of the file, for a metric of the user's code.
        drawing: names of the metrics that draw random numbers, as their `MetricSpec`s say; their draw for an image follows from (`seed`,
            image id, candidate). No other random number of the process changes.

    Raises:
        UserError: unknown metric (nearest names shown), a column of the score table, an option that it does not have, or weights or a
            package of it that are not on this machine.
    """

    def __init__(
        self,
        specs: Iterable[MetricSpec],
        device: str | torch.device = "cpu",
        batches: Batches | None = None,
        precision: str = "fp32",
        weights_dir: str | Path | None = None,
        compiled: bool = False,
    ) -> None:
        if compiled:
            check_compiler(device)
        self.specs: dict[str, MetricSpec] = {}
        for spec in specs:
            if self.specs.setdefault(spec.name, spec) != spec:
                raise UserError(f"metric '{spec.name}' is asked for with {self.specs[spec.name].options} and with {spec.options}; keep one")
        self.device, self.precision, self.compiled = torch.device(device), precision, compiled
        self.tf32 = computes_in_tf32(device)
        self.batches = batches or Batches(8, self.device)
        with quiet_imports():
            metrics = {name: create_metric(spec, self.device, weights_dir) for name, spec in self.specs.items()}
        self.lower_better = {name: bool(metric.lower_better) for name, metric in metrics.items()}
        self.modes = {name: metric.metric_mode for name, metric in metrics.items()}
        self.code = {name: code_hash(type(metric.net)) for name, metric in metrics.items() if is_foreign(type(metric.net))}
        self.weights = {
            name: getattr(metric, "weights", None) if isinstance(metric, LocalMetric) else None for name, metric in metrics.items()
        }
        self.seed, self.drawing = 0, {name for name, spec in self.specs.items() if spec.draws}
        self._metrics: dict[str, GroupMetric] = {}
        for name, metric in metrics.items():
            self._metrics[name] = for_groups(metric)
            has_weights = any(True for _ in metric.net.parameters())  # a formula has none, and gains nothing
            if compiled and has_weights and not self._metrics[name].own_precision:
                compile_network(metric.net)

    def describe(self) -> dict[str, dict[str, Any]]:
        """name → {"lower_better", "mode", "options", "draws", "precision", "tf32", "code", "weights"}, for the score table's metadata.

        fp32 goes without saying, so does the precision of a metric that has its own; "draws" and "tf32" are there where they are true,
        "code" for a metric of the user's, "weights" for a metric whose weights are made anew now and then.
        """
        about = {}
        for name, spec in self.specs.items():
            about[name] = {"lower_better": self.lower_better[name], "mode": self.modes[name], "options": spec.options}
            if spec.draws:
                about[name]["draws"] = True
            if self.precision != "fp32" and not self._metrics[name].own_precision:
                about[name]["precision"] = self.precision
            if self.tf32:
                about[name]["tf32"] = True
            if self.code.get(name):
                about[name]["code"] = self.code[name]
            if self.weights[name]:
                about[name]["weights"] = self.weights[name]
        return about

    def networks(self) -> dict[str, GroupMetric]:
        """name → the metric as `for_groups` gives it."""
        return dict(self._metrics)

    def score(
        self,
        images: torch.Tensor,
        gt: torch.Tensor | None = None,
        image_id: str = "",
        candidates: Sequence[int | str] | None = None,
        names: Collection[str] | None = None,
        strict: bool = True,
    ) -> dict[str, np.ndarray]:
        """Raw scores of a group.

        Args:
            images: (M, 3, H, W) in [0, 1].
            gt: (3, H, W) in [0, 1], or None: then only the NR metrics are scored.
            image_id, candidates: what an error names: the image, and M candidate numbers (default 0 … M − 1; −1 is the GT).
            names: metrics to score (default all).
            strict: whether a NaN or infinite score is an error, or returned as it is.

        Returns:
            name → (M,) float64 numpy array.

        Raises:
            UserError: NaN or infinite score (metric, image and candidate named), a size that a metric cannot score,
                or more memory than is allowed.
        """
        images = images.to(self.device)
        gt = None if gt is None else gt.to(self.device)[None]
        numbers = range(len(images)) if candidates is None else candidates
        scores = {}
        try:
            for name, mode in self.modes.items():
                if (mode == "NR" or gt is not None) and (names is None or name in names):
                    values = self._call(name, images, gt if mode == "FR" else None, image_id, numbers).double().flatten()
                    scores[name] = values.cpu().numpy()
                    problem = bad_score(name, scores[name], image_id, numbers)
                    if problem and strict:
                        raise UserError(problem)
        finally:
            for metric in self._metrics.values():
                metric.forget()
        return scores

    @torch.no_grad()
    def _call(self, name: str, images: torch.Tensor, gt: torch.Tensor | None, image_id: str, numbers: Sequence[int | str]) -> torch.Tensor:
        metric, size = self._metrics[name], f"{images.shape[-1]} x {images.shape[-2]}"
        what = f"metric '{name}'" + (f" in {self.precision}" if self.precision != "fp32" else "")
        reference = () if gt is None else (gt,)

        def scores_of(part: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                values = metric(part, *reference).flatten()
            if len(values) != len(part):
                raise UserError(f"metric '{name}' gives {len(values)} scores for {len(part)} images; it must return one an image, (B,)")
            return values

        try:
            seeded = one_seeded_image_at_a_time(scores_of, self.seed, image_id, iter(numbers)) if name in self.drawing else scores_of
            with random_state_kept(), tf32_kept():
                return self.batches.run(what, images, seeded)
        except torch.OutOfMemoryError:
            advice = "lower --batch_size or set --memory_limit"
            raise UserError(f"metric '{name}': out of memory on images of {size}; {advice}") from None
        except UserError:
            raise
        except Exception as error:
            if metric.foreign:
                raise UserError(
                    f"metric '{name}', a metric of your own, fails on image '{image_id}' of {size}: {described(error)}"
                ) from None
            if not isinstance(error, (AssertionError, RuntimeError, ValueError, IndexError)):
                raise
            reason = " ".join(str(error).split())
            if self.compiled and ("compile" in reason.lower() or "inductor" in reason.lower()):
                raise UserError(f"{what}: torch.compile fails ({reason[:300]}); leave --compile out") from None
            problem = f"metric '{name}' cannot score image '{image_id}' of {size} pixels ({reason})"
            raise UserError(f"{problem}; it may need a bigger image, leave the metric out") from None


def compile_network(net: torch.nn.Module) -> None:
    """`torch.compile`, in place, of a transformer's blocks, or of the whole network where it has none."""
    from pyiqa.archs import afineclip_model, clip_model, topiq_swin
    from timm.models.vision_transformer import Block

    kinds = (Block, clip_model.ResidualAttentionBlock, afineclip_model.ResidualAttentionBlock, topiq_swin.SwinTransformerBlock)
    blocks = [module for module in net.modules() if isinstance(module, kinds)]  # what is around them changes from image to image
    for module in blocks or [net]:
        module.compile()


def bad_score(name: str, values: np.ndarray, image_id: str, candidates: Sequence[int | str] | np.ndarray | None = None) -> str | None:
    """What is wrong with a metric's (M,) scores of an image, or None: the first that is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        number = bad[0] if candidates is None else candidates[bad[0]]
        where = f"image '{image_id}', candidate {number}" + (" (the GT)" if number == -1 else "")
        return f"metric '{name}' gives {values[bad[0]]} for {where}; look at that image, or leave the metric out"
    return None


def bounds_of(config: RewardConfig, suite: MetricSuite, gt: torch.Tensor | None, image_id: str) -> dict[str, np.ndarray]:
    """{NR metric: (1,) raw score of the GT (3, H, W) itself} where the reward is bounded by it, NaN where it is not finite; else {}."""
    if gt is None or not config.bounded:
        return {}
    return suite.score(gt[None], None, image_id, [-1], config.bounded, strict=False)


def check_modes(config: RewardConfig, suite: MetricSuite) -> None:
    """Refuse a config that lists an NR metric under `fr` or an FR one under `nr` (UserError)."""
    for mode, specs in (("FR", config.fr), ("NR", config.nr)):
        for spec in specs:
            actual = suite.modes.get(spec.name, mode)
            if actual != mode:
                raise UserError(f"reward config '{config.name}': '{spec.name}' is a {actual} metric; list it under '{actual.lower()}'")
