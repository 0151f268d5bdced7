"""A model that restores one image at a time, with the pixels that the test programs write."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from dp2osr.api.given_images import GivenImage, image_id_of, opened
from dp2osr.api.wording import check_text, in_python, in_python_names, plain, refuse_unknown
from dp2osr.data.images import split_alpha, tensor_to_pil, with_alpha
from dp2osr.errors import UserError
from dp2osr.sampling.settings import RestoreSettings

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dp2osr.sampling.sampler import GroupSampler
    from dp2osr.sampling.strength import Knob

KEPT_PROMPTS = 16  # whose embeddings stay on the device
OF_BASE = ("variant", "revision", "pretrained_vae_model_name_or_path", "tokenizer_name")  # what a policy's folder says of its base


class Model:
    """A base model with a ControlNet, on a device; made by `load`.

    Attributes:
        kind: "sd2" or "flux".
        model, controlnet: where they are from.
        device: where it samples, a `torch.device`.
        defaults: {option of `restore`: value} of the options that are the model's own, by its `sampling_settings.json` or the paper.
    """

    def __init__(self, settings: RestoreSettings, device: torch.device, ram_path: str | None = None, dape_path: str | None = None) -> None:
        from dp2osr.prompts.source import PromptSource
        from dp2osr.sampling.sampler import GroupSampler

        self._settings, self.device = settings, device
        self._prompts = PromptSource(replace(settings, ram_path=ram_path, dape_path=dape_path), device)
        first = GroupSampler(settings, device)
        self._backbone, self._controlnet = first.backbone, first.controlnet
        self._own = {name: getattr(self._backbone, name) for name in ("native_size", "vae_tiling", "max_sequence_length")}
        self._embeddings: dict[str, dict[str, torch.Tensor]] = {}
        self._knob: Knob | None = None
        self.kind: str = self._backbone.kind
        self.model, self.controlnet = settings.pretrained_model_name_or_path, settings.controlnet_model_name_or_path
        self.defaults: dict[str, Any] = {name: value for name, (value, _) in first.filled.items()}

    def __repr__(self) -> str:
        return f"<dp2osr.Model {self.kind}: {self.model} with {self.controlnet} on {self.device}>"

    def restore(
        self, image: GivenImage, upscale: float = 4, samples: int = 1, seed: int = 0, *,
        image_id: str | None = None, prompt: str | None = None, num_inference_steps: int | None = None, guidance_scale: float | None = None,
        scheduler: str | None = None, align_method: Literal["adain", "wavelet", "nofix"] | None = None, control_scale: float | None = None,
        negative_prompt: str | None = None, batch_size: int = 8, process_size: int | None = None, tile_size: int | None = None,
        tile_overlap: int | None = None, vae_tile_size: int | None = None, progress: Callable[[int, int], object] | None = None,
        **unknown: NoReturn,
    ) -> list[Image.Image]:  # fmt: skip
        """SR images of one image, each from its own seed: the pixels that the test programs write with the same settings.

        Args:
            image: a path, a PIL image, or a (H, W, 3), (H, W, 4) or (H, W) array of uint8, of any size. It is turned upright (EXIF) and
                brought to sRGB; its opacity is that of the results.
            upscale: size of a result over size of the image, above 0.
            samples: how many results, from 1 on.
            seed, image_id: sample number m follows from (`seed`, `image_id`, m), and from nothing else. The id is the file's name without
                its ending, and "image" for an image in memory.
            prompt: text about the image; RAM's tags where `load` was given RAM, else empty.
            batch_size: samples that are denoised together; it changes no image but by rounding.
            progress: called as `progress(done, total)` after each pass of the network.
            num_inference_steps and the others: as the flags of the test programs; the model's `defaults` if None.

        Returns:
            `samples` PIL images, RGB, or RGBA where the image has an opacity.

        Raises:
            UserError: a value that an option does not take, an option or a file that is not there, an unreadable image, memory that does
                not suffice; `NonFiniteSamples`, which is one, where the model gives NaN.

        Example:
            model.restore("photo.jpg", upscale=2, samples=4, prompt="a red house")[0].save("large.png")
        """
        refuse_unknown(unknown, Model.restore)
        check_text(prompt=prompt, scheduler=scheduler, negative_prompt=negative_prompt)
        if progress is not None and not callable(progress):
            raise UserError(f"progress: is a {type(progress).__name__}; give a function of two numbers, done and total")
        options = {
            "upscale": upscale, "sample_times": samples, "seed": seed, "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale, "scheduler": scheduler, "align_method": align_method, "control_scale": control_scale,
            "negative_prompt": negative_prompt, "batch_size": batch_size, "process_size": process_size, "tile_size": tile_size,
            "tile_overlap": tile_overlap, "vae_tile_size": vae_tile_size,
        }  # fmt: skip
        with in_python():
            args = replace(self._settings, **{name: plain(value) for name, value in options.items()})
            name = image_id_of(image, image_id)
            return self._restore(opened(image), name, args, prompt, progress)

    def estimate(self, image: GivenImage, upscale: float = 4, samples: int = 1, **options: Any) -> tuple[float, list[str]]:
        """What `restore` with the same arguments will take here: seconds, by one pass over one tile, and the lines that the programs print.

        Args:
            options: of `restore`.

        Raises:
            UserError: as of `restore`; memory does not suffice.

        Example:
            seconds, lines = model.estimate("photo.jpg", upscale=2, samples=4)
        """
        from dp2osr.sampling.estimate import Estimate

        of_restore = signature(Model.restore).parameters.keys() - {"self", "unknown"}
        refuse_unknown({name: value for name, value in options.items() if name not in of_restore}, Model.restore)
        decisive = {name: plain(value) for name, value in options.items() if name not in ("image_id", "prompt", "progress")}
        with in_python():
            args = replace(self._settings, upscale=plain(upscale), sample_times=plain(samples), **decisive)
            sampler, name = self._sampler(args), image_id_of(image, options.get("image_id"))
            made = Estimate(
                {name: opened(image).size}, sampler.backbone, self._controlnet, sampler.settings, args.upscale, args.sample_times,
                args.batch_size, sampler.args.align_method,
            )  # fmt: skip
            return made.seconds, made.lines()

    def set_policy_strength(self, strength: float) -> None:
        """From now on restore between base (0) and policy (1), or beyond: as a model of `load(..., policy_strength=strength)`.

        From the first call on the base's and the policy's ControlNet stay in memory in float32, so that a change takes no reading.

        Raises:
            UserError: a strength below 0, or a base that cannot be found or does not fit.

        Example:
            model.set_policy_strength(0.5)
        """
        from dp2osr.sampling.strength import Knob

        with in_python():
            args = replace(self._settings, policy_strength=plain(strength))
            self._knob = self._knob or Knob(args, self._backbone, args.expected_layers())
            self._knob.turn(self._controlnet, args.policy_strength)
            self._settings = args

    def _restore(
        self, image: Image.Image, name: str, args: RestoreSettings, prompt: str | None, progress: Callable[[int, int], object] | None
    ) -> list[Image.Image]:
        from dp2osr.sampling.estimate import Estimate
        from dp2osr.sampling.memory import passes

        sampler, (lr, alpha) = self._sampler(args), split_alpha(image)
        given, count = sampler.args, args.sample_times
        of_work = sampler.backbone, sampler.settings
        Estimate({name: lr.size}, sampler.backbone, self._controlnet, sampler.settings, args.upscale, count, args.batch_size,
                 given.align_method)  # fmt: skip  # refuses what memory does not hold
        sampler.prompts.tags = {} if prompt is None else {name: prompt}
        self._embed(sampler, [sampler.prompts(name, lr)] + [given.negative_prompt] * sampler.is_guided)
        total, done = passes(*of_work, lr.size, args.upscale, count, args.batch_size) if progress else 0, 0

        def passed(more: int) -> None:
            nonlocal done
            done += more
            if progress:
                progress(done, total)

        group = sampler.sample(name, lr, count, progress=passed)
        return [with_alpha(tensor_to_pil(pixels), alpha) for pixels in sampler.images(group)]

    def _sampler(self, args: RestoreSettings) -> GroupSampler:
        """A sampler on this model's networks, which forget what the one before has set."""
        from dp2osr.device import set_tf32
        from dp2osr.sampling.sampler import GroupSampler, unused_prompt

        set_tf32(self.device, args.disable_tf32)
        for name, value in self._own.items():
            setattr(self._backbone, name, value)
        sampler = GroupSampler(args, self.device, self._backbone, self._controlnet, args.process_size)
        sampler.prompts, sampler.controlnet_name = self._prompts, self.controlnet
        line = unused_prompt(args.negative_prompt, sampler)
        if line:
            warnings.warn(in_python_names(line.removeprefix("note: ")), stacklevel=4)
        return sampler

    def _embed(self, sampler: GroupSampler, prompts: Sequence[str]) -> None:
        """Give the sampler the embeddings of these prompts; those of earlier images are kept, as text encoders take long to load."""
        missing = [prompt for prompt in prompts if prompt not in self._embeddings]
        if len(self._embeddings) + len(missing) > KEPT_PROMPTS:
            self._embeddings, missing = {}, list(prompts)
        if missing:
            sampler.embedded.learn(missing)
            self._embeddings |= {prompt: sampler.embedded(prompt) for prompt in missing}
        sampler.embeddings = self._embeddings


