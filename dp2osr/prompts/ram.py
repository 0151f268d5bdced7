"""RAM ("Recognize Anything", Zhang et al. 2023) with DAPE's low-rank update (SeeSR): what tags a low-resolution image.

Only what inference needs: a Swin encoder (timm's), and two cross-attention layers in which the class embeddings ask the image tokens.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from dp2osr.backbones.loading import read_tensors
from dp2osr.errors import UserError
from dp2osr.files import save_tensors

SIZE = 384  # side of the picture that RAM sees, pixels
HEADS = 4  # of the cross-attention
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
LORA_SCALE = 1 / 8  # DAPE: α = 1, rank 8
TAGS, THRESHOLDS = "ram_tag_list.txt", "ram_tag_list_threshold.txt"  # as recognize-anything ships them
SOURCE = "RAM: ram_swin_large_14m.pth of huggingface.co/xinyu1205/recognize_anything_model; DAPE: DAPE.pth of SeeSR's release"

# A checkpoint's names → this module's.
RENAMES = (
    (r"^visual_encoder\.", "vision."),
    (r"^tagging_head\.encoder\.layer\.", "head."),
    (r"\.crossattention\.self\.", "."),
    (r"\.crossattention\.output\.dense\.", ".attended."),
    (r"\.crossattention\.output\.LayerNorm\.", ".attended_norm."),
    (r"\.intermediate\.dense\.", ".widen."),
    (r"\.output\.dense\.", ".narrow."),
    (r"\.output\.LayerNorm\.", ".narrow_norm."),
)
PARTS = re.compile(
    r"^(vision|head\.\d+\.(query|key|value|attended|attended_norm|widen|narrow|narrow_norm)|image_proj|wordvec_proj|label_embed|fc)\b"
)


class Tagger(nn.Module):
    """RAM's image-to-tags half. Its sizes are read from the weights it is to take.

    Args:
        weights: {name: tensor} as `rename_weights` or a converted file gives them.
        tags: the classes' names.
        thresholds: (classes,) least probability of each.

    Raises:
        UserError: weights that are no RAM's, or another number of tags than of classes.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], tags: Sequence[str], thresholds: Sequence[float]) -> None:
        super().__init__()
        from timm.models.swin_transformer import SwinTransformer

        self.merged_before = False  # whether DAPE's update was in the file

        if "vision.patch_embed.proj.weight" not in weights or "label_embed" not in weights:
            raise UserError("not the weights of RAM (no vision.patch_embed.proj.weight or no label_embed)")
        classes, words = weights["label_embed"].shape
        if not len(tags) == len(thresholds) == classes:
            raise UserError(
                f"{len(tags)} tags and {len(thresholds)} thresholds for the {classes} classes of RAM; give the files of its release"
            )
        levels = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("vision.layers."))
        depths = [
            len({key.split(".")[4] for key in weights if key.startswith(f"vision.layers.{level}.blocks.")}) for level in range(levels)
        ]
        bias = [weights[f"vision.layers.{level}.blocks.0.attn.relative_position_bias_table"] for level in range(levels)]
        window = (round(len(bias[0]) ** 0.5) + 1) // 2
        width, encoder_width = weights["wordvec_proj.weight"].shape[0], weights["image_proj.weight"].shape[0]
        self.vision = SwinTransformer(
            img_size=SIZE, window_size=window, embed_dim=weights["vision.patch_embed.proj.weight"].shape[0], depths=depths,
            num_heads=[table.shape[1] for table in bias], num_classes=0, global_pool="",
        )  # fmt: skip
        self.image_proj = nn.Linear(self.vision.num_features, encoder_width)
        self.label_embed = nn.Parameter(torch.empty(classes, words))
        self.wordvec_proj = nn.Linear(words, width)
        layers = len({key.split(".")[1] for key in weights if key.startswith("head.")})
        inner = weights["head.0.widen.weight"].shape[0]
        self.head = nn.ModuleList(CrossAttentionLayer(width, encoder_width, inner) for _ in range(layers))
        self.fc = nn.Linear(width, 1)
        self.tags = list(tags)
        self.register_buffer("thresholds", torch.as_tensor(thresholds, dtype=torch.float32), persistent=False)
        missing, unexpected = self.load_state_dict(weights, strict=False)
        if missing or unexpected:
            raise UserError(f"not the weights of RAM: {len(missing)} missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}")
        self.requires_grad_(False).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] of any size → (B, classes) logits; the images are squashed to 384 × 384."""
        images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values).to(images).view(1, 3, 1, 1) for values in (MEAN, STD))
        tokens = self.vision.forward_features((images - mean) / std).flatten(1, 2)
        tokens = self.image_proj(torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1))
        states = F.relu(self.wordvec_proj(self.label_embed)).expand(len(images), -1, -1)
        for layer in self.head:
            states = layer(states, tokens)
        return self.fc(states).squeeze(-1)

    @torch.no_grad()
    def tag(self, image: torch.Tensor) -> str:
        """The tags of one (3, H, W) image in [0, 1], joined by ", ": those whose probability is above their thresholds."""
        weight = self.fc.weight
        [logits] = self(image[None].to(weight.device, weight.dtype))
        chosen = (logits.float().sigmoid() > self.thresholds).nonzero().flatten().tolist()
        return ", ".join(self.tags[index] for index in chosen)


class CrossAttentionLayer(nn.Module):
    """A BERT layer without self-attention: the classes attend to the image, then a two-layer perceptron; norms after the sums."""

    def __init__(self, width: int, encoder_width: int, inner: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(encoder_width, width), nn.Linear(encoder_width, width)
        self.attended, self.attended_norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.widen, self.narrow, self.narrow_norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """States (B, classes, width) and image tokens (B, tokens, encoder_width) → new states."""
        query, key, value = (
            layer(given).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer, given in ((self.query, states), (self.key, tokens), (self.value, tokens))
        )
        context = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        states = self.attended_norm(self.attended(context) + states)
        return self.narrow_norm(self.narrow(F.gelu(self.widen(states))) + states)


def load_tagger(ram_path: str | Path, dape_path: str | Path | None = None, device: str | torch.device = "cpu") -> Tagger:
    """The tagger from RAM's `.pth` (and DAPE's), or from the one file that `scripts/convert_ram.py` made of them.

    A `.pth` has its two text files, the tags and their thresholds, beside it.

    Raises:
        UserError: a file is missing, broken or something else; the line says where to get it.
    """
    ram_path = Path(ram_path)
    if not ram_path.is_file():
        raise UserError(f"{ram_path}: RAM's weights are not there; get them ({SOURCE}), or say --prompt_source none")
    merged = False
    if ram_path.suffix == ".safetensors":
        weights, tags, thresholds, merged = read_converted(ram_path)
    else:
        tags, thresholds = read_classes(ram_path.parent)
        weights = rename_weights(read_checkpoint(ram_path, "RAM"))
    if dape_path and not merged:
        merge_lora(weights, read_checkpoint(dape_path, "DAPE"), dape_path)
    try:
        tagger = Tagger(weights, tags, thresholds).to(device)
    except (UserError, KeyError, RuntimeError) as error:  # a tensor is missing, or has another shape
        raise UserError(f"{ram_path}: {' '.join(str(error).split())[:300]}; {SOURCE}") from None
    tagger.merged_before = merged
    return tagger


def read_checkpoint(path: str | Path, name: str) -> dict[str, torch.Tensor]:
    """{name: tensor} of a `.pth`, plain or under "model"; only tensors are unpickled."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {name}'s weights are not there; get them ({SOURCE}), or say --prompt_source none")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))  # files from before torch 1.6 are no zips
    except Exception as error:  # a truncated zip raises RuntimeError, OSError, EOFError or UnpicklingError
        raise UserError(f"{path}: not a readable checkpoint of {name} ({str(error).splitlines()[0][:150]}); download it again") from None
    content = content.get("model", content) if isinstance(content, dict) else {}
    return {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}


