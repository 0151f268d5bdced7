"""A suite of metrics, mostly pyiqa's, that scores all candidates of a group."""

import inspect
import io
import logging
import os
import shutil
from contextlib import contextmanager, redirect_stdout
from pickle import UnpicklingError

import numpy as np
import torch

from dp2osr.errors import UserError, is_full_disk
from dp2osr.places import ROOT
from dp2osr.rewards.batches import Batches
from dp2osr.rewards.config import nearest
from dp2osr.rewards.draws import noticing_draws, one_seeded_image_at_a_time, random_state_kept
from dp2osr.rewards.own import code_hash, described, import_modules, is_foreign, registered
from dp2osr.rewards.reuse import lean

BRISQUE_PARAMETERS = "preset/metrics/brisque.safetensors"


class LocalMetric(torch.nn.Module):
    """A metric of this repository with the attributes of pyiqa's: `network` maps (B, 3, H, W) in [0, 1], and GTs if FR, to (B,).

    Attributes:
        weights: hash of the weights, where they are made anew now and then: scores of other weights are computed again.
    """

    def __init__(self, network, lower_better, mode="NR", weights=None):
        super().__init__()
        self.net, self.lower_better, self.metric_mode, self.weights = network.eval(), lower_better, mode, weights

    @torch.no_grad()
    def forward(self, images, *gt):
        return self.net(images, *gt)


def _brisque(parameters):
    from dp2osr.rewards.brisque import Brisque

    return LocalMetric(Brisque(ROOT / parameters), lower_better=True)


def _dp2o_rank(weights="preset/metrics/tiny_rank.safetensors"):
    from dp2osr.rewards.rank_metric import load_rank_metric

    return LocalMetric(load_rank_metric(ROOT / weights), lower_better=False)


def _dp2o_naturalness(weights="preset/metrics/naturalness.safetensors"):
    from dp2osr.rewards.efficientnet import content_hash
    from dp2osr.rewards.naturalness import load_naturalness

    network = load_naturalness(ROOT / weights)
    return LocalMetric(network, lower_better=False, weights=content_hash(network.head.state_dict()))


def _perceptual(form, network):
    def build(weights=None):
        from dp2osr.rewards import perceptual

        path = weights and ROOT / weights
        return LocalMetric(getattr(perceptual, form)(network, path), lower_better=True, mode="FR")

    return build


LOCAL_METRICS = {
    "dp2o_rank": _dp2o_rank,
    "dp2o_naturalness": _dp2o_naturalness,
    "dp2o_lpips": _perceptual("lpips_form", "efficientnet_lite0"),
    "dp2o_dists": _perceptual("dists_form", "efficientnet_lite0"),
    # On another network, for evaluation alone: a model that was trained with the two above is judged by others.
    "dp2o_lpips2": _perceptual("lpips_form", "efficientnet_lite2"),
    "dp2o_dists2": _perceptual("dists_form", "efficientnet_lite2"),
}


def _local_builder(spec):
    """The builder of a metric that needs no pyiqa weights: a name in `LOCAL_METRICS`, and `brisque` where its parameters are a file."""
    if spec.name == "brisque":
        return _brisque if "parameters" in spec.options else None
    return LOCAL_METRICS.get(spec.name)


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
        drawing: names of the metrics that were seen to draw random numbers; their draw for an image follows from (`seed`, image id,
            candidate), and no other random number of the process changes.

    Raises:
        UserError: unknown metric (nearest names shown), a column of the score table, an option that it does not have, or weights or a
            package of it that are not on this machine.
    """

    def __init__(self, specs, device="cpu", batches=None, precision="fp32", weights_dir=None, compiled=False):
        if compiled:
            check_compiler(device)
        self.specs = {}
        for spec in specs:
            if self.specs.setdefault(spec.name, spec) != spec:
                raise UserError(f"metric '{spec.name}' is asked for with {self.specs[spec.name].options} and with {spec.options}; keep one")
        self.device, self.precision, self.compiled = torch.device(device), precision, compiled
        self.batches = batches or Batches(8, self.device)
        with quiet_imports():
            metrics = {name: create_metric(spec, self.device, weights_dir) for name, spec in self.specs.items()}
        self.lower_better = {name: bool(metric.lower_better) for name, metric in metrics.items()}
        self.modes = {name: metric.metric_mode for name, metric in metrics.items()}
        self.code = {name: code_hash(type(metric.net)) for name, metric in metrics.items() if is_foreign(type(metric.net))}
        self.weights = {
            name: getattr(metric, "weights", None) if isinstance(metric, LocalMetric) else None for name, metric in metrics.items()
        }
        self.seed, self.drawing = 0, set()
        self._metrics = {}
        for name, metric in metrics.items():
            self._metrics[name] = lean(metric, self._metrics.values())
            has_weights = any(True for _ in metric.net.parameters())  # a formula has none, and gains nothing
            if compiled and has_weights and not self._metrics[name].own_precision:
                compile_network(metric.net)

    def describe(self):
        """name → {"lower_better", "mode", "options", "precision", "code", "weights"}, for the score table's metadata.

        fp32 goes without saying, so does the precision of a metric that has its own; "code" is there for a metric of the user's, "weights"
        for a metric whose weights are made anew now and then.
        """
        about = {}
        for name, spec in self.specs.items():
            about[name] = {"lower_better": self.lower_better[name], "mode": self.modes[name], "options": spec.options}
            if self.precision != "fp32" and not self._metrics[name].own_precision:
                about[name]["precision"] = self.precision
            if self.code.get(name):
                about[name]["code"] = self.code[name]
            if self.weights[name]:
                about[name]["weights"] = self.weights[name]
        return about

    def networks(self):
        """name → the metric as `lean` gives it."""
        return dict(self._metrics)

    def score(self, images, gt=None, image_id="", candidates=None, names=None, strict=True):
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
    def _call(self, name, images, gt, image_id, numbers):
        metric, size = self._metrics[name], f"{images.shape[-1]} x {images.shape[-2]}"
        what = f"metric '{name}'" + (f" in {self.precision}" if self.precision != "fp32" else "")
        reference = () if gt is None else (gt,)

        def scores_of(part):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                values = metric(part, *reference).flatten()
            if len(values) != len(part):
                raise UserError(f"metric '{name}' gives {len(values)} scores for {len(part)} images; it must return one an image, (B,)")
            return values

        try:
            if name not in self.drawing:
                with noticing_draws() as drawn:
                    values = self.batches.run(what, images, scores_of, measure=not metric.at_hand)
                    if not drawn():
                        return values
                self.drawing.add(name)
            with random_state_kept():
                seeded = one_seeded_image_at_a_time(scores_of, self.seed, image_id, iter(numbers))
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


COMPILED_BLOCKS = ("Block", "ResidualAttentionBlock", "SwinTransformerBlock")  # of transformers: what is around them changes


def compile_network(net):
    """`torch.compile`, in place, of a transformer's blocks, or of the whole network where it has none."""
    blocks = [module for module in net.modules() if type(module).__name__ in COMPILED_BLOCKS]
    for module in blocks or [net]:
        module.compile()


