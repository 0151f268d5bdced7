"""Loading: controlnet files."""

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import CONTROLNET, MODEL, ROOT
from loading_models import (
    cache_model,
    hub,  # noqa: F401 - fixtures
)
from safetensors.torch import load_file, save_file

from dp2osr.errors import UserError


def test_a_controlnet_of_another_width_is_refused_in_one_line_however_it_is_given(sd2, sd2_controlnet, hub, tmp_path):
    from diffusers import ControlNetModel

    from dp2osr.training.checkpoints import save_checkpoint

    narrow = tmp_path / "narrow"
    policy = ControlNetModel.from_config({**sd2_controlnet.config, "block_out_channels": [8, 16, 24]})
    policy.save_pretrained(narrow)
    cache_model(hub, "someone/narrow", narrow)
    save_checkpoint(tmp_path, 3, {"policy": policy}, 1)
    for path in (narrow, f"{narrow}/diffusion_pytorch_model.safetensors", tmp_path / "checkpoint-3.pt", "someone/narrow"):
        with pytest.raises(UserError, match=f"is a ControlNet of 8, 16, 24 channels, the base {MODEL} has 8, 16, 32; give the"):
            sd2.load_controlnet(path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cross_attention_dim": 768}, "of 768 text channels, the base .* has 64;"),
        ({"layers_per_block": 2, "in_channels": 9}, "of 2 layers in a block and 9 latent channels, the base .* has 1 and 4;"),
        ({"conditioning_embedding_out_channels": [16, 32, 96, 256]}, "of 8 control pixels a latent, the base .* has 4;"),
        ({"conditioning_channels": 1}, "of 1 image channels, the base .* has 3;"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_a_controlnet_of_another_design_is_refused_with_both_sides(sd2, sd2_controlnet, tmp_path, changes, told, as_file):
    from diffusers import ControlNetModel

    ControlNetModel.from_config({**sd2_controlnet.config, **changes}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=told):
        sd2.load_controlnet(tmp_path / "diffusion_pytorch_model.safetensors" if as_file else tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_controlnet_with_weights_that_are_not_finite_is_refused(backbone, kind, tmp_path, value):
    folder = Path(shutil.copytree(kind.controlnet, tmp_path / "broken"))
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, {"format": "pt"})
    for path in (folder, file):
        with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
            backbone.load_controlnet(path)


def test_weights_too_large_for_half_precision_are_named_with_it(sd2, tmp_path):
    folder = Path(shutil.copytree(CONTROLNET, tmp_path / "large"))
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(
        {name: tensor.float() + (1e6 if name == "conv_in.bias" else 0) for name, tensor in load_file(file).items()}, file, {"format": "pt"}
    )
    sd2.load_controlnet(folder)
    with pytest.raises(UserError, match="conv_in.bias holds NaN or infinity in float16"):
        sd2.load_controlnet(folder, torch.float16)


def test_a_new_controlnet_fits_the_scale_of_the_autoencoder_unless_told(sd2):
    controlnet = sd2.new_controlnet()
    assert tuple(controlnet.config.conditioning_embedding_out_channels) == (16, 32, 96)
    control = sd2.prepare_control(torch.rand(1, 3, 32, 32))
    [noise] = sd2.predict([controlnet], torch.zeros(1, 4, 8, 8), torch.tensor([5]), sd2.encode_prompts([""]), control)
    assert noise.shape == (1, 4, 8, 8)
    assert tuple(sd2.new_controlnet(conditioning_channels=[8, 16, 32]).config.conditioning_embedding_out_channels) == (8, 16, 32)
    with pytest.raises(UserError, match="--conditioning_channels 16 32 96 256: are 4 numbers; the autoencoder scales by 4, which takes 3"):
        sd2.new_controlnet(conditioning_channels=[16, 32, 96, 256])


@pytest.mark.parametrize(("scale", "channels"), [(8, (16, 32, 96, 256)), (32, (16, 32, 96, 256, 256, 256))])
def test_the_default_control_embedding_is_the_published_one_and_goes_on_with_its_last(sd2, monkeypatch, scale, channels):
    monkeypatch.setattr(sd2, "vae_scale", scale)
    assert tuple(sd2.new_controlnet().config.conditioning_embedding_out_channels) == channels


def test_full_size_sd2_has_the_published_sizes_and_keys():
    """SD2-base's published config on the meta device: 865.9 M and 364.2 M parameters, the ControlNet with `from_unet`'s keys."""
    import yaml
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from dp2osr.backbones.sd2 import SD2Backbone

    config = yaml.safe_load((ROOT / "configs/models/sd2_base.yaml").read_text(encoding="utf-8"))
    backbone = SD2Backbone.__new__(SD2Backbone)
    backbone.device, backbone.vae_scale = torch.device("meta"), 2 ** (len(config["vae"]["block_out_channels"]) - 1)
    with torch.device("meta"):
        backbone.unet = UNet2DConditionModel(**config["unet"])
        ours = backbone.new_controlnet()
        theirs = ControlNetModel.from_unet(backbone.unet)
        vae, text = AutoencoderKL(**config["vae"]), CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))
    sizes = [round(model.num_parameters() / 1e6, 1) for model in (backbone.unet, ours, vae, text)]
    assert sizes == [865.9, 364.2, 83.7, 340.4]
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_what_we_save_loads_as_the_authors_load_it_and_the_other_way_round(sd2, sd2_controlnet, tmp_path):
    """Their script: `ControlNetModel.from_unet(unet)` of the base, then the tensors of one `model.safetensors`."""
    from diffusers import ControlNetModel

    from dp2osr.training.checkpoints import save_controlnet

    save_controlnet(sd2_controlnet, tmp_path)
    channels = tuple(sd2_controlnet.config.conditioning_embedding_out_channels)
    theirs = ControlNetModel.from_unet(sd2.unet, conditioning_embedding_out_channels=channels)
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = sd2.load_controlnet(tmp_path / "theirs.safetensors")
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in sd2_controlnet.state_dict().items())


