"""Scoring a group: our suite against a loop over pyiqa, the same networks with random weights, in one run.

    python bench/rewards.py                                      # the eight default metrics, 64 candidates of 512 x 512 (4 for MANIQA)
    python bench/rewards.py --metrics lpips-vgg dists --num_candidates 8
    python bench/rewards.py --memory_limit 3 --metrics lpips-vgg dists topiq_fr musiq     # the peak of this process instead of times
    python bench/rewards.py --rows 200000                        # a score table: read, reward, curate, weigh
    python bench/rewards.py --fast bf16 --num_candidates 16      # our suite in bf16, or compiled, against itself in fp32
    python bench/rewards.py --flops                              # what a candidate costs, counted: no time, so on any machine

Both sides score the same candidates: one held-out photograph's crop, distorted more and more. A full-reference metric passes 2M images
where M + 1 are different; that ratio is the most that keeping the GT's features can give.
"""

import argparse
import time
from pathlib import Path

from random_metrics import random_weights

ROOT = Path(__file__).resolve().parents[1]


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", nargs="+", help="pyiqa names (default: those of configs/rewards/default.yaml)")
    parser.add_argument("--num_candidates", type=int, default=64, help="M (default: %(default)s)")
    parser.add_argument(
        "--maniqa_candidates", type=int, default=4, help="candidates of MANIQA alone, half a minute each (default: %(default)s)"
    )
    parser.add_argument("--size", type=int, default=512, help="side of an image, pixels (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="images scored together by our suite (default: %(default)s)")
    parser.add_argument("--fast", choices=["bf16", "compile"], help="time our suite in fp32 and like this, and compare the rankings")
    parser.add_argument("--memory_limit", type=float, help="GB: score one group under this limit and print the most that the process held")
    parser.add_argument("--flops", action="store_true", help="count the FLOPs of each metric on one candidate instead")
    parser.add_argument("--rows", type=int, help="time a synthetic score table of so many rows instead, 64 candidates a group")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (default: %(default)s)")
    return parser


def make_candidates(count, size):
    """(GT (3, H, W), candidates (M, 3, H, W)) in [0, 1]: a crop of an embedded photograph, enlarged, with growing blur and noise."""
    import numpy as np
    import torch
    from PIL import Image, ImageFilter

    source = sorted((ROOT / "preset/test/gt").glob("*.png"))[0]
    gt = Image.open(source).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    generator = torch.Generator().manual_seed(0)
    candidates = []
    for index in range(count):
        blurred = np.asarray(gt.filter(ImageFilter.GaussianBlur(0.3 + 2.0 * (index % 8) / 8)), np.float32) / 255
        image = torch.from_numpy(blurred).permute(2, 0, 1)
        noise = torch.randn(image.shape, generator=generator) * (0.005 + 0.05 * index / count)
        candidates.append((image + noise).clamp(0, 1).mul(255).round().div(255))
    return torch.from_numpy(np.asarray(gt, np.float32) / 255).permute(2, 0, 1), torch.stack(candidates)


def timed(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compare(name, gt, candidates, batch_size):
    """(seconds of the loop, of our suite, largest difference of a score, spread of the scores) of one metric."""
    import pyiqa
    import torch

    from dp2osr.rewards.batches import Batches
    from dp2osr.rewards.config import MetricSpec
    from dp2osr.rewards.metrics import MetricSuite

    with random_weights():
        suite = MetricSuite([MetricSpec(name)], batches=Batches(batch_size))
    with random_weights():
        metric = pyiqa.create_metric(name, device=torch.device("cpu"))
    full_reference = metric.metric_mode == "FR"

    def loop():
        pair = [gt[None].clone()] if full_reference else []  # a clone: A-FINE writes into what it is given
        with torch.no_grad():
            return torch.cat([metric(image[None].clone(), *[part.clone() for part in pair]).flatten() for image in candidates])

    def ours():
        return torch.from_numpy(suite.score(candidates, gt if full_reference else None)[name])

    metric(candidates[:1].clone(), *([gt[None].clone()] if full_reference else []))
    suite.score(candidates[:1], gt if full_reference else None)
    loop_time, expected = timed(loop)
    our_time, scores = timed(ours)
    return loop_time, our_time, (scores - expected.double()).abs().max().item(), expected.std().item()


def compare_fast(args, names):
    """Print one row a metric: seconds in fp32 and `args.fast`, their ratio, Kendall's τ of the candidates, largest difference, spread."""
    from scipy.stats import kendalltau

    from dp2osr.rewards.batches import Batches
    from dp2osr.rewards.config import MetricSpec
    from dp2osr.rewards.metrics import MetricSuite

    gt, candidates = make_candidates(args.num_candidates, args.size)
    header = f"{'metric':14} {'images':>6} {'fp32, s':>9} {args.fast + ', s':>10} {'ratio':>6} {'tau':>6}"
    print(f"{header}  largest difference (spread of the scores)", flush=True)
    totals = [0.0, 0.0]
    for name in names:
        chosen = candidates[: args.maniqa_candidates] if name.startswith("maniqa") else candidates
        times, found = [], []
        for fast in (False, True):
            with random_weights():
                suite = MetricSuite(
                    [MetricSpec(name)],
                    batches=Batches(args.batch_size),
                    precision="bf16" if fast and args.fast == "bf16" else "fp32",
                    compiled=fast and args.fast == "compile",
                )
            suite.score(chosen[: 2 * args.batch_size], gt)  # warm; what compiles, compiles here: with the GT's pass, and without
            seconds, scores = timed(lambda suite=suite, chosen=chosen: suite.score(chosen, gt))
            times.append(seconds)
            found.append(scores[name])
        tau = kendalltau(*found).statistic
        totals = [total + seconds / len(chosen) for total, seconds in zip(totals, times, strict=True)]
        row = f"{name:14} {len(chosen):6} {times[0]:9.2f} {times[1]:10.2f} {times[0] / times[1]:6.2f} {tau:6.3f}"
        print(f"{row}  {abs(found[0] - found[1]).max():.1e} ({found[0].std():.1e})", flush=True)
    print(f"{'all':14} {'':6} {totals[0]:9.3f} {totals[1]:10.3f} {totals[0] / totals[1]:6.2f}  seconds an image")


def print_flops(args, names):
    """Print TFLOPs (two a multiply-add) of a candidate whose GT is known, and of the GT's own pass where there is one."""
    from torch.utils.flop_counter import FlopCounterMode

    from dp2osr.flops import CPU_ATTENTION
    from dp2osr.rewards.config import MetricSpec
    from dp2osr.rewards.metrics import MetricSuite

    gt, candidates = make_candidates(2, args.size)

    def count(suite, images):
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            suite.score(images, gt)
        return counter.get_total_flops() / 1e12

    print(f"{'metric':14} {'a candidate, TFLOP':>20} {'a group beside, TFLOP':>22}", flush=True)
    total = [0.0, 0.0]
    for name in names:
        with random_weights():
            suite = MetricSuite([MetricSpec(name)])
        one, two = count(suite, candidates[:1]), count(suite, candidates)
        costs = [two - one, 2 * one - two]
        total = [sum(pair) for pair in zip(total, costs, strict=True)]
        print(f"{name:14} {costs[0]:20.4f} {costs[1]:22.4f}", flush=True)
    print(f"{'all':14} {total[0]:20.4f} {total[1]:22.4f}")


def peak_under_a_limit(args, names):
    """Score one group with all metrics in one suite and print the peak of this process beside the limit."""
    from models import memory

    from dp2osr.rewards.batches import Batches
    from dp2osr.rewards.config import MetricSpec
    from dp2osr.rewards.metrics import MetricSuite

    batches = Batches(args.num_candidates, memory_limit=args.memory_limit)
    with random_weights():
        suite = MetricSuite([MetricSpec(name) for name in names], batches=batches)
    gt, candidates = make_candidates(args.num_candidates, args.size)
    print(f"{memory('VmRSS'):.2f} GB before the first image, {memory('VmHWM'):.2f} GB at most while the networks were built", flush=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    seconds, _ = timed(lambda: suite.score(candidates, gt))
    print(f"--memory_limit {args.memory_limit:g}: {memory('VmHWM'):.2f} GB at most, {seconds:.1f} s for {len(candidates)} candidates")
    print(", ".join(f"{name} {each / 1e9:.2f} GB an image" for name, each in batches.each.items()))


def time_table(rows):
    """Seconds to read a score table of eight metrics, and to reward, curate and weigh it with N = 8."""
    import tempfile

    import numpy as np

    from dp2osr.preference.hierarchy import hpo_weights
    from dp2osr.preference.pairs import curate
    from dp2osr.rewards.config import load_reward_config
    from dp2osr.rewards.reward import hybrid_reward
    from dp2osr.rewards.table import read_scores, write_scores

    config, rng = load_reward_config("default"), np.random.default_rng(0)
    groups = rows // 64
    columns = {
        "image_id": np.repeat([f"photograph_{index:06d}" for index in range(groups)], 64),
        "candidate": np.tile(np.arange(64), groups),
    }
    columns |= {spec.name: rng.random(64 * groups) for spec in config.metrics}
    modes = {spec.name: "FR" if spec in config.fr else "NR" for spec in config.metrics}
    about = {name: {"lower_better": False, "mode": mode, "options": {}} for name, mode in modes.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.parquet"
        write_scores(path, columns, {"metrics": about})
        reading, table = timed(lambda: read_scores(path))
    rewarding, rewards = timed(lambda: hybrid_reward(table.scores, table.lower_better, config, table.gt_scores))
    curating, chosen = timed(lambda: curate(rewards, 8))
    weighing, _ = timed(lambda: hpo_weights(rewards, *chosen, "both"))
    total = reading + rewarding + curating + weighing
    print(f"{64 * groups} rows: read {reading:.2f} s, reward {rewarding:.2f}, curate {curating:.2f}, weigh {weighing:.2f}, all {total:.2f}")


def main():
    args = build_parser().parse_args()
    if args.rows:
        return time_table(args.rows)
    import torch

    from dp2osr.rewards.building import quiet_imports
    from dp2osr.rewards.config import load_reward_config

    torch.set_num_threads(args.threads)
    config = load_reward_config("default")
    names = args.metrics or [spec.name for spec in config.metrics]
    if args.memory_limit:
        with quiet_imports():
            return peak_under_a_limit(args, names)
    if args.flops:
        with quiet_imports(), torch.no_grad():
            return print_flops(args, names)
    if args.fast:
        with quiet_imports():
            return compare_fast(args, names)
    gt, candidates = make_candidates(args.num_candidates, args.size)
    print(
        f"{args.num_candidates} candidates of {args.size} x {args.size}, random weights, "
        f"{args.threads} threads, batches of {args.batch_size}"
    )
    print(f"{'metric':14} {'images':>6} {'pyiqa, s':>9} {'ours, s':>8} {'ratio':>6}  largest difference (spread of the scores)", flush=True)
    totals = {}
    with quiet_imports():
        for name in names:
            chosen = candidates[: args.maniqa_candidates] if name.startswith("maniqa") else candidates
            loop_time, our_time, difference, spread = compare(name, gt, chosen, args.batch_size)
            per_image = (loop_time / len(chosen), our_time / len(chosen))
            for group in ("all", "FR") if name in {spec.name for spec in config.fr} else ("all",):
                totals.setdefault(group, []).append(per_image)
            row = f"{name:14} {len(chosen):6} {loop_time:9.2f} {our_time:8.2f} {loop_time / our_time:6.2f}"
            print(f"{row}  {difference:.1e} ({spread:.1e})", flush=True)
    for group, times in totals.items():
        loop_time, our_time = (sum(column) for column in zip(*times))
        print(f"{group:14} {'':6} {loop_time:9.3f} {our_time:8.3f} {loop_time / our_time:6.2f}  seconds an image")


if __name__ == "__main__":
    main()
