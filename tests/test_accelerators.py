"""What is asked of an accelerator, by one that is made up; TF32; precision from the launcher. No GPU has run these lines."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import settings_with
from labelling import gt_path, labeller, store  # noqa: F401 - fixtures
from PIL import Image

from dp2osr import device as devices
from dp2osr.backbones.tiles import WHOLE
from dp2osr.device import asked_precision, compute_device, computes_in_tf32, set_tf32, tf32_kept, usable_precision, without_tf32
from dp2osr.errors import UserError
from dp2osr.launch import count_processes
from dp2osr.rewards.batches import Batches
from dp2osr.rewards.config import MetricSpec
from dp2osr.rewards.label import LazyDecoder
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.sampling import decode
from dp2osr.sampling.decode import decode_group
from dp2osr.sampling.memory import free_bytes, peak_bytes
from dp2osr.sampling.sampler import earlier_values
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.sampling.speed import seconds_of
from dp2osr.sampling.store import CandidateGroup


class Accelerator:
    """Stands in for `torch.accelerator`: two devices of a kind, and what was asked of them."""

    def __init__(self, kind):
        self.kind, self.asked, self.peak = kind, [], 0

    def is_available(self):
        return True

    def current_accelerator(self, check_available=False):
        return torch.device(self.kind)

    def device_count(self):
        return 2

    def set_device_index(self, index):
        self.asked.append(("index", index))

    def synchronize(self):
        self.asked.append("synchronize")

    def empty_cache(self):
        self.asked.append("empty_cache")

    def get_memory_info(self, device):
        return 50, 100

    def memory_reserved(self, device):
        return 30

    def memory_allocated(self, device):
        return 10

    def reset_peak_memory_stats(self, device):
        self.asked.append("reset")

    def max_memory_allocated(self, device):
        return 10 + 7


@pytest.fixture(params=["cuda", "xpu", "npu"])
def accelerator(request, monkeypatch):
    if request.param == "npu":  # torch_npu renames the device that PyTorch keeps for others
        request.param = "privateuseone"
    made = Accelerator(request.param)
    monkeypatch.setattr(torch, "accelerator", made)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    return made


def test_each_process_of_a_machine_takes_a_device_of_any_kind(accelerator, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert compute_device() == torch.device(accelerator.kind, 1) and accelerator.asked == [("index", 1)]
    assert count_processes(threads=8) == 2


def test_memory_and_time_are_asked_of_any_accelerator(accelerator):
    device = torch.device(accelerator.kind, 0)
    assert devices.has_own_memory(device) and free_bytes(device) == 50 + 30 - 10
    seconds_of(lambda: None)
    devices.give_back_cached()
    assert accelerator.asked == ["synchronize", "empty_cache"]
    with devices.peak_memory(device) as peak:
        pass
    assert peak.bytes == 17 and devices.held_bytes(device) == 10


def test_the_memory_of_mps_is_the_hosts(monkeypatch, sd2):
    assert not devices.has_own_memory("mps") and 0 < free_bytes("mps") < math.inf
    settings = SimpleNamespace(guidance_scale=2.0, tiling=WHOLE, taylorseer_interval=1)
    there = {name: getattr(sd2, name) for name in dir(type(sd2)) if not name.startswith("__") and name != "denoiser"}
    fake = SimpleNamespace(**{**there, **vars(sd2), "device": torch.device("mps")})
    assert peak_bytes(fake, settings, (32, 32), 4, 1, 1)["device"] == {}


# -- TF32 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def flags(monkeypatch):
    """PyTorch's two flags as they were, at the end; a CUDA device that has TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    yield lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_tf32_is_on_where_the_device_has_it_unless_it_is_disabled(flags, monkeypatch):
    assert set_tf32("cuda", disable=False) and flags() == (True, True) and computes_in_tf32("cuda")
    with without_tf32():
        assert flags() == (False, False) and not computes_in_tf32("cuda")
    assert flags() == (True, True)
    for device, disable in (("cuda", True), ("cpu", False), ("xpu", False)):
        assert not set_tf32(device, disable) and flags() == (False, False) and not computes_in_tf32(device)
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    assert not set_tf32("cuda", disable=False)


def test_candidates_from_before_there_was_tf32_are_of_float32(flags):
    args = settings_with(GenerateSettings)
    set_tf32("cuda", disable=True)
    assert earlier_values(args)["tf32"]() is None
    set_tf32("cuda", disable=False)
    assert "tf32" not in earlier_values(args)


def test_pyiqas_own_flags_leave_tf32_as_it_is(flags):
    from pyiqa.models import inference_model

    set_tf32("cuda", disable=True)
    call = inference_model.torch.backends.cudnn.flags
    with call(enabled=True, benchmark=False, deterministic=True):
        assert flags()[1]  # what pyiqa does alone
    suite, seen = MetricSuite([MetricSpec("piqe")]), []
    suite.networks()["piqe"].metric.net.register_forward_hook(lambda *_: seen.append(flags()))  # within pyiqa's call
    suite.score(torch.rand(1, 3, 48, 48))
    assert seen == [(False, False)]
    set_tf32("cuda", disable=False)
    with tf32_kept(), torch.backends.cudnn.flags(enabled=True):
        assert flags() == (True, True)


def test_tf32_is_told_with_the_scores_and_its_ranking_printed(store, gt_path, tmp_path, capsys, flags):
    suite = MetricSuite([MetricSpec("gmsd")], batches=Batches(4))
    exact = suite.describe()
    suite.tf32 = True
    told = suite.describe()
    assert told["gmsd"] == {**exact["gmsd"], "tf32": True} and "tf32" not in exact["gmsd"]
    set_tf32("cuda", disable=False)
    seen, score = [], suite.score
    suite.score = lambda *args, **options: seen.append(flags()) or score(*args, **options)
    labeller(store, suite, gt_path, tmp_path / "s.parquet").compare_with_exact("a")
    assert "TF32 against fp32 on the 3 candidates of 'a', Kendall's tau: gmsd 1.000" in capsys.readouterr().out
    assert seen == [(True, True), (False, False)] and flags() == (True, True)


# -- precision -----------------------------------------------------------------------------------------------------------


def test_the_precision_is_the_launchers_where_no_flag_says_it(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert asked_precision(None) == "no" and usable_precision(None, "cpu") == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert usable_precision(None, "cuda") == "bf16" and usable_precision("no", "cuda") == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert usable_precision("bf16", "cuda") == "bf16"
    with pytest.raises(UserError, match="fp8"):
        asked_precision(None)


# -- images that are scored where they are decoded -----------------------------------------------------------------------


def test_decoded_images_stay_on_the_device_to_be_scored(sd2, monkeypatch):
    """The same bits, in one part or many, and no way through the host."""
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    group = CandidateGroup("x", latents, "", Image.effect_noise((20, 16), 80).convert("RGB"), [0, 1, 2], 3.0)
    expected = decode_group(sd2, group, "wavelet")
    decoder = LazyDecoder(SimpleNamespace(settings={"align_method": "wavelet"}), torch.device("cpu"), Batches(8))
    decoder.backbone = sd2
    with monkeypatch.context() as within:
        within.setattr(torch.Tensor, "cpu", None)
        whole = decoder(group)
        within.setattr(decode, "decoded_together", lambda backbone, size: 2)
        parts = decoder(group)
    assert torch.equal(whole, expected) and torch.equal(parts, expected)
    assert torch.equal(expected, expected.mul(255).round().div(255))
