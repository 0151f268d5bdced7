"""TaylorSeer: steps that are forecast, against a straight line drawn by hand through what the layers gave."""

from itertools import product

import pytest
import torch
from conftest import KINDS, assert_one_clear_line, run_program
from PIL import Image
from sampled_toys import loop_of, sample, sampler_with
from test_lever_costs import planned_args

from dp2osr.backbones import load_backbone
from dp2osr.backbones.forecast import forecast_steps, forecasting
from dp2osr.errors import UserError
from dp2osr.flops import measure, weights_of
from dp2osr.planning.models import read_published
from dp2osr.planning.stages import PlannedModel, fake_tensors, to_pretended_cpu
from dp2osr.sampling.memory import peak_bytes, total


@pytest.fixture(scope="module")
def flux():
    return load_backbone(KINDS["flux"].model)


@pytest.fixture(scope="module")
def controlnet(flux):
    return flux.load_controlnet(KINDS["flux"].controlnet)


def layers_of(transformer):
    """Attention and feed-forward of the double blocks, and what joins both in the single ones."""
    double = [getattr(block, name) for block in transformer.transformer_blocks for name in ("attn", "ff", "ff_context")]
    return [*double, *(block.proj_out for block in transformer.single_transformer_blocks)]


class StraightLine:
    """A layer that answers, at forecast steps, in a straight line through its last two computed answers."""

    def __init__(self, forward, forecasts):
        self.forward, self.forecasts, self.step, self.known = forward, forecasts, -1, []

    def __call__(self, *args, **options):
        self.step += 1
        if not self.forecasts[self.step]:
            answer = self.forward(*args, **options)
            self.known = [*self.known, (self.step, answer if isinstance(answer, tuple) else (answer,))][-2:]
            return answer
        (_, last), slopes = self.known[-1], [0] * 9
        if len(self.known) == 2:
            (before, first), (after, second) = self.known
            slopes = [(b - a) / (after - before) for a, b in zip(first, second, strict=True)]
        line = tuple(value + (self.step - self.known[-1][0]) * slope for value, slope in zip(last, slopes, strict=False))
        return line if len(line) > 1 else line[0]


@pytest.mark.parametrize(("steps", "interval"), [(5, 2), (8, 3)])
def test_forecast_steps_continue_what_each_layer_gave_in_a_straight_line(flux, controlnet, monkeypatch, steps, interval):
    ours = sample(flux, controlnet, loop_of(steps, "flow_euler", taylorseer_interval=interval))
    plain = sample(flux, controlnet, loop_of(steps, "flow_euler"))
    for layer in layers_of(flux.transformer):
        monkeypatch.setattr(layer, "forward", StraightLine(layer.forward, forecast_steps(steps, interval)))
    by_hand = sample(flux, controlnet, loop_of(steps, "flow_euler"))
    assert (ours - by_hand).abs().max() < 1e-5 < (ours - plain).abs().max()


def test_the_steps_that_are_forecast_are_those_at_which_diffusers_computes_nothing(flux):
    assert forecast_steps(8, 3) == [False, True, False, True, True, False, True, True]
    assert not any(forecast_steps(8, 1))

    class Counted(type(flux.transformer)):
        """As much of a transformer as diffusers' hooks look at."""

        def __init__(self):
            torch.nn.Module.__init__(self)
            self.transformer_blocks = torch.nn.ModuleList([torch.nn.Module()])
            self.transformer_blocks[0].ff = torch.nn.Linear(1, 1)

    network, computed = Counted(), []
    layer = network.transformer_blocks[0].ff
    plain = layer.forward

    def forward(*args):
        computed.append(True)
        return plain(*args)

    layer.forward = forward
    for count, interval in product(range(2, 30), range(2, 7)):
        computed.clear()
        expected = 0
        with forecasting(network, count, interval):
            for forecast in forecast_steps(count, interval):
                network.transformer_blocks[0].ff(torch.ones(1, 1))
                expected += not forecast
                assert len(computed) == expected


def test_without_the_flag_and_after_a_sample_with_it_nothing_is_forecast(flux, controlnet):
    plain = sample(flux, controlnet, loop_of(4, "flow_euler"))
    sample(flux, controlnet, loop_of(4, "flow_euler", taylorseer_interval=2))
    assert torch.equal(sample(flux, controlnet, loop_of(4, "flow_euler")), plain)


def test_a_sample_follows_from_its_own_steps_whatever_was_sampled_before(flux, controlnet):
    settings = loop_of(6, "flow_dpm", taylorseer_interval=3)
    first = sample(flux, controlnet, settings)
    again = sample(flux, controlnet, settings, count=1, first=1)
    assert (first[1:] - again).abs().max() < 1e-5


@pytest.mark.parametrize("published", [False, True])
def test_the_memory_told_is_within_a_factor_of_one_and_a_half_of_a_count_of_every_tensor(published):
    kind, unseen = KINDS["flux"], {"controlnet_model_name_or_path": "-"} if published else {}
    model = PlannedModel(planned_args(kind, upscale=1, **unseen), (64, 64), read_published("flux") if published else None)
    backbone = model.load(("text", "denoiser"))
    controlnet = model.controlnet(backbone)
    with fake_tensors(), torch.no_grad():
        networks = weights_of(to_pretended_cpu(backbone, controlnet))
        side = backbone.native_size // backbone.vae_scale
        noisy, prompt = torch.randn(2, backbone.latent_channels, side, side), backbone.blank_prompt()
        control = torch.rand(1, side * side // 4, 4 * backbone.latent_channels)
        with forecasting(backbone.denoiser, 16, 2):
            call = lambda: [backbone.predict([controlnet], noisy, torch.zeros(2), prompt, control) for _ in range(3)]  # noqa: E731
            counted = measure(call, networks).peak_bytes
    told = backbone.pass_bytes(controlnet, side, side, 2, forecast=True)
    assert counted / 1.5 < told < 1.5 * counted
    assert told > 1.2 * backbone.pass_bytes(controlnet, side, side, 2)


def test_the_memory_that_is_asked_for_before_sampling_has_what_is_kept(flux):
    needed = [total(peak_bytes(flux, loop_of(8, "flow_euler", taylorseer_interval=k), (32, 32), 4, 8, 8, False)["host"]) for k in (1, 3)]
    assert needed[1] > needed[0]


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("sd2", {"taylorseer_interval": 2}, "taylorseer_interval 2: forecasts the blocks of a transformer, and sd2 is denoised by another"),
        ("flux", {"taylorseer_interval": 5}, "taylorseer_interval 5: must be at most --num_inference_steps, 4"),
        ("flux", {"taylorseer_interval": 2, "compile": True}, "taylorseer_interval 2: .*--compile cannot take"),
    ],
)
def test_where_it_cannot_be_had_it_is_refused_at_the_door(name, changes, told):
    with pytest.raises(UserError, match=told):
        sampler_with(KINDS[name], **changes)


def test_an_image_in_tiles_is_refused_in_one_line_and_nothing_is_written(tmp_path):
    (tmp_path / "lr").mkdir()
    Image.new("RGB", (64, 40)).save(tmp_path / "lr/wide.png")
    words = ["--image_path", tmp_path / "lr", "--output_dir", tmp_path / "out", "--taylorseer_interval", "2", "--num_inference_steps", "4"]
    done = run_program("gen_candidates.py", *KINDS["flux"].model_flags, *words, check=False)
    assert_one_clear_line(done, "--taylorseer_interval 2: keeps features of an image that is denoised whole; in tiles are wide")
    assert not (tmp_path / "out").exists()