def test_weights_lie_in_memory_of_their_own_and_convolutions_in_their_layout(sd2, sd2_controlnet, tmp_path):
    """A file that some weights are mapped from would stay in memory whole beside the copies of the others.

    The file is in the precision that is asked for: of another one every tensor is a copy in any case.
    """
    from dp2osr.training.checkpoints import save_controlnet

    save_controlnet(sd2_controlnet, tmp_path)
    networks = {"controlnet": sd2.load_controlnet(tmp_path), "unet": sd2.unet}
    mapped = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines() if ".safetensors" in line]
    files = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in mapped]
    for name, network in networks.items():
        for key, tensor in network.state_dict().items():
            assert not any(first <= tensor.data_ptr() < last for first, last in files), f"{name}: {key}"
            assert tensor.dim() < 4 or tensor.is_contiguous(memory_format=torch.channels_last), f"{name}: {key}"


def test_a_checkpoint_of_a_training_is_loaded_as_the_policy_it_holds(backbone, controlnet, tmp_path):
    from dp2osr.training.adapters import add_adapters
    from dp2osr.training.checkpoints import save_checkpoint

    policy = deepcopy(controlnet)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    save_checkpoint(tmp_path, 3, {"policy": policy, "optimizer": torch.optim.AdamW(policy.parameters())}, 1)
    loaded, expected = backbone.load_controlnet(tmp_path / "checkpoint-3.pt").state_dict(), policy.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in loaded)
    save_checkpoint(tmp_path, 4, {"policy": add_adapters(policy, 2)}, 2)
    with pytest.raises(UserError, match="checkpoint-4.pt: holds LoRA adapters"):
        backbone.load_controlnet(tmp_path / "checkpoint-4.pt")
    (tmp_path / "checkpoint-5.pt").write_bytes((tmp_path / "checkpoint-3.pt").read_bytes()[:2000])
    with pytest.raises(UserError, match="checkpoint-5.pt: not a readable checkpoint"):
        backbone.load_controlnet(tmp_path / "checkpoint-5.pt")


def test_a_partial_controlnet_is_named_key_by_key(sd2, sd2_controlnet, tmp_path):
    tensors = {key: value.contiguous() for key, value in sd2_controlnet.state_dict().items()}
    tensors["extra.weight"] = tensors.pop("conv_in.weight")
    del tensors["conv_in.bias"]
    tensors["time_embedding.linear_1.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "partial.safetensors")
    with pytest.raises(UserError) as error:
        sd2.load_controlnet(tmp_path / "partial.safetensors")
    for part in (
        "2 missing (conv_in.bias, conv_in.weight)",
        "1 unexpected (extra.weight)",
        "1 of another shape (time_embedding.linear_1.bias)",
    ):
        assert part in str(error.value)


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(backbone):
    with pytest.warns(UserWarning, match="its end is cut off"):
        long = backbone.encode_prompts(["cat, " * 200])
    short = backbone.encode_prompts(["cat"])
    assert all(long[name].shape == short[name].shape for name in short)
