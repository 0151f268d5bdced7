"""Prompts are embedded first, by text encoders that are gone when the denoiser runs; how many tokens they have; compiled blocks."""

import json
import weakref

import pytest
import torch
from conftest import KINDS, assert_one_clear_line, run_program, settings_with
from PIL import Image

from dp2osr.backbones import load_backbone, set_text_length
from dp2osr.data.inputs import find_inputs
from dp2osr.errors import UserError
from dp2osr.sampling import embeddings
from dp2osr.sampling.embeddings import PromptEmbeddings, text_encoders
from dp2osr.sampling.sampler import GroupSampler, earlier_values, sampling_record, settings_not_compared
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.training.validation import embed_prompts

TAGS = ["cat, fur", "sea", "cat, fur", "mountain", "sky"]


@pytest.fixture
def files(tmp_path):
    """Five LR images, of one size."""
    folder = tmp_path / "lr"
    folder.mkdir()
    for number in range(len(TAGS)):
        Image.effect_noise((16, 16), 40 + number).convert("RGB").save(folder / f"{number}.png")
    return find_inputs(folder)[0]


def made_sampler(kind, tmp_path, **flags):
    tags = tmp_path / "tags.json"
    tags.write_text(json.dumps({str(number): words for number, words in enumerate(TAGS)}))
    flags = {"num_inference_steps": 1, "prompt_file": str(tags), **flags}
    args = settings_with(
        GenerateSettings, pretrained_model_name_or_path=kind.model, controlnet_model_name_or_path=kind.controlnet, **flags
    )  # fmt: skip
    return GroupSampler(args, "cpu")


def watch_encoders(backbone, monkeypatch):
    """A list that gets a weak reference to each text encoder that is loaded from now on."""
    seen, load = [], backbone.load_text_encoders

    def loading():
        load()
        seen.extend(weakref.ref(getattr(backbone, name)) for name in backbone.text_parts)

    monkeypatch.setattr(backbone, "load_text_encoders", loading)
    return seen


def test_text_encoders_are_gone_before_the_first_pass_of_the_denoiser(kind, backbone, files, tmp_path, monkeypatch):
    sampler = made_sampler(kind, tmp_path)
    encoders, predict, passes = watch_encoders(sampler.backbone, monkeypatch), sampler.backbone.predict, []

    def checked(*args):
        passes.append([encoder() is None for encoder in encoders])
        return predict(*args)

    monkeypatch.setattr(sampler.backbone, "predict", checked)
    sampler.prepare(files)
    groups = [sampler.sample(file.id, Image.open(file.path), 1) for file in files]
    assert len(encoders) == len(backbone.text_parts) and len(passes) == len(files) and all(map(all, passes))
    for group in groups:  # as each is embedded alone, by encoders that stay
        for name, tensor in backbone.encode_prompts([group.prompt]).items():
            assert torch.equal(group.embedding[name], tensor)
    alone = GroupSampler(sampler.args, "cpu", backbone, sampler.controlnet)
    assert torch.equal(alone.sample(files[3].id, Image.open(files[3].path), 1).latents, groups[3].latents)


def test_so_many_images_at_a_time_are_tagged_and_embedded_ahead(files, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "TOGETHER", 3)
    sampler, tagged = made_sampler(KINDS["sd2"], tmp_path, guidance_scale=2.0), []

    class Tags:
        kind = "ram"

        def __call__(self, image_id, lr):
            if image_id not in tagged:
                assert lr.size == (16, 16)
                tagged.append(image_id)
            return TAGS[int(image_id)]

    sampler.prompts = Tags()
    encoders = watch_encoders(sampler.backbone, monkeypatch)
    sampler.prepare(files)
    assert tagged == ["0", "1", "2"] and set(sampler.embedded.known) == {sampler.args.negative_prompt, "cat, fur", "sea"}
    files[4].path.unlink()  # says so at its own turn
    for file in (files[1], files[2], files[3]):  # another rank has taken the first one
        sampler.sample(file.id, Image.new("RGB", (16, 16)), 1)
    assert tagged == ["0", "1", "2", "3"] and set(sampler.embedded.known) == {sampler.args.negative_prompt, "mountain"}
    assert len(encoders) == 2 and not any(encoder() for encoder in encoders)