def load(
    model: str | PathLike[str], controlnet: str | PathLike[str] | None = None, *, device: str | torch.device | None = None,
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None, variant: str | None = None, revision: str | None = None,
    vae: str | PathLike[str] | None = None, tokenizer: str | PathLike[str] | None = None, max_sequence_length: int | None = None,
    ram_path: str | PathLike[str] | None = None, dape_path: str | PathLike[str] | None = None, disable_tf32: bool = False,
    policy_strength: float = 1.0, base_controlnet: str | PathLike[str] | None = None, **unknown: NoReturn,
) -> Model:  # fmt: skip
    """A model that restores images. Which kind it is, SD2 or FLUX, is read from its base's folder.

    Args:
        model: the base model, a diffusers folder or hub id; or the folder of a trained policy, which knows its base.
        controlnet: a diffusers folder, a hub id, one safetensors file or the checkpoint of a training; not needed with a policy's folder.
        device: "cpu", "cuda", "cuda:1" ...; this machine's accelerator if None, else its CPU.
        mixed_precision: of the networks; the launcher's if None, else "no". On a CPU "fp16" becomes "no", with a warning.
        variant, revision, vae, tokenizer, max_sequence_length, disable_tf32: as the flags of the test programs, docs/restore.md.
        ram_path, dape_path: RAM and DAPE, which then tag each image that has no `prompt`.
        policy_strength: 0 gives the base's ControlNet, 1 the trained one, above 1 what lies beyond.
        base_controlnet: the base's ControlNet, for another strength than 1; the start of the training if None.

    Raises:
        UserError: no such model, ControlNet or device, one that does not fit the other, an unknown option or value.

    Example:
        model = dp2osr.load("runs/quickstart/policy")
    """
    refuse_unknown(unknown, load)
    check_text(variant=variant, revision=revision)
    paths = {
        "pretrained_model_name_or_path": model, "controlnet_model_name_or_path": controlnet, "pretrained_vae_model_name_or_path": vae,
        "tokenizer_name": tokenizer, "ram_path": ram_path, "dape_path": dape_path,
        "base_controlnet_model_name_or_path": base_controlnet,
    }  # fmt: skip
    with in_python():
        found = {name: as_path(name, value) for name, value in paths.items()}
        ram, dape = found.pop("ram_path"), found.pop("dape_path")
        options: dict[str, Any] = {**found, "variant": variant, "revision": revision}
        if controlnet is None:
            options = base_of_policy(options)
        options |= {
            "mixed_precision": mixed_precision,
            "max_sequence_length": plain(max_sequence_length),
            "disable_tf32": bool(disable_tf32),
            "policy_strength": plain(policy_strength),
        }
        return Model(RestoreSettings(image_path="-", output_dir="-", **options), chosen_device(device), ram, dape)


