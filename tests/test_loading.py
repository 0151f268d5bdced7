"""Where a base model's parts come from: variants, another autoencoder or tokenizer, another attention."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CONTROLNET, MODEL, MODEL_FLAGS, ROOT, SAMPLING, assert_one_clear_line, run_program
from loading_models import (
    cache_model,
    hub,  # noqa: F401 - fixtures
)
from safetensors.torch import load_file, save_file

import dp2osr
from dp2osr.backbones import load_backbone
from dp2osr.backbones.loading import ModelSource
from dp2osr.backbones.locate import find_model_file
from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.provenance import legacy_weights_hash, weights_hash
from dp2osr.sampling.decode import decode_group, load_decoder
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.sampling.store import CandidateStore
from dp2osr.training.checks import check_model


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


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_model_on_a_hub_is_read_offline_from_the_cache_as_from_its_folder(kind, backbone, controlnet, hub):
    cache_model(hub, "someone/base", kind.model)
    cache_model(hub, "someone/control", kind.controlnet)
    loaded = load_backbone(ModelSource("someone/base", vae="someone/base", tokenizer="someone/base"))
    assert all(same_weights(part, getattr(backbone, name)) for name, part in loaded.trained_parts().items())
    assert same_weights(loaded.vae, backbone.vae) and loaded.tokenizer.get_vocab() == backbone.tokenizer.get_vocab()
    assert same_weights(loaded.load_controlnet("someone/control"), controlnet)
    assert loaded.controlnet_options("someone/control") == backbone.controlnet_options(kind.controlnet)
    assert weights_hash("someone/base") == weights_hash(kind.model) != weights_hash("someone/control") == weights_hash(kind.controlnet)
    assert weights_hash("someone/base", part="vae") == weights_hash(Path(kind.model) / "vae", part="vae")
    config = find_model_file("someone/base", "vae/config.json")
    assert config.read_text() == find_model_file(kind.model, "vae/config.json").read_text()
    for path in ("someone/base", kind.model, "someone/nothing", "./nothing"):
        assert find_model_file(path, "nothing.json") is None


def test_the_hashes_of_the_embedded_models_stay_what_they_are():
    """Results on users' disks name them."""
    known = {"tiny-sd2": "0cf9556b7924127b", "tiny-flux": "c245c7eb44e44fe5", "c-tiny-sd2": "58f16efa2351a9ce"}
    known |= {"c-tiny-flux": "7af1c0957b64809d", "c-tiny-sd2/diffusion_pytorch_model.safetensors": "43601adced2a9a97"}
    assert {name: weights_hash(ROOT / "preset/models" / name) for name in known} == known


@pytest.mark.parametrize("with_config", [False, True])
def test_a_released_controlnet_is_one_file_alone_in_a_folder_or_on_a_hub(sd2, sd2_controlnet, hub, tmp_path, with_config):
    folder = tmp_path / "released"
    folder.mkdir()
    shutil.copy(f"{CONTROLNET}/diffusion_pytorch_model.safetensors", folder / "model.safetensors")
    if with_config:
        shutil.copy(f"{CONTROLNET}/config.json", folder)
    cache_model(hub, "someone/released", folder)
    for path in ("someone/released", folder, folder / "model.safetensors"):
        assert same_weights(sd2.load_controlnet(path), sd2_controlnet)
    assert weights_hash("someone/released") == weights_hash(folder)


def test_a_revision_is_read_and_another_one_missed(sd2, hub):
    commit = cache_model(hub, "someone/base", MODEL)
    assert same_weights(load_backbone(ModelSource("someone/base", revision=commit), parts=("denoiser",)).unet, sd2.unet)
    assert weights_hash("someone/base", revision=commit) == weights_hash(MODEL)
    with pytest.raises(UserError, match=r"someone/base \(revision v2\): neither a file or folder here nor a model on the hub"):
        load_backbone(ModelSource("someone/base", revision="v2"))


def test_weights_in_several_files_load_and_hash(sd2, sd2_controlnet, copy, hub, tmp_path):
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    for cls, name in ((UNet2DConditionModel, "unet"), (CLIPTextModel, "text_encoder")):
        part = cls.from_pretrained(copy / name)
        for path in (copy / name).glob("*.safetensors"):
            path.unlink()
        part.save_pretrained(copy / name, max_shard_size="200KB")
        assert len(list((copy / name).glob("*-of-*.safetensors"))) > 1
    deepcopy(sd2_controlnet).save_pretrained(tmp_path / "control", max_shard_size="1MB")
    cache_model(hub, "someone/shards", copy)
    cache_model(hub, "someone/control-shards", tmp_path / "control")
    for path in (str(copy), "someone/shards"):
        loaded = load_backbone(path)
        assert same_weights(loaded.unet, sd2.unet) and same_weights(loaded.text_encoder, sd2.text_encoder)
    for path in (tmp_path / "control", "someone/control-shards"):
        assert same_weights(sd2.load_controlnet(path), sd2_controlnet)
    assert weights_hash("someone/shards") == weights_hash(copy) != weights_hash(MODEL)
    before = weights_hash(copy)
    shard = sorted((copy / "unet").glob("*-of-*.safetensors"))[-1]
    save_file({name: tensor + 1 for name, tensor in load_file(shard).items()}, shard, {"format": "pt"})
    assert weights_hash(copy) != before


