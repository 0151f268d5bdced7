"""Which of pyiqa's metrics draw random numbers when they score: all that can be built with random weights are watched once.

    python bench/drawing_metrics.py                    # one line a metric, then how many drew
    python bench/drawing_metrics.py --metrics liqe     # these alone

A metric that draws is to say so in the reward YAML (`draws: true`, docs/rewards.md). Those that cannot be built here read their
parameters from a file that must be fetched, or a model from a hub.
"""

import argparse
import importlib
import io
import sys
import tempfile
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from unittest import mock

import torch
from random_metrics import random_weights, untrained, watching_draws

FEW_CROPS = {"maniqa": {"test_sample": 2}, "tres": {"test_sample": 2}}
OF_FOLDERS = ("fid", "inception_score")
OF_GIGABYTES = ("qalign", "qrealign", "compare2score", "liqe_mix")  # liqe_mix is liqe with 495 prompts in one batch


@contextmanager
def any_weights():
    """`random_weights` for the other architectures of pyiqa, too: what they load is left out, whatever CLIP they want is built."""
    import pyiqa.archs
    import torchvision

    path, modules = list(sys.path), []
    for file in sorted(Path(pyiqa.archs.__file__).parent.glob("*_arch.py")):
        try:
            modules.append(importlib.import_module(f"pyiqa.archs.{file.stem}"))
        except ImportError as error:
            print(f"{file.stem}: {error}")
    sys.path[:] = path  # one of them puts its own folder before all others
    with random_weights(), ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for module in modules:  # LIQE writes the features of its prompts there
            if hasattr(module, "DEFAULT_CACHE_DIR"):
                stack.enter_context(mock.patch.object(module, "DEFAULT_CACHE_DIR", folder))
        for module in modules:
            for name, stand_in in (("load_pretrained_network", lambda *_, **__: None), ("load", clip_of)):
                if hasattr(module, name) and module.__name__ != "pyiqa.archs.afine_arch":
                    stack.enter_context(mock.patch.object(module, name, stand_in))
        for name in ("resnet18", "resnet50", "vgg16", "alexnet", "squeezenet1_1"):
            stack.enter_context(mock.patch.object(torchvision.models, name, untrained(getattr(torchvision.models, name))))
        yield


def clip_of(name, *_, **__):
    """A CLIP of the name's image encoder; the large one with few layers."""
    from pyiqa.archs.clip_model import CLIP

    sizes = {
        "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
        "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
        "ViT-L/14": (768, 224, 4, 1024, 14, 77, 49408, 768, 12, 4),
    }
    return CLIP(*sizes.get(name, (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12))).eval()


def draws(name, gt, image):
    """Whether a metric draws; raises what the building or the call of it raises."""
    import pyiqa

    options = next((options for start, options in FEW_CROPS.items() if name.startswith(start)), {})
    with redirect_stdout(io.StringIO()):
        metric = pyiqa.create_metric(name, device=torch.device("cpu"), **options)
        with watching_draws() as drawn:
            metric(image.clone(), *([gt.clone()] if metric.metric_mode == "FR" else []))
            return drawn()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", nargs="+", help="pyiqa names (default: all that score an image)")
    args = parser.parse_args()
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    gt = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    found = {True: [], False: [], None: []}
    with any_weights():
        for name in args.metrics or [name for name in DEFAULT_CONFIGS if not name.startswith(OF_FOLDERS + OF_GIGABYTES)]:
            try:
                drew = draws(name, gt, 0.9 * gt)
                print(f"{name:24} {'DRAWS' if drew else 'draws nothing'}", flush=True)
            except Exception as error:
                drew = None
                print(f"{name:24} cannot be tried here ({' '.join(str(error).split())[:80]})", flush=True)
            found[drew].append(name)
    print(f"{len(found[True])} draw {found[True]}, {len(found[False])} draw nothing, {len(found[None])} cannot be tried here")


if __name__ == "__main__":
    main()
