"""Where a base model's parts come from: variants, another autoencoder or tokenizer, another attention."""

import hashlib
import json
import os
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CONTROLNET, MODEL, MODEL_FLAGS, ROOT, SAMPLING, assert_one_clear_line, run_program
from safetensors.torch import load_file, save_file

from dp2osr.backbones import load_backbone
from dp2osr.backbones.loading import ModelSource, count_parameters
from dp2osr.backbones.locate import find_model_file
from dp2osr.digests import sha256
from dp2osr.errors import UserError
from dp2osr.provenance import legacy_weights_hash, weights_hash
from dp2osr.sampling.decode import decode_group, load_decoder
from dp2osr.sampling.store import CandidateStore
from dp2osr.training.options import check_model


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


# -- models by hub id ------------------------------------------------------------------------------------------------


def cache_model(cache, name, folder):
    """Lay `folder` out in a hub's cache as huggingface_hub does: blobs, a snapshot that links to them, a branch."""
    commit = hashlib.sha1(name.encode()).hexdigest()
    repository = cache / f"models--{name.replace('/', '--')}"
    for path in (path for path in Path(folder).rglob("*") if path.is_file()):
        blob, link = repository / "blobs" / sha256(path), repository / "snapshots" / commit / path.relative_to(folder)
        for parent in (blob.parent, link.parent, repository / "refs"):
            parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs/main").write_text(commit)
    return commit


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of a hub's cache, offline; a function puts models into it."""
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


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
    assert count_parameters("someone/control") == count_parameters(kind.controlnet) == sum(map(torch.numel, controlnet.parameters()))
    assert weights_hash("someone/base") == weights_hash(kind.model) != weights_hash("someone/control") == weights_hash(kind.controlnet)
    assert weights_hash("someone/base", part="vae") == weights_hash(Path(kind.model) / "vae", part="vae")
    config = find_model_file("someone/base", "vae/config.json")
    assert config.read_text() == find_model_file(kind.model, "vae/config.json").read_text()
    for path in ("someone/base", kind.model, "someone/nothing", "./nothing"):
        assert find_model_file(path, "nothing.json") is None


def test_the_hashes_of_the_embedded_models_stay_what_they_are():
    """Results on users' disks name them."""
    known = {"tiny-sd2": "e022bfb1b0066051", "tiny-flux": "b3ab0244eb8a0e8a", "c-tiny-sd2": "f72af15a145bcf8f"}
    known |= {"c-tiny-flux": "fcaf060d9494988b", "c-tiny-sd2/diffusion_pytorch_model.safetensors": "da707dcef2da13c0"}
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
    assert count_parameters("someone/released") == sum(map(torch.numel, sd2_controlnet.parameters()))


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
        assert count_parameters(path) == sum(map(torch.numel, sd2_controlnet.parameters()))
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
    for read in (sd2.load_controlnet, load_backbone, weights_hash, count_parameters):
        with pytest.raises(UserError) as error:
            read(path)
        assert told in str(error.value) and "\n" not in str(error.value)
    for source in (ModelSource(MODEL, vae=path), ModelSource(MODEL, tokenizer=path)):
        if path:
            with pytest.raises(UserError) as error:
                load_backbone(source)
            assert told in str(error.value)


def test_candidates_of_models_by_id_train_with_their_folders(lr_folder, tmp_path):
    for name, folder in (("base", MODEL), ("control", CONTROLNET)):
        (tmp_path / "home/hub").mkdir(parents=True, exist_ok=True)
        cache_model(tmp_path / "home/hub", f"someone/{name}", folder)
    ids = ["--pretrained_model_name_or_path", "someone/base", "--controlnet_model_name_or_path", "someone/control"]
    flags = [*ids, *SAMPLING, "--num_candidates", "1", "--max_images", "1", "--image_path", lr_folder, "--output_dir", tmp_path / "store"]
    run_program("gen_candidates.py", *flags, env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "home/hub")})
    settings = CandidateStore(tmp_path / "store").settings
    assert (settings["model_hash"], settings["controlnet_hash"]) == (weights_hash(MODEL), weights_hash(CONTROLNET))


# -- ControlNets that do not fit -------------------------------------------------------------------------------------


def test_a_controlnet_of_another_width_is_refused_in_one_line_however_it_is_given(sd2, hub, tmp_path):
    from dp2osr.training.checkpoints import save_checkpoint

    narrow = f"{CONTROLNET}-8"
    cache_model(hub, "someone/narrow", narrow)
    policy = load_backbone(f"{MODEL}-8").load_controlnet(narrow)
    save_checkpoint(tmp_path, 3, {"policy": policy}, 1)
    for path in (narrow, f"{narrow}/diffusion_pytorch_model.safetensors", tmp_path / "checkpoint-3.pt", "someone/narrow"):
        with pytest.raises(UserError, match=f"is a ControlNet of 8, 16, 32 channels, the base {MODEL} has 32, 64, 128; give the"):
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
