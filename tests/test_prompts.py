"""The tagger against a reference written out from RAM's own code, on random weights; its files; the flags that choose prompts."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import CONTROLNET, MODEL, run_program, save_noise, settings_with
from PIL import Image
from torch.nn import functional as F

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.prompts.ram import Tagger, load_tagger, rename_weights
from dp2osr.prompts.source import PromptSource
from dp2osr.sampling.settings import GenerateSettings

SMALL = SimpleNamespace(width=16, depths=(2, 1, 2, 1), heads=(1, 2, 4, 8), classes=11, words=8, encoder=24, hidden=32, inner=48)
RELEASED = SimpleNamespace(
    width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), classes=4585, words=512, encoder=512, hidden=768, inner=3072
)
WINDOW = 12


def random_ram(size, generator=None):
    """A RAM of `size` under the names of the released checkpoint, with some of the parts that tagging does not use."""
    state = {}

    def add(name, *shape, scale=None):
        state[name] = torch.randn(shape, generator=generator) * (scale or shape[-1] ** -0.5)

    def linear(name, width_out, width_in, bias=True):
        add(f"{name}.weight", width_out, width_in)
        if bias:
            add(f"{name}.bias", width_out, scale=0.1)

    def norm(name, width):
        add(f"{name}.weight", width, scale=0.1)
        state[f"{name}.weight"] += 1
        add(f"{name}.bias", width, scale=0.1)

    add("visual_encoder.patch_embed.proj.weight", size.width, 3, 4, 4, scale=0.2)
    add("visual_encoder.patch_embed.proj.bias", size.width, scale=0.1)
    norm("visual_encoder.patch_embed.norm", size.width)
    for level, (depth, heads) in enumerate(zip(size.depths, size.heads, strict=True)):
        width = size.width * 2**level
        for block in range(depth):
            name = f"visual_encoder.layers.{level}.blocks.{block}"
            norm(f"{name}.norm1", width), norm(f"{name}.norm2", width)
            linear(f"{name}.attn.qkv", 3 * width, width), linear(f"{name}.attn.proj", width, width)
            add(f"{name}.attn.relative_position_bias_table", (2 * WINDOW - 1) ** 2, heads, scale=0.5)
            state[f"{name}.attn.relative_position_index"] = torch.zeros(144, 144, dtype=torch.int64)
            linear(f"{name}.mlp.fc1", 4 * width, width), linear(f"{name}.mlp.fc2", width, 4 * width)
        if level < 3:
            norm(f"visual_encoder.layers.{level}.downsample.norm", 4 * width)
            linear(f"visual_encoder.layers.{level}.downsample.reduction", 2 * width, 4 * width, bias=False)
    norm("visual_encoder.norm", 8 * size.width)
    linear("image_proj", size.encoder, 8 * size.width), linear("wordvec_proj", size.hidden, size.words), linear("fc", 1, size.hidden)
    add("label_embed", size.classes, size.words, scale=1.0)
    for layer in range(2):
        name = f"tagging_head.encoder.layer.{layer}"
        linear(f"{name}.crossattention.self.query", size.hidden, size.hidden)
        (
            linear(f"{name}.crossattention.self.key", size.hidden, size.encoder),
            linear(f"{name}.crossattention.self.value", size.hidden, size.encoder),
        )
        (
            linear(f"{name}.crossattention.output.dense", size.hidden, size.hidden),
            norm(f"{name}.crossattention.output.LayerNorm", size.hidden),
        )
        linear(f"{name}.intermediate.dense", size.inner, size.hidden), linear(f"{name}.output.dense", size.hidden, size.inner)
        norm(f"{name}.output.LayerNorm", size.hidden)
        linear(f"{name}.attention.self.query", size.hidden, size.hidden), linear(f"{name}.attention.output.dense", size.hidden, size.hidden)
    linear("tag_encoder.encoder.layer.0.output.dense", 4, 4), linear("text_decoder.cls", 4, 4)
    return state


def random_dape(state, generator, rank=8):
    """A low-rank update of q and v in Swin's qkv and of the cross-attention's query and key."""
    lora = {}
    for key, weight in state.items():
        layer, (rows, columns) = key.removesuffix(".weight"), weight.shape if weight.ndim == 2 else (0, 0)
        if key.endswith("attn.qkv.weight"):
            lora[f"{layer}.lora_A"] = torch.randn(2 * rank, columns, generator=generator) * columns**-0.5
            lora[f"{layer}.lora_B"] = torch.randn(2 * columns, rank, generator=generator) * 0.3
        elif key.endswith(("crossattention.self.query.weight", "crossattention.self.key.weight")):
            lora[f"{layer}.lora_A"] = torch.randn(rank, columns, generator=generator) * columns**-0.5
            lora[f"{layer}.lora_B"] = torch.randn(rows, rank, generator=generator) * 0.3
    lora["condition.unused"] = torch.zeros(3)
    return lora


class Reference:
    """RAM's layers in float64, the update applied beside each layer instead of merged."""

    def __init__(self, state, lora):
        self.state, self.lora = ({key: value.double() for key, value in each.items()} for each in (state, lora))

    def linear(self, name, x):
        out = x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0)
        if f"{name}.lora_A" not in self.lora:
            return out
        down, up = self.lora[f"{name}.lora_A"], self.lora[f"{name}.lora_B"]
        if not name.endswith("qkv"):
            return out + (x @ down.T) @ up.T / 8
        width = x.shape[-1]
        query, key, value = out.split(width, dim=-1)
        query = query + (x @ down[:8].T) @ up[:width].T / 8
        value = value + (x @ down[8:].T) @ up[width:].T / 8
        return torch.cat([query, key, value], -1)

    def norm(self, name, x, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def window_attention(self, name, x, heads, shift):
        """`x` (side, side, C): attention inside windows of 12 × 12, one window after the other."""
        side, width = len(x), x.shape[-1]
        x = torch.roll(x, (-shift, -shift), (0, 1))
        region = torch.zeros(side)
        if shift:
            region[side - WINDOW : side - shift], region[side - shift :] = 1, 2
        table, out = self.state[f"{name}.relative_position_bias_table"], torch.empty_like(x)
        rows, columns = (grid.flatten() for grid in torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij"))
        offset = (rows[:, None] - rows[None] + WINDOW - 1) * (2 * WINDOW - 1) + columns[:, None] - columns[None] + WINDOW - 1
        for top in range(0, side, WINDOW):
            for left in range(0, side, WINDOW):
                patch = x[top : top + WINDOW, left : left + WINDOW].reshape(WINDOW**2, width)
                query, key, value = self.linear(f"{name}.qkv", patch).split(width, -1)
                where = 3 * region[top + rows] + region[left + columns]
                joined = []
                for head in range(heads):
                    part = slice(head * width // heads, (head + 1) * width // heads)
                    scores = query[:, part] @ key[:, part].T / math.sqrt(width // heads) + table[offset, head]
                    scores = scores.masked_fill(where[:, None] != where[None], -torch.inf)
                    joined.append(scores.softmax(-1) @ value[:, part])
                patch = self.linear(f"{name}.proj", torch.cat(joined, -1))
                out[top : top + WINDOW, left : left + WINDOW] = patch.view(WINDOW, WINDOW, width)
        return torch.roll(out, (shift, shift), (0, 1))


def reference_logits(state, lora, image):
    """RAM's forward pass step by step in float64, the update applied beside each layer instead of merged."""
    reference = Reference(state, lora)
    state, linear, norm, window_attention = reference.state, reference.linear, reference.norm, reference.window_attention

    image = F.interpolate(image[None].double(), (384, 384), mode="bilinear", antialias=True, align_corners=False)
    image = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    name = "visual_encoder.patch_embed"
    x = F.conv2d(image, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"], stride=4)[0].permute(1, 2, 0)
    x = norm(f"{name}.norm", x)
    for level, (depth, heads) in enumerate(zip(SMALL.depths, SMALL.heads, strict=True)):
        for block in range(depth):
            name = f"visual_encoder.layers.{level}.blocks.{block}"
            shift = WINDOW // 2 if block % 2 and len(x) > WINDOW else 0
            x = x + window_attention(f"{name}.attn", norm(f"{name}.norm1", x), heads, shift)
            x = x + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))))
        if level < 3:
            name = f"visual_encoder.layers.{level}.downsample"
            x = torch.cat([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
            x = linear(f"{name}.reduction", norm(f"{name}.norm", x))
    tokens = norm("visual_encoder.norm", x).flatten(0, 1)
    tokens = linear("image_proj", torch.cat([tokens.mean(0, keepdim=True), tokens]))
    states = F.relu(linear("wordvec_proj", state["label_embed"]))
    for layer in range(2):
        name = f"tagging_head.encoder.layer.{layer}"
        query = linear(f"{name}.crossattention.self.query", states)
        key, value = (linear(f"{name}.crossattention.self.{which}", tokens) for which in ("key", "value"))
        joined = []
        for part in torch.arange(SMALL.hidden).chunk(4):
            joined.append((query[:, part] @ key[:, part].T / math.sqrt(SMALL.hidden / 4)).softmax(-1) @ value[:, part])
        attended = linear(f"{name}.crossattention.output.dense", torch.cat(joined, -1))
        states = norm(f"{name}.crossattention.output.LayerNorm", attended + states, 1e-12)
        inner = linear(f"{name}.output.dense", F.gelu(linear(f"{name}.intermediate.dense", states)))
        states = norm(f"{name}.output.LayerNorm", inner + states, 1e-12)
    return linear("fc", states).squeeze(-1)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder as a user has it: RAM's and DAPE's `.pth` and RAM's two text files."""
    folder, generator = tmp_path_factory.mktemp("ram"), torch.Generator().manual_seed(0)
    state = random_ram(SMALL, generator)
    lora = random_dape(state, generator)
    state["fc.bias"] -= reference_logits(state, lora, torch.full((3, 8, 8), 0.5)).median().float()  # about half of the classes are chosen
    torch.save({"model": state, "optimizer": 0}, folder / "ram.pth")
    torch.save(lora, folder / "DAPE.pth")
    (folder / "ram_tag_list.txt").write_text("\n".join(f"tag {index}" for index in range(SMALL.classes)) + "\n", encoding="utf-8")
    (folder / "ram_tag_list_threshold.txt").write_text("\n".join(["0.5"] * (SMALL.classes - 1) + ["1.0"]) + "\n", encoding="utf-8")
    return folder, state, lora


@pytest.fixture(scope="module")
def image():
    return torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("with_dape", [False, True])
def test_logits_equal_those_of_the_reference(released, image, with_dape):
    folder, state, lora = released
    tagger = load_tagger(folder / "ram.pth", folder / "DAPE.pth" if with_dape else None)
    [logits] = tagger(image[None])
    expected = reference_logits(state, lora if with_dape else {}, image)
    assert expected.std() > 0.05
    assert (logits - expected).abs().max() <= 1e-5
    plain = reference_logits(state, {}, image)
    assert not with_dape or (plain - expected).abs().max() > 1e-2  # the update is felt, so its absence would be too
    chosen = [f"tag {index}" for index in range(SMALL.classes - 1) if expected[index] > 0]  # the last class has threshold 1
    assert tagger.tag(image) == ", ".join(chosen)


def test_the_released_size_has_212_million_parameters():
    with torch.device("meta"):
        weights = rename_weights(random_ram(RELEASED))
        tagger = Tagger(weights, [""] * 4585, [0.65] * 4585)
    assert sum(parameter.numel() for parameter in tagger.parameters()) / 1e6 == pytest.approx(212, abs=1)


def test_the_converted_file_tags_as_the_released_ones_do(released, image, tmp_path):
    folder, _, _ = released
    words = ["--ram_path", folder / "ram.pth", "--dape_path", folder / "DAPE.pth", "--output", tmp_path / "tagger.safetensors"]
    run_program("scripts/convert_ram.py", *words)
    original, converted = load_tagger(folder / "ram.pth", folder / "DAPE.pth"), load_tagger(tmp_path / "tagger.safetensors")
    assert converted.tags == original.tags and torch.equal(converted.thresholds, original.thresholds)
    assert (converted(image[None]) - original(image[None])).abs().max() < 1e-2  # fp16 weights
    twice = load_tagger(tmp_path / "tagger.safetensors", folder / "DAPE.pth")  # the update is not merged a second time
    assert torch.equal(twice(image[None]), converted(image[None]))
    again = ["--ram_path", tmp_path / "tagger.safetensors", "--output", tmp_path / "new" / "again.safetensors"]
    run_program("scripts/convert_ram.py", *again)
    assert torch.equal(load_tagger(again[-1], folder / "DAPE.pth")(image[None]), converted(image[None]))
    tagger = load_tagger(folder / "ram.pth")
    assert (tagger(image[None]) - original(image[None])).abs().max() > 1e-2


def test_candidates_carry_the_tags_of_their_image(released, tmp_path):
    folder, _, _ = released
    images = tmp_path / "lr"
    images.mkdir()
    save_noise(images / "a.png", (20, 20))
    model = ["--pretrained_model_name_or_path", MODEL, "--controlnet_model_name_or_path", CONTROLNET]
    ram = ["--ram_path", folder / "ram.pth", "--dape_path", folder / "DAPE.pth"]
    words = [*model, *ram, "--image_path", images, "--num_candidates", "1", "--num_inference_steps", "1", "--output_dir", tmp_path / "out"]
    run_program("gen_candidates.py", *words)
    source = PromptSource(settings_with(GenerateSettings, ram_path=str(folder / "ram.pth"), dape_path=str(folder / "DAPE.pth")))
    expected = source("a", Image.open(images / "a.png").convert("RGB"))
    assert expected and json.loads((tmp_path / "out/groups/a/group.json").read_text())["prompt"] == expected
    assert json.loads((tmp_path / "out/settings.json").read_text())["prompt_source"] == "ram"


@pytest.mark.parametrize(
    ("change", "flags", "mentions"),
    [
        (None, ("--ram_path", "absent/ram.pth"), ("absent/ram.pth", "huggingface.co", "--prompt_source none")),
        (None, ("--ram_path", "{}/ram.pth", "--dape_path", "absent.pth"), ("absent.pth", "DAPE")),
        (
            lambda folder: (folder / "ram.pth").write_bytes(b"PK broken"),
            ("--ram_path", "{}/ram.pth"),
            ("ram.pth", "not a readable checkpoint"),
        ),
        (lambda folder: (folder / "ram_tag_list.txt").unlink(), ("--ram_path", "{}/ram.pth"), ("ram_tag_list.txt", "beside")),
        (lambda folder: (folder / "ram_tag_list.txt").write_text("cat"), ("--ram_path", "{}/ram.pth"), ("1 tags", "11 classes")),
        (None, ("--ram_path", "{}/DAPE.pth"), ("DAPE.pth", "not the weights of RAM")),
        (None, ("--ram_path", "{}/ram.pth", "--dape_path", "{}/ram.pth"), ("ram.pth", "no low-rank update")),
        (None, ("--prompt_source", "ram"), ("needs --ram_path",)),
        (None, ("--dape_path", "{}/DAPE.pth"), ("needs --ram_path",)),
        (None, ("--ram_path", "{}/ram.pth", "--prompt_file", "tags.json"), ("say which with --prompt_source",)),
        (None, ("--prompt_source", "file"), ("needs --prompt_file",)),
    ],
)
def test_a_tagger_that_cannot_be_had_is_one_line(released, tmp_path, change, flags, mentions):
    folder = tmp_path / "ram"
    shutil.copytree(released[0], folder)
    if change:
        change(folder)
    args = options(*(flag.replace("{}", str(folder)) for flag in flags))
    with pytest.raises(UserError) as mistake:
        PromptSource(args)
    for mention in mentions:
        assert mention in str(mistake.value)


def options(*flags):
    needed = ["--pretrained_model_name_or_path", "x", "--controlnet_model_name_or_path", "x", "--image_path", "x", "--output_dir", "x"]
    return parse(GenerateSettings, [*needed, *flags])