class Device:
    """A backbone on a device with memory of its own, which notes what it holds."""

    device, text_parts = torch.device("cuda"), ("text_encoder",)

    def __init__(self):
        self.there, self.denoiser, self.held = {"denoiser"}, self, []

    def to(self, device):
        (self.there.discard if str(device) == "cpu" else self.there.add)("denoiser")

    def load_text_encoders(self):
        self.there.add("text")

    def free_text_encoders(self):
        self.there.discard("text")

    def encode_prompts(self, prompts):
        self.held.append(set(self.there))
        return {"text": torch.zeros(1)}


@pytest.mark.parametrize("free", [99, 100])
def test_the_denoiser_leaves_a_device_that_has_no_room_for_text_encoders_beside_it(free, monkeypatch):
    monkeypatch.setattr(embeddings, "weight_bytes", lambda network: 100)
    monkeypatch.setattr(embeddings, "free_device_bytes", lambda device: free)
    backbone = Device()
    PromptEmbeddings(backbone).learn(["a", "b"])
    assert backbone.held == [{"text"} if free < 100 else {"text", "denoiser"}] * 2 and backbone.there == {"denoiser"}
    backbone.text_encoder = None
    with text_encoders(backbone):  # who has loaded them frees them
        assert backbone.there == {"denoiser"}


def test_t5_embeds_as_many_tokens_as_asked_for(files, tmp_path):
    sampler = made_sampler(KINDS["flux"], tmp_path, max_sequence_length=5)
    sampler.prepare(files)
    group = sampler.sample(files[0].id, Image.open(files[0].path), 1)
    assert group.embedding["encoder_hidden_states"].shape[1] == 5 == sampler.backbone.blank_prompt()["encoder_hidden_states"].shape[1]
    record = sampling_record(sampler)
    assert record["max_sequence_length"] == 5 and "max_sequence_length" not in settings_not_compared(sampler)
    assert "max_sequence_length" not in earlier_values(sampler.args)  # folders from before have another length
    for length in (None, 512):
        args = settings_with(GenerateSettings, max_sequence_length=length)
        assert earlier_values(args)["max_sequence_length"]() is None
    [embedded] = embed_prompts(["sea"], sampler.backbone).values()  # of a training's validation
    assert embedded["encoder_hidden_states"].shape[1] == 5


def test_a_model_whose_text_encoder_has_its_own_length_refuses_another(lr_folder, tmp_path):
    words = [*KINDS["sd2"].model_flags, "--image_path", lr_folder, "--output_dir", tmp_path / "out"]
    done = run_program("gen_candidates.py", *words, "--max_sequence_length", "128", check=False)
    assert_one_clear_line(done, "--max_sequence_length 128", "sd2")
    done = run_program("gen_candidates.py", *words, "--max_sequence_length", "1024", check=False)
    assert_one_clear_line(done, "max_sequence_length", "512")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError):
        set_text_length(load_backbone(KINDS["sd2"].model, parts=("vae",)), 64)


def test_the_repeated_blocks_of_both_networks_are_compiled(kind, files, tmp_path, monkeypatch):
    plain = made_sampler(kind, tmp_path)
    plain.prepare(files[:1])
    compiled, compile_module = [], torch.nn.Module.compile

    def by_eager(module, *args, **options):  # what dynamo traces is run as it is: no compiler is needed
        compiled.append(module)
        compile_module(module, *args, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", by_eager)
    sampler = made_sampler(kind, tmp_path, compile=True)
    sampler.prepare(files[:1])
    for network in (sampler.backbone.denoiser, sampler.controlnet):
        assert set(compiled) & set(network.modules())
    ours, theirs = (each.sample(files[0].id, Image.open(files[0].path), 1).latents for each in (sampler, plain))
    assert torch.allclose(ours.float(), theirs.float(), atol=2e-3)
    record = sampling_record(sampler)
    assert record["compile"] and "compile" in settings_not_compared(sampler)
