"""Where a base model's parts come from: variants, another autoencoder or tokenizer, another attention."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import MODEL, MODEL_FLAGS, ROOT, SAMPLING, assert_one_clear_line, run_program
from safetensors.torch import load_file, save_file

from dp2osr.backbones import load_backbone
from dp2osr.backbones.loading import ModelSource
from dp2osr.errors import UserError
from dp2osr.provenance import weights_hash
from dp2osr.sampling.decode import decode_group, load_decoder
from dp2osr.sampling.store import CandidateStore


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


@pytest.fixture(scope="module")
def other_vae(tmp_path_factory):
    """An autoencoder whose pictures are darker, as a folder of its own."""
    folder = Path(shutil.copytree(Path(MODEL) / "vae", tmp_path_factory.mktemp("vae") / "dark"))
    weights = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"] = tensors["decoder.conv_out.bias"] - 0.2
    save_file(tensors, weights, {"format": "pt"})
    return folder


def test_a_variant_is_read_from_its_own_files(copy, sd2):
    for path in copy.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    loaded = load_backbone(ModelSource(str(copy), variant="fp16"))
    for part in ("unet", "vae", "text_encoder"):
        own, expected = getattr(loaded, part).state_dict(), getattr(sd2, part).state_dict()
        assert own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)
    with pytest.raises(UserError, match="model/vae: AutoencoderKL cannot be loaded"):
        load_backbone(str(copy))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(ModelSource(MODEL, variant="fp16"))


@pytest.mark.parametrize("nested", [False, True])
def test_another_autoencoder_comes_from_its_folder_or_from_a_pipeline(sd2, other_vae, tmp_path, nested):
    folder = other_vae
    if nested:
        folder = tmp_path / "pipeline"
        shutil.copytree(other_vae, folder / "vae")
    loaded = load_backbone(ModelSource(MODEL, variant=None, vae=str(folder)))
    latents = torch.zeros(1, 4, 8, 8)
    assert loaded.decode_latents(latents).mean() < sd2.decode_latents(latents).mean() - 0.05
    assert torch.equal(loaded.unet.conv_in.weight, sd2.unet.conv_in.weight)


def test_candidates_are_scored_with_the_autoencoder_that_they_were_sampled_for(lr_folder, other_vae, tmp_path):
    flags = [*MODEL_FLAGS, *SAMPLING, "--num_candidates", "1", "--max_images", "1", "--save_images", "all"]
    folder = tmp_path / "store"
    run_program(
        "gen_candidates.py", *flags, "--image_path", lr_folder, "--output_dir", folder, "--pretrained_vae_model_name_or_path", other_vae
    )
    store = CandidateStore(folder)
    [image_id] = store.ids()
    group = store.read(image_id)
    images = decode_group(load_decoder(store.settings), group, "nofix")
    plain = decode_group(load_decoder({**store.settings, "model_files": {}}), group, "nofix")
    assert (plain - images).mean() > 0.05
    done = run_program("gen_candidates.py", *flags, "--image_path", lr_folder, "--output_dir", folder, check=False)
    assert_one_clear_line(done, "vae_hash")


def test_another_tokenizer_is_the_one_that_reads_the_prompts(copy, tmp_path):
    moved = tmp_path / "words"
    shutil.move(copy / "tokenizer", moved)
    with pytest.raises(UserError, match="model/tokenizer"):
        load_backbone(str(copy), parts=("text",))
    loaded = load_backbone(ModelSource(str(copy), tokenizer=str(moved)), parts=("text",))
    expected = load_backbone(MODEL, parts=("text",)).encode_prompts(["a cat"])
    assert torch.equal(loaded.encode_prompts(["a cat"])["encoder_hidden_states"], expected["encoder_hidden_states"])


def test_a_missing_autoencoder_is_one_clear_line(lr_folder, tmp_path):
    flags = [*MODEL_FLAGS, "--image_path", lr_folder, "--output_dir", tmp_path / "sr", "--pretrained_vae_model_name_or_path"]
    done = run_program("test_sd2b_controlnet.py", *flags, ROOT / "preset/train", check=False)
    assert_one_clear_line(done, "preset/train", "AutoencoderKL")
    assert not (tmp_path / "sr").exists()


def test_an_autoencoder_of_another_kind_of_latents_is_named(other_vae, tmp_path):
    shutil.copytree(other_vae, tmp_path / "vae")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps({**config, "latent_channels": 16}))
    with pytest.raises(UserError, match="is an autoencoder of 16 channels, .* takes 4"):
        load_backbone(ModelSource(MODEL, vae=str(tmp_path / "vae")))


def test_xformers_is_asked_for_in_both_networks_or_missed_in_one_line(sd2, sd2_controlnet, monkeypatch):
    from dp2osr.sampling.sampler import use_xformers

    asked = []
    for network in (sd2.unet, sd2_controlnet):
        monkeypatch.setattr(network, "enable_xformers_memory_efficient_attention", lambda network=network: asked.append(network))
    use_xformers(sd2.unet, sd2_controlnet)
    assert asked == [sd2.unet, sd2_controlnet]
    monkeypatch.undo()
    with pytest.raises(UserError, match="leave the flag out"):
        use_xformers(sd2.unet, sd2_controlnet)


def test_two_hub_models_are_not_taken_for_one(tmp_path):
    assert weights_hash("someone/one-model") != weights_hash("someone/another-model")
    assert weights_hash(tmp_path) == weights_hash(tmp_path / ".")


def test_full_size_sd2_has_the_published_sizes_and_keys():
    """SD2-base's published config on the meta device: 865.9 M and 364.2 M parameters, the ControlNet with `from_unet`'s keys."""
    import yaml
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from dp2osr.backbones.sd2 import SD2Backbone

    config = yaml.safe_load((ROOT / "configs/models/sd2_base.yaml").read_text(encoding="utf-8"))
    backbone = SD2Backbone.__new__(SD2Backbone)
    backbone.device = torch.device("meta")
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
