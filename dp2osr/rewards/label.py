"""Score every candidate of a store with every metric: one part file a group, then one table.

A group's scores are kept with the hash of its latents and of its GT, so that running the same command again scores what is
new, changed or interrupted, and asking for one more metric computes that metric alone.
"""

import shutil
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dp2osr.data.images import list_images, pil_to_tensor, read_image
from dp2osr.errors import UserError
from dp2osr.provenance import file_sha256
from dp2osr.rewards.metrics import pyiqa_version
from dp2osr.rewards.table import GT_CANDIDATE, read_columns, write_scores


def pair_gt(gt_path, image_ids, modes):
    """GT file of each image id, by stem; an empty dictionary without `gt_path`.

    Args:
        gt_path: folder of GT images or None; image_ids: the store's; modes: metric → "FR" | "NR".

    Raises:
        UserError: an image id without a GT, or no `gt_path` although a metric compares with the GT.
    """
    if gt_path is None:
        full_reference = [name for name, mode in modes.items() if mode == "FR"]
        if full_reference:
            names = ", ".join(full_reference)
            raise UserError(f"{names} compare with the GT; pass --gt_path, or a reward config without FR metrics (nr_only)")
        return {}
    by_stem = {path.stem: path for path in list_images(gt_path)}
    missing = [image_id for image_id in image_ids if image_id not in by_stem]
    if missing:
        count = f"{len(missing)} of {len(image_ids)}"
        raise UserError(f"{gt_path}: no GT for {count} candidate groups, the first is '{missing[0]}'; a GT has the name of its LR image")
    return {image_id: by_stem[image_id] for image_id in image_ids}


def file_hash(path):
    """SHA-256 of a file, hexadecimal; UserError if it cannot be read."""
    try:
        return file_sha256(path).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make this candidate group again") from None


class Labeller:
    """Scores groups of one store with one suite.

    Args:
        store: `CandidateStore`.
        suite: `MetricSuite`.
        gt_paths: image id → GT file, or {} (then only NR metrics, and no GT rows).
        output: parquet file of all scores; part files lie in `<output>.parts` until it is written.
        decode: group → (M, 3, H, W) float32 in [0, 1], the images that a user gets.
        batch_size: images scored together.
    """

    def __init__(self, store, suite, gt_paths, output, decode, batch_size):
        self.store, self.suite, self.gt_paths, self.decode, self.batch_size = store, suite, gt_paths, decode, batch_size
        self.output = Path(output)
        self.parts_dir = self.output.with_name(self.output.name + ".parts")
        self.wanted = suite.describe()

    def score_missing(self, image_ids, show_progress=True):
        """Score what these groups lack, one atomic part file a group; returns the number of groups scored."""
        scored = 0
        for image_id in tqdm(image_ids, desc="score", unit="group", disable=not show_progress):
            provenance = self._provenance(image_id)
            columns, described, of = self._previous(image_id)
            if of != provenance:
                columns, described = {}, {}
            missing = [name for name in self.wanted if described.get(name) != self.wanted[name]]
            if not missing:
                continue
            fresh = self._score(image_id, missing)
            kept = {name: values for name, values in columns.items() if name not in missing}
            described = {**described, **{name: self.wanted[name] for name in missing}}
            write_scores(self.parts_dir / f"{image_id}.parquet", {**fresh, **kept}, self._metadata(described, {image_id: provenance}))
            scored += 1
        return scored

    def merge(self):
        """Write `output` from the part files and its own earlier rows; returns whether there was anything to write.

        A metric that an earlier run scored for every group is kept beside the ones now asked for.
        """
        image_ids = self.store.ids()
        if not self.parts_dir.exists() and self._earlier and set(self._earlier_rows) == set(image_ids):
            return False
        sources = [self._previous(image_id) for image_id in image_ids]
        described = [of_group for _, of_group, _ in sources]
        known = {name: description for of_group in described for name, description in of_group.items()} | self.wanted
        common = {name: known[name] for name in known if all(of_group.get(name) == known[name] for of_group in described)}
        for name in self.wanted.keys() - common.keys():
            raise UserError(f"{self.parts_dir}: a group lacks metric '{name}'; run the same command again")
        columns = {key: np.concatenate([columns[key] for columns, _, _ in sources]) for key in ("image_id", "candidate", *common)}
        provenance = {image_id: of for image_id, (_, _, of) in zip(image_ids, sources, strict=True)}
        write_scores(self.output, columns, self._metadata(common, provenance))
        shutil.rmtree(self.parts_dir, ignore_errors=True)
        return True

    def _score(self, image_id, names):
        """Raw scores of a group's candidates, and in a last row of its GT, as `write_scores` takes them."""
        group = self.store.read(image_id)
        images = self.decode(group)
        gt = self._read_gt(image_id, images)
        count = len(images)
        batches = [
            self.suite.score(images[start : start + self.batch_size], gt, image_id, range(start, count), names)
            for start in range(0, count, self.batch_size)
        ]
        scores = {name: np.concatenate([batch[name] for batch in batches]) for name in names}
        candidates = np.arange(count, dtype=np.int32)
        if gt is not None:
            of_gt = self.suite.score(gt[None], None, image_id, [GT_CANDIDATE], names)
            scores = {name: np.append(values, of_gt.get(name, [np.nan])) for name, values in scores.items()}
            candidates = np.append(candidates, np.int32(GT_CANDIDATE))
        return {"image_id": np.full(len(candidates), image_id, dtype=object), "candidate": candidates, **scores}

    def _read_gt(self, image_id, images):
        if image_id not in self.gt_paths:
            return None
        gt = pil_to_tensor(read_image(self.gt_paths[image_id]))
        if gt.shape != images.shape[1:]:
            sizes = [f"{shape[-1]} x {shape[-2]}" for shape in (gt.shape, images.shape)]
            problem = f"the GT is {sizes[0]} pixels, the candidates of '{image_id}' are {sizes[1]}"
            raise UserError(f"{self.gt_paths[image_id]}: {problem}; pass the GT of these LR images")
        return gt

    def _provenance(self, image_id):
        """What a group's scores were made from."""
        gt = self.gt_paths.get(image_id)
        return {"latents_sha256": file_hash(self.store.groups / image_id / "latents.safetensors"), "gt_sha256": gt and file_hash(gt)}

    def _metadata(self, metrics, groups):
        return {"pyiqa": pyiqa_version(), "metrics": metrics, "candidates": self.store.settings, "groups": groups}

    def _previous(self, image_id):
        """(columns, metric descriptions, provenance) known of a group: from its part file, else from the earlier output."""
        part = self.parts_dir / f"{image_id}.parquet"
        if part.exists():
            columns, metadata = read_columns(part)
            if self._holds(metadata):
                return columns, metadata["metrics"], metadata["groups"][image_id]
        if self._earlier and image_id in self._earlier_rows and self._holds(self._earlier[1]):
            columns, metadata = self._earlier
            rows = self._earlier_rows[image_id]
            return {name: values[rows] for name, values in columns.items()}, metadata["metrics"], metadata["groups"].get(image_id)
        return {}, {}, None

    def _holds(self, metadata):
        """Whether scores were made by this pyiqa of candidates with these settings."""
        return metadata.get("pyiqa") == pyiqa_version() and metadata.get("candidates") == self.store.settings

    @cached_property
    def _earlier(self):
        """Columns and metadata of the output of an earlier run, or None."""
        return read_columns(self.output) if self.output.exists() else None

    @cached_property
    def _earlier_rows(self):
        """Image id → row numbers in the earlier output."""
        ids = self._earlier[0]["image_id"].astype(str)
        order = np.argsort(ids, kind="stable")
        names, starts = np.unique(ids[order], return_index=True)
        return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))