def check_compiler(device):
    """Raise `UserError` where `torch.compile` has nothing to compile with."""
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    if torch.device(device).type == "cpu" and not any(name and shutil.which(name) for name in compilers):
        raise UserError("--compile: needs a C++ compiler on a CPU (Debian: apt install g++ python3-dev); leave it out, or install one")


def bad_score(name, values, image_id, candidates=None):
    """What is wrong with a metric's (M,) scores of an image, or None: the first that is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        number = bad[0] if candidates is None else candidates[bad[0]]
        where = f"image '{image_id}', candidate {number}" + (" (the GT)" if number == -1 else "")
        return f"metric '{name}' gives {values[bad[0]]} for {where}; look at that image, or leave the metric out"
    return None


def check_modes(config, suite):
    """Refuse a config that lists an NR metric under `fr` or an FR one under `nr` (UserError)."""
    for mode, specs in (("FR", config.fr), ("NR", config.nr)):
        for spec in specs:
            actual = suite.modes.get(spec.name, mode)
            if actual != mode:
                raise UserError(f"reward config '{config.name}': '{spec.name}' is a {actual} metric; list it under '{actual.lower()}'")


def create_metric(spec, device, weights_dir=None):
    """A metric of this repository, pyiqa's or, through `spec.imports`, the user's; see `MetricSuite`, also for what it raises."""
    if spec.better:
        problem = f"metric '{spec.name}' is a column of a score table ('better: {spec.better}' in the YAML) and cannot be computed"
        raise UserError(f"{problem}; leave it out here")
    import_modules(spec.imports)
    builder = _local_builder(spec)
    if builder:
        return _check_options(spec, builder)(**spec.options).to(device)
    import pyiqa
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    from dp2osr.rewards.weight_files import metric_weights, metrics_folder

    if spec.name not in DEFAULT_CONFIGS:
        own = "for a metric of your own see docs/OWN_METRICS.md"
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
        problem = _own_problem(spec, error) if registered(kind) else _problem(spec, kind, error, device)
        if problem is None:
            raise
        raise UserError(f"metric '{spec.name}'{problem}") from None


def _checked_entry(name, entry):
    """pyiqa's name of a metric's network; `UserError` where the entry, the user's own, lacks something that pyiqa reads."""
    kind = entry["metric_opts"].get("type") if isinstance(entry, dict) and isinstance(entry.get("metric_opts"), dict) else None
    if not kind or entry.get("metric_mode") not in ("FR", "NR"):
        form = "{'metric_opts': {'type': CLASS}, 'metric_mode': 'FR' or 'NR', 'lower_better': True or False}"
        raise UserError(f"metric '{name}': its entry in pyiqa's DEFAULT_CONFIGS must be {form}; see docs/OWN_METRICS.md")
    return kind


def _own_problem(spec, error):
    return f", a metric of your own, cannot be built with the options {spec.options}: {described(error)}"


def _problem(spec, kind, error, device):
    """What a user can do about an error in the building of pyiqa's metric; None for one that is nobody's mistake."""
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, ImportError):
        return f" needs a package that this environment lacks ({reason}); install it, or leave the metric out"
    if isinstance(error, TypeError):
        return f": pyiqa refuses the options {spec.options} ({reason})"
    if isinstance(error, torch.OutOfMemoryError):
        return f": out of memory on {device} while its network was built; use fewer metrics at a time"
    if isinstance(error, KeyError) and "registry" in reason:
        return f": {reason}; its class must be registered with pyiqa's ARCH_REGISTRY, see docs/OWN_METRICS.md"
    if isinstance(error, (RuntimeError, EOFError, KeyError, UnpicklingError)):
        return f": a weights file of it cannot be read ({reason}); fetch it again"
    if isinstance(error, OSError):
        return f": its weights are not here and cannot be fetched ({reason}); {_ways_without(spec.name, kind)}"
    return None


def _ways_without(name, kind):
    """What to do about a metric whose weights are not on this machine."""
    from dp2osr.rewards.weight_files import FROM_HUB

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


def _check_options(spec, builder):
    known = inspect.signature(builder).parameters
    for option in spec.options:
        if option not in known:
            raise UserError(f"metric '{spec.name}' has no option '{option}'{nearest(option, known)}")
    return builder
