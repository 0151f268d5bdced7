"""A candidate folder of candidates that others sampled: scoring and training read it as one of gen_candidates.py."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dp2osr.backbones import load_backbone, model_source
from dp2osr.backbones.base import Backbone
from dp2osr.data.images import pil_to_tensor, read_image
from dp2osr.data.inputs import ImageFile, find_inputs
from dp2osr.device import DTYPES, compute_device, usable_precision
from dp2osr.digests import digest, learn_digests
from dp2osr.errors import UserError
from dp2osr.files import read_json
from dp2osr.outputs import check_output, refuse_inputs
from dp2osr.prompts.source import PromptSource
from dp2osr.sampling.decode import decode_group
from dp2osr.sampling.defaults import NAMES, read_recommended
from dp2osr.sampling.foreign import LatentFolder, PictureFolder, check_foreign
from dp2osr.sampling.progress import summary
from dp2osr.sampling.sampler import model_record
from dp2osr.sampling.settings import ImportSettings
from dp2osr.sampling.store import CandidateGroup, CandidateStore
from dp2osr.sharing import Launch, WorkLog, share

NOT_COMPARED = ("model", "model_files", "variant", "revision", "versions", "prompts")
NO_SEED = -1  # of a candidate that this program has not sampled


def import_candidates(args: ImportSettings) -> CandidateStore:
    """Write the candidates of every LR image of `args.image_path` as groups of `args.output_dir`, beside other ranks and jobs.

    Raises:
        UserError: see `find_inputs`, `check_foreign` and `CandidateStore`; also both or none of images and latents.
    """
    check_output(args.output_dir)
    if bool(args.images) == bool(args.latents):
        raise UserError("--images, --latents: give one of the two")
    refuse_inputs(args.output_dir, {"--image_path": args.image_path, "--images": args.images, "--latents": args.latents}, ("groups",))
    begun, launch = time.monotonic(), Launch()
    with launch.first("inputs"):
        files, _ = find_inputs(args.image_path, quiet=not launch.is_first)
    device = compute_device()
    prompts = PromptSource(args, device)
    line = prompts.check([file.id for file in files], args.prompt_file)
    if line and launch.is_first:
        print(line)
    backbone = load_backbone(
        model_source(args), device, DTYPES[usable_precision(args.mixed_precision, device)], ("vae", "text"), args.backbone
    )
    source: PictureFolder | LatentFolder
    with launch.first("candidates"):
        if args.images:
            source = PictureFolder(args.images, files, args.first_number, args.upscale)
        else:
            source = LatentFolder(str(args.latents), files, args.upscale, backbone)
    count = check_foreign(source, [file.id for file in files])
    record = import_record(args, backbone, prompts, source.kind, count)
    store = CandidateStore(args.output_dir, record, NOT_COMPARED, begin=False)
    importer = Importer(store, source, backbone, prompts, args)
    todo = launch.of_first("import", lambda: importer.missing(files))
    launch.of_first("settings", store.begin)
    importer.write([file for file in files if file.id in set(todo)], launch)
    if launch.is_last("importing"):
        store.locks.leave()
        print(summary(args.output_dir, "group", len(todo), len(files) - len(todo), {}, begun))
    return store


class Importer:
    """What makes a group of an image's foreign candidates."""

    def __init__(
        self, store: CandidateStore, source: PictureFolder | LatentFolder, backbone: Backbone, prompts: PromptSource, args: ImportSettings
    ) -> None:
        self.store, self.source, self.backbone, self.prompts, self.args = store, source, backbone, prompts, args
        self.embedded: tuple[str, dict[str, torch.Tensor]] | None = None

    def write(self, todo: Sequence[ImageFile], launch: Launch) -> None:
        """Import these images, shared with other ranks and jobs; of the first, what the autoencoder changes is printed."""
        log, locks = WorkLog(self.store.folder, "import", launch), self.store.locks
        bar = tqdm(total=len(todo), desc="import", unit="group", disable=launch.local_rank > 0)
        with locks.leaving(), bar:
            for file in share(launch, "import", todo, locks, lambda file: file.id):
                if self.missing([file], held=True):
                    group = self.group(file)
                    self.store.write(group, made_of=self.made_of(file))
                    log.write(file.id)
                    if launch.is_first and file is todo[0]:
                        self.say_loss(group)
                bar.update(launch.add("imported", 1) - bar.n)

    def made_of(self, file: ImageFile) -> dict[str, str]:
        """What a group is made of: hashes of the LR image and of the candidates' files."""
        learn_digests(self.source.paths[file.id])
        content = "".join(map(digest, self.source.paths[file.id]))
        return {"image": file.content, "candidates": hashlib.sha256(content.encode()).hexdigest()}

    def missing(self, files: Sequence[ImageFile], held: bool = False) -> list[str]:
        """Ids of the images whose group is not there, or of other files."""
        prompts = self.prompts.fixed(file.id for file in files)
        there = self.store.survey({file.id: file for file in files}, prompts, held=held)
        return [file.id for file in files if not there[file.id] or self._input(file.id) != self.made_of(file)]

    def _input(self, image_id: str) -> Mapping[str, str]:
        return read_json(self.store.groups / image_id / "group.json").get("input", {})

    def group(self, file: ImageFile) -> CandidateGroup:
        """The candidates of an image.

        Raises:
            UserError: latents that are NaN or infinite, or too large for float16.
        """
        lr = read_image(file.path)
        prompt = self.prompts(file.id, lr)
        if self.embedded is None or self.embedded[0] != prompt:
            self.embedded = prompt, self.backbone.encode_prompts([prompt])
        latents = self.source.read(file.id, self.backbone).to(torch.float16)
        bad = int((~torch.isfinite(latents.flatten(1)).all(1)).sum())
        if bad:
            raise UserError(
                f"{self.source.folder}: latents of {bad} of {len(latents)} candidates of '{file.id}' are NaN, infinite or too large"
            )
        return CandidateGroup(file.id, latents, prompt, lr, [NO_SEED] * len(latents), self.args.upscale, self.embedded[1])

    def say_loss(self, group: CandidateGroup) -> None:
        """Print how far a group's images are from what scoring and training see of them: encoded, decoded, colour-fixed."""
        if self.source.kind == "images":
            images = decode_group(self.backbone, group, self.args.align_method)
            value = mean_psnr(images, self.source.paths[group.image_id])
            tqdm.write(f"note: the autoencoder gives the candidates of '{group.image_id}' back with a PSNR of {value:.1f} dB, colour fix "
                       f"{self.args.align_method}")  # fmt: skip


def mean_psnr(images: torch.Tensor, paths: Sequence[Path]) -> float:
    """Mean PSNR, in dB, of (M, 3, H, W) images in [0, 1] and the images in files."""
    values = []
    for image, path in zip(images, paths, strict=True):
        values.append(-10 * torch.log10((image - pil_to_tensor(read_image(path))).square().mean().clamp_min(1e-12)))
    return float(torch.stack(values).mean())


def import_record(args: ImportSettings, backbone: Backbone, prompts: PromptSource, kind: str, count: int) -> dict[str, Any]:
    """settings.json of imported candidates: what decides them here, and what is said of their sampling."""
    recommended, _ = read_recommended(args.pretrained_model_name_or_path, args.revision)
    said = {name: getattr(args, name, None) for name in NAMES}
    sampling = {name: recommended.get(name) if value is None else value for name, value in said.items()}
    return {
        "imported": {"from": kind, "numbers_from": args.first_number if kind == "images" else 0},
        **model_record(args, backbone, prompts),
        **{name: value for name, value in sampling.items() if value is not None},
        "num_candidates": count,
        "upscale": args.upscale,
    }