def rename_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """RAM's own names → `Tagger`'s; what tagging does not use (two thirds of the file) is left out.

    timm counts a level's down-sampling with the level after it, and computes position indices and masks itself.
    """
    renamed = {}
    for key, value in state.items():
        for pattern, name in RENAMES:
            key = re.sub(pattern, name, key)
        key = re.sub(r"^vision\.layers\.(\d+)\.downsample\.", lambda found: f"vision.layers.{int(found[1]) + 1}.downsample.", key)
        if PARTS.match(key) and not key.endswith(("relative_position_index", "attn_mask")):
            renamed[key] = value
    return renamed


def merge_lora(weights: dict[str, torch.Tensor], state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Add DAPE's low-rank update to `weights` in place: W + B A / 8; in Swin's stacked qkv on q and v alone.

    Raises:
        UserError: `state`, read from `path`, holds no such update.
    """
    lora = {key: value.float() for key, value in rename_weights(state).items() if key.endswith((".lora_A", ".lora_B"))}
    layers = {key.removesuffix(".lora_A") for key in lora if key.endswith(".lora_A")}
    if not layers:
        raise UserError(f"{path}: holds no low-rank update of this RAM; {SOURCE}")
    for layer in sorted(layers):
        if f"{layer}.weight" not in weights or f"{layer}.lora_B" not in lora:
            raise UserError(f"{path}: its update of {layer} does not fit this RAM; {SOURCE}")
        full, down, up = weights[f"{layer}.weight"].float(), lora[f"{layer}.lora_A"], lora[f"{layer}.lora_B"]
        if layer.endswith(".qkv"):
            rank, width = len(down) // 2, full.shape[1]
            update = torch.cat([up[:width] @ down[:rank], torch.zeros_like(full[:width]), up[width:] @ down[rank:]])
        else:
            update = up @ down
        if update.shape != full.shape:
            raise UserError(f"{path}: its update of {layer} is {tuple(update.shape)}, the layer {tuple(full.shape)}; {SOURCE}")
        weights[f"{layer}.weight"] = full + LORA_SCALE * update


def read_classes(folder: str | Path) -> tuple[list[str], list[float]]:
    """(tags, thresholds) from the two text files of RAM's release in `folder`, a line a class."""
    lines = {}
    for name in (TAGS, THRESHOLDS):
        path = Path(folder) / name
        if not path.is_file():
            raise UserError(
                f"{path}: not there; it is in the recognize-anything repository under ram/data and belongs beside RAM's weights"
            )
        lines[name] = path.read_text(encoding="utf-8").splitlines()
    try:
        return [tag.strip() for tag in lines[TAGS]], [float(value) for value in lines[THRESHOLDS]]
    except ValueError as error:
        raise UserError(f"{Path(folder) / THRESHOLDS}: must hold one number a line ({error})") from None


def write_converted(
    path: str | Path, weights: Mapping[str, torch.Tensor], tags: Sequence[str], thresholds: Sequence[float], merged: bool
) -> None:
    """One safetensors file in fp16 with tags and thresholds in its header, whole or absent."""
    about = {"tags": json.dumps(tags, ensure_ascii=False), "thresholds": json.dumps(thresholds), "dape": json.dumps(merged)}
    save_tensors({key: value.half() for key, value in weights.items()}, path, about)


def read_converted(path: str | Path) -> tuple[dict[str, torch.Tensor], list[str], list[float], bool]:
    """(weights, tags, thresholds, whether DAPE is merged) of `write_converted`'s file."""
    weights = read_tensors(path)
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
    if not {"tags", "thresholds", "dape"} <= about.keys():
        raise UserError(f"{path}: has no tags in its header; make it with scripts/convert_ram.py")
    return weights, json.loads(about["tags"]), json.loads(about["thresholds"]), json.loads(about["dape"])
