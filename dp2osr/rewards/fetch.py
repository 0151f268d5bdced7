"""Metrics' weights fetched to a folder, once, on a machine with a network."""

import re
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from dp2osr.rewards import qalign
from dp2osr.rewards.config import MetricSpec
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.weight_files import check_manifest, no_waiting_for_the_hub, weight_files, write_manifest


def hash_in_name(name: str) -> str | None:
    """The first digits of its SHA-256 that a published file carries in its name, as in `vgg16-397923af.pth`; None without."""
    found = re.search(r"-([0-9a-f]{8,})\.(?:pth|pt)$", name)
    return found and found.group(1)


def fetch_weights(specs: Iterable[MetricSpec], folder: str | Path) -> list[str]:
    """Build every metric but Q-Align, so that what it reads is fetched to `folder`, and write the manifest.

    Args:
        specs: `MetricSpec`s; folder: is made if it is not there.

    Returns:
        Lines of text: each file with its size, its hash and the metrics that brought it.

    Raises:
        UserError: a file that is there and differs from the manifest, a metric whose weights cannot be fetched.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_manifest(folder, complete=False)
    brought = {}
    for spec in tqdm(specs, desc="fetch", unit="metric"):
        before = set(weight_files(folder))
        if spec.name in qalign.BYTES_A_PARAMETER:  # to build it takes 16 GB
            with no_waiting_for_the_hub():
                qalign.fetch(folder)
        else:
            MetricSuite([spec], weights_dir=folder)
        brought.update(dict.fromkeys(set(weight_files(folder)) - before, spec.name))
    entries = write_manifest(folder)
    lines = []
    for name, entry in entries.items():
        promised = hash_in_name(name)
        doubt = f"  WARNING: its name promises {promised}" if promised and not entry["sha256"].startswith(promised) else ""
        origin = f"fetched for {brought[folder / name]}" if folder / name in brought else "was there"
        lines.append(f"{entry['bytes'] / 1e6:8.1f} MB  {entry['sha256'][:16]}  {name}  ({origin}){doubt}")
    total = sum(entry["bytes"] for entry in entries.values())
    return [*lines, f"{folder}: {len(entries)} files, {total / 1e6:.1f} MB; read by label_rewards.py --metrics_dir {folder}"]