def as_path(name: str, value: object) -> str | None:
    """A path as text; `UserError` where it is none."""
    if not (value is None or isinstance(value, (str, PathLike))):
        raise UserError(f"--{name}: {value!r} is not a path")
    return None if value is None else fspath(value)


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device that is named, or this machine's; `UserError` where there is no such device here."""
    import torch

    from dp2osr.device import compute_device

    if device is None:
        return compute_device()
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"device: {device!r} cannot be used here ({reason}); leave it out, or take 'cpu'") from None
    return found


def base_of_policy(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a model that is named alone, as those of the base and the ControlNet that it is: it must be a trained policy's folder.

    Raises:
        UserError: it is none, or its base is not here.
    """
    from dp2osr.backbones.locate import find_model_file, locate
    from dp2osr.files import read_json

    policy = options["pretrained_model_name_or_path"]
    folder = locate(policy)
    way = f"give both: dp2osr.load(base, controlnet={policy!r})"
    if folder is None:
        of_hub = find_model_file(policy, "settings.json")
        if of_hub is None:
            raise UserError(f"{policy}: is no folder here; a base model of a hub needs a ControlNet: give controlnet=")
        about = read_json(of_hub)
    else:
        if (folder / "model_index.json").exists():
            raise UserError(f"{policy}: is a base model and needs a ControlNet; give controlnet=, or load the folder of a trained policy")
        files = [place / "settings.json" for place in (folder, *folder.parents[:1]) if (place / "settings.json").is_file()]
        about = read_json(files[0]) if folder.is_dir() and files else None
    base = about.get("pretrained_model_name_or_path") if isinstance(about, dict) else None
    if not isinstance(about, dict) or not isinstance(base, str):
        raise UserError(f"{policy}: has no settings.json of a training, which would name its base model; {way}")
    try:
        here = locate(base)
    except UserError:
        raise UserError(f"{policy}: was trained on {base}, which is not here (from {Path.cwd()}); {way}") from None
    kept = {name: options.get(name) or about.get(name) for name in OF_BASE}
    return {**options, **kept, "pretrained_model_name_or_path": str(here or base), "controlnet_model_name_or_path": policy}
