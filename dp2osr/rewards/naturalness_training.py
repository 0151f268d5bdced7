"""Training of `dp2o_naturalness`: images whose order is known, a head that learns them, and its judgement on models that it never saw."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from dp2osr.data.crops import to_tensor
from dp2osr.data.degradation_settings import load_degradation
from dp2osr.data.images import read_image
from dp2osr.data.inputs import list_images
from dp2osr.data.lr_pairs import PairSettings, make_pairs, report_line
from dp2osr.errors import UserError
from dp2osr.files import save_tensors
from dp2osr.outputs import check_output, refuse_inputs
from dp2osr.rewards.distortions import DISTORTIONS, distort, sharpen
from dp2osr.rewards.efficientnet import NETWORKS, Features
from dp2osr.rewards.naturalness import NETWORK, Head, pool
from dp2osr.rewards.rank_metric import strength_at
from dp2osr.sampling.generate import generate_candidates
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.sampling.store import CandidateStore

SHARPENING = (0.5, 6.0)  # amount of the unsharp mask, weakest and strongest
# What makes an image of each sort worse for certain. A blur may do good to a noisy sample, so it is not asked of samples.
WORSE_PHOTOGRAPHS = (*DISTORTIONS, "sharpening")
WORSE_SAMPLES = ("noise", "jpeg", "sharpening")


# ---------------------------------------------------------------------------------------------------------------------
# Images whose order is known
# ---------------------------------------------------------------------------------------------------------------------


def worsen(image: np.ndarray, kind: str, level: float, rng: np.random.Generator) -> np.ndarray:
    """The image with a distortion at `level` in [0, 1] of its range."""
    if kind == "sharpening":
        return sharpen(image, SHARPENING[0] * (SHARPENING[1] / SHARPENING[0]) ** level)
    return distort(image, kind, strength_at(kind, level), rng)


class Known:
    """The images made of one crop, and pairs of them whose order is known.

    Attributes:
        images: list of (H, W, 3) uint8, the photograph first.
        sorts: what each is: "photograph", "bicubic", a model's name, or `SORT+DISTORTION`.
        pairs: (better, worse) places in `images`; the photograph's pairs with all others go without saying.
    """

    def __init__(
        self, photograph: np.ndarray, bicubic: np.ndarray, samples: Sequence[tuple[str, np.ndarray]], rng: np.random.Generator
    ) -> None:
        """`samples`: list of (model's name, (H, W, 3) uint8)."""
        self.images: list[np.ndarray] = []
        self.sorts: list[str] = []
        self.pairs: list[tuple[int, int]] = []
        self.rng = rng
        first = self.add(photograph, "photograph")
        for kind in WORSE_PHOTOGRAPHS:
            self.add_ladder(first, kind)
        self.add(bicubic, "bicubic")
        for name, sample in samples:
            place = self.add(sample, name)
            self.add_ladder(place, str(rng.choice(WORSE_SAMPLES)))
            share = rng.uniform(0.3, 0.7)
            self.add(np.rint(share * photograph + (1 - share) * sample).astype(np.uint8), f"{name}+photograph", worse_than_it=place)

    def add(self, image: np.ndarray, sort: str, better_than_it: int | None = None, worse_than_it: int | None = None) -> int:
        self.images.append(image)
        self.sorts.append(sort)
        place = len(self.images) - 1
        if better_than_it is not None:
            self.pairs.append((better_than_it, place))
        if worse_than_it is not None:
            self.pairs.append((place, worse_than_it))
        return place

    def add_ladder(self, place: int, kind: str) -> None:
        """The image at `place` with a distortion at two rising strengths."""
        image, sort, seed = self.images[place], f"{self.sorts[place]}+{kind}", int(self.rng.integers(1 << 31))
        for level in np.sort(self.rng.uniform(0, 1, 2)):
            place = self.add(worsen(image, kind, level, np.random.default_rng(seed)), sort, better_than_it=place)


@dataclass
class Material:
    """All the images of a split as pooled features, and the pairs.

    Attributes:
        pooled: (N, D); sorts: N names; crop: (N,) the crop that each was made of; pairs: (P, 2), better and worse, with the photograph's.
    """

    pooled: torch.Tensor
    sorts: list
    crop: np.ndarray
    pairs: np.ndarray

    def models(self) -> list[str]:
        """The models' names, sorted."""
        return sorted({sort for sort in self.sorts if "+" not in sort} - {"photograph", "bicubic"})

    def of(self, *names: str) -> np.ndarray:
        """Whether each image is a photograph, bicubic or of one of the models `names`; (N,) bool."""
        return np.array([sort.split("+")[0] in (*names, "photograph", "bicubic") for sort in self.sorts])


def read_material(features: Features, pairs_dir: str | Path, samples: Sequence[tuple[str, Path]], seed: int = 0) -> Material:
    """`Material` of the crops in `pairs_dir`/gt.

    Args:
        features: `Features`.
        pairs_dir: a folder of `scripts/make_lr_pairs.py`.
        samples: list of (model's name, folder of `gen_candidates.py --save_images all`); a crop that it has no group of goes without.
    """
    sorts: list[str] = []
    pooled, crop, pairs = [], [], []
    for index, path in enumerate(tqdm(list_images(Path(pairs_dir) / "gt"), desc="features", unit="crop")):
        photograph, lr = (np.asarray(read_image(Path(pairs_dir) / folder / path.name)) for folder in ("gt", "lr"))
        bicubic = cv2.resize(lr, photograph.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        found = [
            (name, np.asarray(read_image(picture)))
            for name, folder in samples
            for picture in sorted((Path(folder) / "groups" / path.stem).glob("[0-9]*.png"))
        ]
        known = Known(photograph, bicubic, found, np.random.default_rng((seed, index)))
        start = len(sorts)
        with torch.no_grad():
            pooled += [pool(features(part)) for part in to_tensor(known.images).split(16)]
        sorts += known.sorts
        crop += [index] * len(known.sorts)
        others = [(0, place) for place in range(1, len(known.sorts)) if (0, place) not in known.pairs]
        pairs += [(better + start, worse + start) for better, worse in known.pairs + others]
    return Material(torch.cat(pooled), sorts, np.array(crop), np.array(pairs))


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def train_head(
    material: Material, models: Sequence[str], steps: int = 1500, batch_size: int = 256, learning_rate: float = 2e-3, seed: int = 0
) -> Head:
    """A `Head` trained on the pairs of photographs, bicubic and the samples of `models`.

    Half of a batch are pairs of one crop, each sort of the worse image as often; half are a photograph of any crop and any other image.
    The loss of a pair is RankNet's, softplus of the difference (Burges et al. 2005).
    """
    torch.manual_seed(seed)
    rng, allowed = np.random.default_rng(seed), material.of(*models)
    pairs = material.pairs[allowed[material.pairs].all(1)]
    sorts = np.array(material.sorts)
    photographs, others = np.flatnonzero(sorts == "photograph"), np.flatnonzero(allowed & (sorts != "photograph"))
    chances, other_chances = even_chances(sorts[pairs[:, 1]]), even_chances(sorts[others])
    head = Head(material.pooled.shape[1])
    head.mean, head.spread = material.pooled[allowed].mean(0), material.pooled[allowed].std(0) + 1e-3
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        same = pairs[rng.choice(len(pairs), batch_size, p=chances)]
        across = [rng.choice(photographs, batch_size), rng.choice(others, batch_size, p=other_chances)]
        better, lesser = np.concatenate([same, np.stack(across, 1)]).T
        scores = head(material.pooled[np.concatenate([better, lesser])])
        loss = F.softplus(scores[2 * batch_size :] - scores[: 2 * batch_size]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
    return _scaled(head.eval(), material)


def even_chances(sorts: np.ndarray) -> np.ndarray:
    """(N,) chances of images, of which each sort is drawn as often."""
    _, place, counts = np.unique(sorts, return_inverse=True, return_counts=True)
    chances = 1 / counts[place]
    return chances / chances.sum()


@torch.no_grad()
def _scaled(head: Head, material: Material) -> Head:
    """The head with its 0 at the mean of bicubic and its 1 at the mean of the photographs."""
    scores = head(material.pooled)
    means = [scores[[place for place, found in enumerate(material.sorts) if found == sort]].mean() for sort in ("bicubic", "photograph")]
    head.zero, head.one = means
    return head


@torch.no_grad()
def judge(score: Callable[[Material], torch.Tensor], material: Material, models: Sequence[str]) -> dict[str, dict[str, float]]:
    """Shares of held-out pairs in the right order, by what the worse image is.

    Args:
        score: `Material` → (N,) scores, higher is better.
        models: whose samples are judged.

    Returns:
        model → {"photograph > sample", "any photograph > any sample", "mixture > sample", "sample > sample worsened"}.
    """
    scores, sorts = np.asarray(score(material)), np.array(material.sorts)
    found = {}
    for model in models:
        better, worse = material.pairs.T
        right = scores[better] > scores[worse]
        of_sample, worsened = sorts[worse] == model, np.char.startswith(sorts[worse], f"{model}+") & (sorts[worse] != f"{model}+photograph")
        photographs, samples = scores[sorts == "photograph"], scores[sorts == model]
        shares = {
            "photograph > sample": right[of_sample & (sorts[better] == "photograph")],
            "any photograph > any sample": photographs[:, None] > samples[None],
            "mixture > sample": right[of_sample & (sorts[better] == f"{model}+photograph")],
            "sample > sample worsened": right[worsened & np.char.startswith(sorts[better], model)],
        }
        found[model] = {name: round(float(np.mean(share)), 3) for name, share in shares.items()}
    return found


def cross_model(
    material: Material, held_out: Material, families: Mapping[str, Collection[str]], **options: Any
) -> dict[str, dict[str, float]]:
    """What a head says of models that it never saw: one head for each family of models, trained without it and judged on its samples.

    Args:
        families: family → the names of its models.

    Returns:
        model → shares of `judge`, on held-out photographs.
    """
    found: dict[str, dict[str, float]] = {}
    everyone = set(material.models())
    for members in families.values():
        unseen = [name for name in members if name in held_out.models()]
        others = sorted(everyone - set(members))
        if unseen and others:
            head = train_head(material, others, **options)
            found |= judge(lambda of, head=head: head(of.pooled), held_out, unseen)
    return found


def save_head(head: Head, path: str | Path, record: dict[str, Any]) -> None:
    """Write a head, its matrices in fp16, with the hash of its features and how it was trained."""
    state = {key: tensor.half() if tensor.dim() > 1 else tensor for key, tensor in head.state_dict().items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_tensors(state, path, {"features": NETWORKS[NETWORK].content, "training": json.dumps(record)})


def prepare(args: Any) -> tuple[dict[str, list[tuple[str, Path]]], dict[str, set[str]]]:
    """Make, or find, the pairs of photographs and every model's samples of them in `args.work_dir`.

    Returns:
        {"train": [(model's name, its candidate folder)], "val": ...} and family → the names of its models.
    """
    settings = PairSettings(load_degradation("resshift"), args.crop_size, args.crops_per_image, args.min_detail, args.seed)
    samples: dict[str, list[tuple[str, Path]]] = {"train": [], "val": []}
    families: dict[str, set[str]] = {}
    work = Path(args.work_dir)
    for split, folder in (("train", args.train_dir), ("val", args.val_dir)):
        pairs = work / "pairs" / split
        print(report_line(pairs, make_pairs(folder, pairs, settings)))
        for model in args.models:
            base, controlnet = split_model(model)
            for steps in args.num_inference_steps:
                name = f"{Path(base).name}-{steps}"
                store = sample(base, controlnet, steps, pairs / "lr", work / "samples" / split / name, args, split)
                samples[split].append((name, store.folder))
                families.setdefault(store.settings["backbone"], set()).add(name)
    return samples, families


def split_model(model: str) -> tuple[str, str]:
    """`BASE:CONTROLNET` → the two paths; `UserError` for anything else."""
    base, _, controlnet = model.partition(":")
    if not base or not controlnet:
        raise UserError(f"--models {model}: write BASE:CONTROLNET, as preset/models/tiny-flux:preset/models/c-tiny-flux")
    return base, controlnet


def sample(base: str, controlnet: str, steps: int, lr: Path, output: Path, args: Any, split: str) -> CandidateStore:
    """The `CandidateStore` of a model's samples of a folder of LR images; what is there already stays."""
    settings = GenerateSettings(
        pretrained_model_name_or_path=base,
        controlnet_model_name_or_path=controlnet,
        image_path=str(lr),
        output_dir=str(output),
        num_inference_steps=steps,
        seed=args.seed,
        save_images="all",
        num_candidates=args.num_candidates,
        max_images={"train": args.train_images, "val": args.val_images}[split],
    )
    return generate_candidates(settings)


def train_naturalness(args: Any) -> dict[str, Any]:
    """Train a head by the flags of `scripts/train_naturalness.py` and write it.

    Returns:
        The record that the file's metadata holds too: settings, held-out shares of the head that is written, and of heads on models that
        they never saw.
    """
    check_output(args.output, "--output", is_file=True)
    check_output(args.work_dir, "--work_dir")
    refuse_inputs(args.output, {"--train_dir": args.train_dir, "--val_dir": args.val_dir}, flag="--output")
    for model in args.models:
        split_model(model)
    features, started = Features(NETWORK), time.time()
    samples, families = prepare(args)
    pairs = Path(args.work_dir) / "pairs"
    material, held_out = (read_material(features, pairs / split, samples[split], args.seed) for split in ("train", "val"))
    options = {"steps": args.max_train_steps, "seed": args.seed}
    head = train_head(material, material.models(), **options)
    record = {
        **options,
        "models": material.models(),
        "images": len(material.sorts),
        "photographs": len({path.name for path in list_images(args.train_dir)}),
        "held out": judge(lambda of: head(of.pooled), held_out, held_out.models()),
        "never seen": cross_model(material, held_out, families, **options),
    }
    save_head(head, args.output, record)
    return {**record, "seconds": round(time.time() - started)}