def test_pickled_weights_are_read_as_tensors_alone_and_hashed(sd2, sd2_controlnet, tmp_path):
    torch.save(sd2_controlnet.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="diffusion_pytorch_model.bin: pickled weights are not read; save them as a safetensors file"):
        sd2.load_controlnet(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="holds no ControlNet"):
        sd2.load_controlnet(tmp_path)
    shutil.copy(f"{CONTROLNET}/config.json", tmp_path)
    assert same_weights(sd2.load_controlnet(tmp_path), sd2_controlnet)
    before = weights_hash(tmp_path)
    torch.save({**sd2_controlnet.state_dict(), "conv_in.bias": torch.ones(32)}, tmp_path / "diffusion_pytorch_model.bin")
    assert weights_hash(tmp_path) != before


def test_a_hash_is_of_the_weights_that_are_used(copy):
    """Not of what else lies in a model's folder and not in a cache: variants, single-file checkpoints, the safety checker."""
    before, weights = weights_hash(copy), "diffusion_pytorch_model.safetensors"
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}))
    for name in ("v2-base.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
                 "safety_checker/model.safetensors", "controlnet/diffusion_pytorch_model.safetensors"):  # fmt: skip
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(copy / "vae" / weights, copy / name)
    assert weights_hash(copy) == before != legacy_weights_hash(copy)
    assert weights_hash(copy, variant="fp16") != before
    tensors = load_file(copy / "unet" / weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, copy / "unet" / weights)
    assert weights_hash(copy) != before


def test_a_training_takes_candidates_of_the_same_weights_by_id_from_a_folder_and_as_they_were_recorded_before(copy, other_vae, hub):
    commit = cache_model(hub, "someone/base", MODEL)
    cache_model(hub, "someone/dark", other_vae)
    shutil.copy(copy / "vae/diffusion_pytorch_model.safetensors", copy / "vae/diffusion_pytorch_model.fp16.safetensors")

    def check(recorded, model, variant=None, revision=None, vae=None, was=None):
        args = SimpleNamespace(candidates_dir="store", pretrained_model_name_or_path=str(model), variant=variant, revision=revision)
        args.pretrained_vae_model_name_or_path = vae and str(vae)
        files = {"variant": None, "revision": None, **(was or {})}
        check_model(
            args, SimpleNamespace(settings={"model": "m", "model_hash": recorded, "model_files": files, "vae_hash": files.get("vae")})
        )

    check(weights_hash("someone/base", revision=commit), MODEL, was={"revision": commit})
    check(weights_hash(MODEL), "someone/base")
    check(legacy_weights_hash("someone/base"), "someone/base")
    check(legacy_weights_hash(copy), copy)
    check(weights_hash(MODEL), "someone/base", vae="someone/dark", was={"vae": legacy_weights_hash(other_vae)})
    with pytest.raises(UserError, match="was sampled with the weights of m, which are not those of"):
        check(weights_hash(CONTROLNET), "someone/base")
    with pytest.raises(UserError, match="was sampled with variant fp16, not None"):
        check(legacy_weights_hash(copy), copy, was={"variant": "fp16"})
    with pytest.raises(UserError, match="was sampled with autoencoder"):
        check(weights_hash(MODEL), "someone/base", vae="someone/dark")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("someone/nothing", "someone/nothing: neither a file or folder here nor a model on the hub that can be reached: HF_HUB_OFFLINE"),
        ("presets/nothing", "presets/nothing: neither a file or folder here nor a model on the hub"),
        ("preset/models/c-tiny-sd", "preset/models/c-tiny-sd: no such file or folder; did you mean preset/models/c-tiny-sd2?"),
        ("preset/model/c-tiny-sd2", "did you mean preset/models/c-tiny-sd2?"),
        ("./nothing", "./nothing: no such file or folder"),
        ("/nowhere/nothing", "/nowhere/nothing: no such file or folder"),
        ("~/nothing-at-all", "~/nothing-at-all: no such file or folder"),
        ("nothing.safetensors", "nothing.safetensors: no such file or folder"),
        ("my model", "my model: no such file or folder"),
        ("", "an empty path: no such file or folder"),
    ],
)
def test_what_is_neither_here_nor_on_a_hub_is_one_clear_line(sd2, hub, monkeypatch, path, told):
    monkeypatch.chdir(ROOT)
    for read in (sd2.load_controlnet, load_backbone, weights_hash):
        with pytest.raises(UserError) as error:
            read(path)
        assert told in str(error.value) and "\n" not in str(error.value)
    for source in (ModelSource(MODEL, vae=path), ModelSource(MODEL, tokenizer=path)):
        if path:
            with pytest.raises(UserError) as error:
                load_backbone(source)
            assert told in str(error.value)


@pytest.mark.slow
def test_candidates_of_models_by_id_train_with_their_folders(lr_folder, hub, tmp_path):
    for name, folder in (("base", MODEL), ("control", CONTROLNET)):
        cache_model(hub, f"someone/{name}", folder)
    ids = ["--pretrained_model_name_or_path", "someone/base", "--controlnet_model_name_or_path", "someone/control"]
    flags = [*ids, *SAMPLING, "--num_candidates", "1", "--max_images", "1", "--image_path", lr_folder, "--output_dir", tmp_path / "store"]
    dp2osr.sample(parse(GenerateSettings, list(map(str, flags))))
    settings = CandidateStore(tmp_path / "store").settings
    assert (settings["model_hash"], settings["controlnet_hash"]) == (weights_hash(MODEL), weights_hash(CONTROLNET))