def label_candidates(candidates_dir, gt_path, reward_config, extra_metrics=(), output=None, batch_size=8):
    """Score a candidate folder and write its table; the groups are shared out over the processes of the launch.

    Args:
        candidates_dir: folder of `gen_candidates.py`; the table goes to its `scores.parquet` unless `output` says otherwise.
        gt_path: folder of GT images with the LR images' names, or None with NR metrics alone.
        reward_config: name or YAML file; extra_metrics: further pyiqa names to score, not to reward.
        batch_size: images scored together.

    Raises:
        UserError: see `CandidateStore`, `load_reward_config`, `MetricSuite`, `pair_gt`; also a GT of another size than the
            candidates, a NaN score, an empty store.
    """
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    from dp2osr.rewards.config import MetricSpec, load_reward_config
    from dp2osr.rewards.metrics import MetricSuite, check_modes
    from dp2osr.sampling.store import CandidateStore

    config = load_reward_config(reward_config)
    store = CandidateStore(candidates_dir)
    image_ids = store.ids()
    if not image_ids:
        raise UserError(f"{candidates_dir}: holds no candidate group; run gen_candidates.py first")
    # One process may finish its share long before another.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
    in_config = {spec.name for spec in config.metrics}
    suite = MetricSuite(config.metrics + [MetricSpec(name) for name in extra_metrics if name not in in_config], state.device)
    check_modes(config, suite)
    output = Path(output or Path(candidates_dir) / "scores.parquet")
    labeller = Labeller(store, suite, pair_gt(gt_path, image_ids, suite.modes), output, LazyDecoder(store, state.device), batch_size)
    labeller.score_missing(image_ids[state.process_index :: state.num_processes], state.is_main_process)
    state.wait_for_everyone()
    if state.is_main_process:
        written = labeller.merge()
        ending = "" if written else "; it was complete, nothing to do"
        print(f"{output}: {len(image_ids)} groups scored with {', '.join(labeller.wanted)}{ending}")
    state.wait_for_everyone()


class LazyDecoder:
    """Decodes groups as the store's settings say; the autoencoder is loaded when the first group needs it."""

    def __init__(self, store, device):
        self.settings, self.device = store.settings, device

    @cached_property
    def backbone(self):
        from dp2osr.sampling.decode import load_decoder

        return load_decoder(self.settings, self.device)

    def __call__(self, group):
        from dp2osr.sampling.decode import decode_group

        return decode_group(self.backbone, group, self.settings["align_method"])
