"""Time and peak memory of sampling, ours and diffusers' ControlNet pipeline on the same weights, in one run.

    python bench/sampling.py                                  # the tiny model: 512², 1024², 2048², one and eight samples
    python bench/sampling.py --full_size --latents --steps 2 --sizes 256     # largest difference of the latents, fp32, instead of times
    python bench/sampling.py --full_size --steps 1 --sizes 512 --samples 1 --repeats 1     # Stable Diffusion 2-base's sizes, random weights

Both take a prompt and the upsampled LR image and return images: prompt encoding, denoising, decoding. diffusers' pipeline is called once
a sample, as a script that loops over seeds does. Times alternate within one process and the median is kept; each peak is that of a
process of its own at one denoising step, over what it held with the models loaded.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from models import memory, models

ROOT = Path(__file__).resolve().parents[1]

METHODS = ("ours", "ours, not tiled", "diffusers")
PROMPT, NEGATIVE = "cat, animal, fur", "dotted, noise, blur, lowres, smooth"


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048], help="sides of the square result, pixels")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 8], help="samples an image (more than one: at the first size only)")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance_scale", type=float, default=3.5, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (default: %(default)s)")
    parser.add_argument("--full_size", action="store_true", help="Stable Diffusion 2-base with random weights instead of the tiny model")
    parser.add_argument("--latents", action="store_true", help="compare the latents of one sample instead of times")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--peak_of", choices=METHODS, help=argparse.SUPPRESS)
    return parser


class Bench:
    """The two ways to sample, on one set of weights."""

    def __init__(self, args):
        import torch
        from diffusers import StableDiffusionControlNetPipeline
        from PIL import Image

        from dp2osr.cli import parse
        from dp2osr.sampling.sampler import GroupSampler
        from dp2osr.sampling.settings import RestoreSettings

        torch.set_num_threads(args.threads)
        model, controlnet = (Path(args.model) / name for name in ("base", "controlnet"))
        self.args = args
        words = ["--pretrained_model_name_or_path", model, "--controlnet_model_name_or_path", controlnet, "--align_method", "nofix"]
        words += ["--num_inference_steps", args.steps, "--guidance_scale", args.guidance_scale, "--negative_prompt", NEGATIVE]
        flags = parse(RestoreSettings, [*words, "--image_path", ".", "--output_dir", "."], backbone="sd2")
        self.sampler = GroupSampler(flags, "cpu")
        self.sampler.prompts = lambda image_id, lr: PROMPT
        backbone = self.sampler.backbone
        backbone.load_text_encoders()  # of the pipeline; the sampler then takes them too
        self.tilings = self.sampler.settings.tiling, backbone.vae_tiling
        self.pipeline = StableDiffusionControlNetPipeline(
            vae=backbone.vae, text_encoder=backbone.text_encoder, tokenizer=backbone.tokenizer, unet=backbone.unet,
            controlnet=self.sampler.controlnet, scheduler=backbone.sampling_scheduler("ddpm"), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        self.pipeline.set_progress_bar_config(disable=True)
        photograph = sorted((ROOT / "preset/test/gt").glob("*.png"))[0]
        self.photograph = Image.open(photograph).convert("RGB")

    def image(self, size):
        return self.photograph.resize((size, size))

    def ours(self, size, samples, tilings):
        self.sampler.settings.tiling, self.sampler.backbone.vae_tiling = tilings
        self.sampler.embedded.known.clear()  # the pipeline encodes its prompts at every call
        return self.sampler.images(self.sampler.sample("x", self.image(size), samples))

    def run(self, method, size, samples):
        """Images of one method, (samples, 3, size, size) in [0, 1]."""
        import torch

        from dp2osr.backbones.tiles import WHOLE
        from dp2osr.data.images import pil_to_tensor
        from dp2osr.sampling.seeds import candidate_generator

        if method == "ours":
            return self.ours(size, samples, self.tilings)
        if method == "ours, not tiled":
            return self.ours(size, samples, [WHOLE] * 2)
        control = pil_to_tensor(self.image(size))[None]
        with torch.no_grad():
            return torch.cat(
                [
                    self.pipeline(
                        PROMPT, image=control, negative_prompt=NEGATIVE, guidance_scale=self.args.guidance_scale,
                        num_inference_steps=self.args.steps, generator=[candidate_generator(0, "x", index)], output_type="pt",
                    ).images
                    for index in range(samples)
                ]
            )  # fmt: skip


def peak_of(args):
    """Print the peak of one method at one size over what this process held with the models loaded, GB."""
    bench = Bench(args)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is not what is asked
    loaded = memory("VmRSS")
    bench.run(args.peak_of, args.sizes[0], args.samples[0])
    print(memory("VmHWM") - loaded)


def compare_latents(args):
    """Print the largest difference of the two's latents, from the same noise, without the fp16 of the candidate store."""
    from dp2osr.data.images import pil_to_tensor
    from dp2osr.sampling.seeds import candidate_generator

    bench = Bench(args)
    backbone, controlnet, settings = bench.sampler.backbone, bench.sampler.controlnet, bench.sampler.settings
    for size in args.sizes:
        control, shape = pil_to_tensor(bench.image(size))[None], (backbone.latent_channels, *[size // backbone.vae_scale] * 2)
        prompt, negative = backbone.encode_prompts([PROMPT]), backbone.encode_prompts([NEGATIVE])
        ours = backbone.sample(controlnet, control, prompt, negative, [candidate_generator(0, "x", 0)], shape, settings)
        theirs = bench.pipeline(
            PROMPT, image=control, negative_prompt=NEGATIVE, guidance_scale=args.guidance_scale, num_inference_steps=args.steps,
            generator=[candidate_generator(0, "x", 0)], output_type="latent",
        ).images  # fmt: skip
        print(f"{size}², {args.steps} steps: {(ours - theirs).abs().max():.1e} in latents of standard deviation {theirs.std():.2f}")


def measure_peak(method, size, samples, args):
    words = ["--model", args.model, "--peak_of", method, "--sizes", size, "--samples", samples, "--steps", 1, "--threads", args.threads]
    words += ["--guidance_scale", args.guidance_scale]
    done = subprocess.run([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def compare(args):
    """Print one Markdown row a size, number of samples and method."""
    bench = Bench(args)
    print(f"\n{args.steps} steps, guidance {args.guidance_scale}, {args.threads} threads; tiles of {bench.tilings[0].size} latents\n")
    print("| size | samples | method | seconds | ratio to diffusers | peak over the loaded models, GB | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for size in args.sizes:
        for samples in args.samples if size == args.sizes[0] else [1]:
            latents = size // bench.sampler.backbone.vae_scale
            methods = [method for method in METHODS if method != "ours, not tiled" or not bench.tilings[0].covers(latents, latents)]
            seconds, images = {method: [] for method in methods}, {}
            for _ in range(args.repeats):
                for method in methods:
                    started = time.perf_counter()
                    images[method] = bench.run(method, size, samples)
                    seconds[method].append(time.perf_counter() - started)
            times = {method: statistics.median(values) for method, values in seconds.items()}
            for method in methods:
                peak = measure_peak(method, size, samples, args)
                difference = f"{(images[method] - images['diffusers']).abs().max() * 255:.1f}/255" if method != "diffusers" else ""
                row = [
                    f"{size}²",
                    samples,
                    method,
                    f"{times[method]:.2f}",
                    f"{times[method] / times['diffusers']:.2f}",
                    f"{peak:.2f}",
                    difference,
                ]
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


def main():
    args = build_parser().parse_args()
    if args.peak_of:
        return peak_of(args)
    with models(args.full_size) as args.model:
        (compare_latents if args.latents else compare)(args)


if __name__ == "__main__":
    main()
