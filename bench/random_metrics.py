"""pyiqa's networks with random weights: the arithmetic and the cost of the real ones, without the download."""

import random
import tempfile
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from dp2osr.rewards.draws import random_state_kept


def untrained(build):
    return lambda *args, weights=None, pretrained=None, **kwargs: build(*args, **kwargs)


def clip_rn50(*_, **__):
    from pyiqa.archs import clip_model

    return clip_model.CLIP(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12).eval()


def clip_vit_b_32():
    return deepcopy(drawn_clip_vit_b_32())


@cache
def drawn_clip_vit_b_32():
    from pyiqa.archs import afineclip_model

    return afineclip_model.AFINECLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).eval()


def afine_file(folder):
    from pyiqa.archs import afine_arch

    path = Path(folder) / "afine.pth"
    if path.exists():
        return str(path)
    parts = {
        "finetuned_clip": clip_vit_b_32(),
        "natural": afine_arch.AFINEQhead(),
        "fidelity": afine_arch.AFINEDhead(),
        "fidelity_scale": afine_arch.AFINENLM_FR_Fit_with_limit(yita3=0.5, yita4=0.15),
        "natural_scale": afine_arch.AFINENLM_NR_Fit(),
        "adapter": afine_arch.AFINELearnLambda(),
    }
    torch.save({name: part.state_dict() for name, part in parts.items()}, path)
    return str(path)


@contextmanager
def random_weights(seed=0):
    """Within, `pyiqa.create_metric` builds LPIPS, DISTS, TOPIQ, A-FINE, MANIQA, MUSIQ and CLIP-IQA+ without weights files,
    the same network at every call."""
    import pyiqa
    import timm
    import torchvision
    from pyiqa.archs import (
        afine_arch,
        clipiqa_arch,
        dists_arch,
        lpips_arch,
        maniqa_arch,
        musiq_arch,
        topiq_arch,
    )

    def seeded(*args, **kwargs):
        torch.manual_seed(seed)
        return create_metric(*args, **kwargs)

    create_metric = pyiqa.create_metric
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        replace = lambda owner, name, value: stack.enter_context(mock.patch.object(owner, name, value))  # noqa: E731
        replace(pyiqa, "create_metric", seeded)
        for name in ("vgg16", "alexnet"):
            replace(torchvision.models, name, untrained(getattr(torchvision.models, name)))
        replace(timm, "create_model", untrained(timm.create_model))
        for module in (lpips_arch, dists_arch, topiq_arch, maniqa_arch, musiq_arch):
            replace(module, "load_pretrained_network", lambda *_, **__: None)
        replace(clipiqa_arch, "load", clip_rn50)
        replace(clipiqa_arch, "load_file_from_url", lambda url: "")
        load = torch.load
        replace(
            clipiqa_arch.torch,
            "load",
            lambda path, *args, **kwargs: (
                torch.randn(2, 16, 512) * 0.02 if path == "" else load(path, *args, **{"mmap": str(path).startswith(folder), **kwargs})
            ),  # pyiqa reads A-FINE's file once for each of its parts
        )
        replace(afine_arch, "load", lambda *_, **__: (clip_vit_b_32(), None))
        replace(afine_arch, "load_file_from_url", lambda url: afine_file(folder))
        yield


@contextmanager
def watching_draws():
    """Within, `drawn()` of what is yielded says whether a random number was drawn; the generators are left as they were."""

    def states():
        numpy = np.random.get_state()  # noqa: NPY002 (whatever a metric draws from)
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return [state.numpy().tobytes() for state in [torch.random.get_rng_state(), *cuda]], numpy[1].tobytes(), numpy[2], random.getstate()

    with random_state_kept():
        before = states()
        yield lambda: states() != before
