"""The baseline's loader beside what the cores do without it: decode a 12-megapixel JPEG, degrade a crop of 512 × 512.

    python bench/loader.py                                  # 400 photographs, 0, 1 and 2 loading processes
    python bench/loader.py --crops_per_photograph 4         # several crops of one decoded photograph

Bare: as many processes, each Pillow's decoder, a crop and `degrade` in a loop, and nothing else. The two alternate in one run. Photographs
are enlarged photographs of the preset with sensor noise; a few different ones under 400 names, all of them decoded each time.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dp2osr.data.collection import open_collection
from dp2osr.data.degradation import degrade, image_rng
from dp2osr.data.degradation_settings import load_degradation
from dp2osr.data.stream import BatchPlan, PairStream, StreamSettings, pair_batches

ROOT = Path(__file__).resolve().parents[1]


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=400, help="names (default: %(default)s)")
    parser.add_argument("--distinct", type=int, default=8, help="different files among them (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=48, help="samples of each timed pass (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="samples a step (default: %(default)s)")
    parser.add_argument("--crops_per_photograph", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="loading processes (default: 0 1 2)")
    parser.add_argument("--repeats", type=int, default=3, help="passes of each, alternating; medians are kept (default: %(default)s)")
    return parser


def make_photographs(folder, count, distinct):
    """JPEGs of 4000 × 3000, quality 92."""
    sources = sorted((ROOT / "preset/test/gt").glob("*.png"))
    for number in range(distinct):
        image = Image.open(sources[number % len(sources)]).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
        noise = np.random.default_rng(number).integers(-6, 7, (3000, 4000, 3), dtype=np.int16)
        Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=92)
    for number in range(distinct, count):
        os.link(folder / f"{number % distinct:04d}.jpg", folder / f"{number:04d}.jpg")


def bare(folder, numbers, crops, degradation):
    """What a core can do: `numbers` of photographs, each decoded, `crops` crops of it degraded."""
    cv2.setNumThreads(0)
    for number in numbers:
        image = Image.open(folder / f"{number:04d}.jpg").convert("RGB")
        rng = image_rng(0, str(number))
        for _ in range(crops):
            left, top = rng.integers(image.width - 511), rng.integers(image.height - 511)
            gt = np.asarray(image.crop((left, top, left + 512, top + 512)))
            degrade(gt.astype(np.float32) / 255, degradation, rng)


def bare_rate(folder, args, processes, degradation):
    """Samples a second of so many processes."""
    draws = np.array_split(np.arange(args.samples // args.crops_per_photograph) % args.photographs, processes)
    context, started = multiprocessing.get_context("fork"), time.perf_counter()
    running = [context.Process(target=bare, args=(folder, part, args.crops_per_photograph, degradation)) for part in draws]
    for process in running:
        process.start()
    for process in running:
        process.join()
    return args.samples / (time.perf_counter() - started)


def loader_rate(collection, args, workers, degradation):
    """(samples a second, seconds to the first batch, the largest peak of a loading process in MB)."""
    stream = PairStream(collection, StreamSettings(degradation, 512, 8, 0, args.crops_per_photograph))
    plan = BatchPlan(args.batch, 1, 1, 512, 512, args.samples // args.batch, 0)
    started, first, peak = time.perf_counter(), None, 0
    for _ in pair_batches(stream, plan, 0, 0, workers):
        first = first or time.perf_counter() - started
        peak = max([peak, *(peak_of(child.pid) for child in multiprocessing.active_children())])
    return args.samples / (time.perf_counter() - started), first, peak


def peak_of(process):
    """Peak resident memory of a process, MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def main():
    args = build_parser().parse_args()
    cv2.setNumThreads(0)
    degradation = load_degradation("resshift")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_photographs(folder, args.photographs, args.distinct)
        started = time.perf_counter()
        collection = open_collection(folder)
        print(f"{len(collection)} photographs listed in {time.perf_counter() - started:.2f} s")
        print("processes | bare, samples/s | loader, samples/s | loader / bare | first batch, s | peak of a loading process, MB")
        for workers in args.workers:
            pairs = []
            for _ in range(args.repeats):
                pairs.append((bare_rate(folder, args, max(1, workers), degradation), *loader_rate(collection, args, workers, degradation)))
            rates = [statistics.median(values) for values in zip(*pairs, strict=True)]
            ratio = statistics.median(loaded / alone for alone, loaded, *_ in pairs)
            print(f"{workers} | {rates[0]:.2f} | {rates[1]:.2f} | {ratio:.2f} | {rates[2]:.1f} | {rates[3]:.0f}", flush=True)
        print(f"peak of the training process, without a model: {peak_of('self'):.0f} MB")


if __name__ == "__main__":
    main()
