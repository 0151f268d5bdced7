"""Scores of a candidate folder, group by group, kept with what they were made of; the table is merged of them."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import count
from pathlib import Path
from unittest import mock

import numpy as np
from scipy.stats import kendalltau
from tqdm import tqdm

from dp2osr.data.images import pil_to_tensor, read_image
from dp2osr.digests import digest
from dp2osr.errors import UserError, listed
from dp2osr.files import LONGEST_NAME, short_name
from dp2osr.rewards.chosen import record_reward
from dp2osr.rewards.draws import share_of_flips
from dp2osr.rewards.metrics import bad_score, pyiqa_version
from dp2osr.rewards.table import GT_CANDIDATE, own_columns, read_columns, sidecar_path, write_scores, write_sidecar


def file_hash(path):
    """SHA-256 of a file, hexadecimal; UserError if it cannot be read."""
    try:
        return digest(path)
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
        strict: a NaN or infinite score is an error; otherwise a warning, and it stays in the table, where training passes its group over.
        reward: what the table is to say of its making, see `record_reward`: its `config`, `given` and `gt_path`; or None.
    """

    def __init__(self, store, suite, gt_paths, output, decode, strict=False, reward=None):
        self.store, self.suite, self.gt_paths, self.decode, self.strict = store, suite, gt_paths, decode, strict
        self.output, self.reward = Path(output), reward
        self.parts_dir = self.output.with_name(self.output.name + ".parts")
        self.wanted = suite.describe()

    def score_missing(self, image_ids, show_progress=True):
        """Score what these groups lack, one atomic part file a group; returns the number of groups scored.

        The next group is read while one is scored.
        """
        scored = 0
        progress = tqdm(total=len(image_ids), desc="score", unit="group", disable=not show_progress)
        with progress, ThreadPoolExecutor(1) as reader:
            jobs = self._jobs(image_ids, reader, progress)
            coming = next(jobs, None)
            while coming:
                (image_id, missing, provenance, content), coming = coming, next(jobs, None)
                columns, described = self._known(image_id, provenance)
                fresh = self._score(image_id, missing, *content.result())
                kept = {name: columns[name] for name in described if name not in missing}
                metadata = self._metadata({**described, **{name: self.wanted[name] for name in missing}}, {image_id: provenance})
                write_scores(self._part(image_id), {**fresh, **kept}, metadata, sidecar=False)
                progress.update()
                scored += 1
        return scored

    def _jobs(self, image_ids, reader, progress):
        """(image id, metrics that its scores lack, provenance, its content in the reading) of each group that lacks one."""
        for image_id in image_ids:
            provenance = self._provenance(image_id)
            missing = self._missing(image_id, provenance)
            if missing:
                yield image_id, missing, provenance, reader.submit(self._read, image_id)
            else:
                progress.update()

    def _known(self, image_id, provenance):
        """Columns and metric descriptions of a group that were made of these latents and this GT."""
        columns, described, of = self._previous(image_id)
        return (columns, described) if of == provenance else ({}, {})

    def _missing(self, image_id, provenance):
        """Names of the metrics that a group's known scores lack, or have as NaN or infinity."""
        columns, described = self._known(image_id, provenance)
        return [name for name in self.wanted if described.get(name) != self.wanted[name] or self._bad(name, columns)]

    def _bad(self, name, columns):
        """What is wrong with a group's scores, or None; a full-reference metric has none for the GT."""
        rows = slice(None) if self.suite.modes[name] == "NR" else columns["candidate"] != GT_CANDIDATE
        return bad_score(name, columns[name][rows], columns["image_id"][0], columns["candidate"][rows])

    def _read(self, image_id):
        """A group and its GT, (3, H, W) in [0, 1] or None."""
        gt = pil_to_tensor(read_image(self.gt_paths[image_id])) if image_id in self.gt_paths else None
        return self.store.read(image_id), gt

    def merge(self):
        """Write `output` from the part files and its own earlier rows; returns whether there was anything to write.

        A metric that an earlier run scored for every group is kept beside the ones now asked for, and so are the user's own columns.
        """
        image_ids = self.store.ids()
        whole = not self.parts_dir.exists() and self._earlier and set(self._earlier_rows) == set(image_ids)
        if whole and self._made_with(self._earlier[1]["metrics"]).items() <= self._earlier[1].items():
            if not sidecar_path(self.output).exists():
                write_sidecar(self.output, self._earlier[1])
            return False
        sources = [self._previous(image_id) for image_id in image_ids]
        described = [of_group for _, of_group, _ in sources]
        known = {name: description for of_group in described for name, description in of_group.items()} | self.wanted
        common = {name: known[name] for name in known if all(of_group.get(name) == known[name] for of_group in described)}
        for name in self.wanted.keys() - common.keys():
            raise UserError(f"{self.parts_dir}: a group lacks metric '{name}'; run the same command again")
        columns = {key: np.concatenate([columns[key] for columns, _, _ in sources]) for key in ("image_id", "candidate", *common)}
        provenance = {image_id: of for image_id, (_, _, of) in zip(image_ids, sources, strict=True)}
        metadata = {**(self._earlier[1] if self._earlier else {}), **self._metadata(common, provenance), **self._made_with(common)}
        write_scores(self.output, columns | self._own_columns(columns, provenance), metadata)
        shutil.rmtree(self.parts_dir, ignore_errors=True)
        return True

    def _own_columns(self, columns, provenance):
        """The user's columns of the earlier table for the rows of `columns`; empty where a group is new, or scored anew.

        Where values go that way, the table as it was stays beside the new one. Both are said.
        """
        names = own_columns(*self._earlier) if self._earlier else []
        if not names:
            return {}
        import pyarrow as pa
        import pyarrow.parquet as pq

        earlier, metadata = self._earlier
        groups = metadata.get("groups", {}) if self._holds(metadata) else {}
        places = {row: place for place, row in enumerate(zip(earlier["image_id"], earlier["candidate"].tolist(), strict=True))}
        rows = list(zip(columns["image_id"], columns["candidate"].tolist(), strict=True))
        same = {image_id for image_id, of in provenance.items() if groups.get(image_id) == of}
        found = [places.get(row) if row[0] in same else None for row in rows]
        table = pq.read_table(self.output, columns=names)
        kept = {name: table[name].take(pa.array(found, pa.int64())) for name in names}
        print(f"{self.output}: kept your columns {', '.join(names)}")
        dropped = sorted(set(range(table.num_rows)) - set(found))
        lost = sorted({earlier["image_id"][row] for row in dropped if any(table[name][row].as_py() is not None for name in names)})
        if lost:
            before = self._copy_of_output()
            why = "their candidates or GT are others now, or gone"
            print(f"warning: their values for {len(lost)} images ({listed(lost)}) are left out: {why}; the table as it was is {before}")
        return kept

    def _copy_of_output(self):
        """Copy the earlier table, with its sidecar, to a name that is free; returns its path."""
        number = next(number for number in count(1) if not self.output.with_name(f"{self.output.name}.before{number}").exists())
        path = self.output.with_name(f"{self.output.name}.before{number}")
        shutil.copyfile(self.output, path)
        write_sidecar(path, self._earlier[1])
        return path

    def _score(self, image_id, names, group, gt):
        """Raw scores of a group's candidates, and in a last row of its GT, as `write_scores` takes them."""
        images = self.decode(group)
        self._check_size(image_id, images, gt)
        scores = self.suite.score(images, gt, image_id, names=names, strict=False)
        candidates = np.arange(len(images), dtype=np.int32)
        if gt is not None:
            of_gt = self.suite.score(gt[None], None, image_id, [GT_CANDIDATE], names=names, strict=False)
            scores = {name: np.append(values, of_gt.get(name, [np.nan])) for name, values in scores.items()}
            candidates = np.append(candidates, np.int32(GT_CANDIDATE))
        columns = {"image_id": np.full(len(candidates), image_id, dtype=object), "candidate": candidates, **scores}
        problems = list(filter(None, (self._bad(name, columns) for name in names)))
        if problems and self.strict:
            raise UserError(problems[0])
        for problem in problems:
            tqdm.write(f"warning: {problem}", file=sys.stderr)
        return columns

    def _check_size(self, image_id, images, gt):
        if gt is not None and gt.shape != images.shape[1:]:
            sizes = [f"{shape[-1]} x {shape[-2]}" for shape in (gt.shape, images.shape)]
            problem = f"the GT is {sizes[0]} pixels, the candidates of '{image_id}' are {sizes[1]}"
            raise UserError(f"{self.gt_paths[image_id]}: {problem}; pass the GT of these LR images")

    def check_version(self):
        """Refuse to go on with a table of another pyiqa (UserError): its numbers do not mix with this one's, and none shall be lost."""
        if self._earlier and self._earlier[1].get("pyiqa") != pyiqa_version():
            there = self._earlier[1].get("pyiqa")
            problem = f"was scored with pyiqa {there}, and this is {pyiqa_version()}; numbers of two versions do not mix"
            raise UserError(f"{self.output}: {problem}: name another table by --output, or move this one away")

    def check_own_columns(self):
        """Refuse to score a metric that has the name of a column which the user has added (UserError)."""
        taken = sorted(set(own_columns(*self._earlier)) & set(self.wanted)) if self._earlier else []
        if taken:
            problem = f"has a column '{taken[0]}' of your own, and a metric of that name is to be scored"
            raise UserError(f"{self.output}: {problem}; rename your column, or name another table by --output")

    def bad_groups(self):
        """Ids of the groups of the written table of which a candidate, or the GT, has a NaN or infinite score."""
        columns, _ = read_columns(self.output)
        bad = np.zeros(len(columns["candidate"]), bool)
        for name in self.wanted:
            of_interest = columns["candidate"] != GT_CANDIDATE if self.suite.modes[name] == "FR" else True
            bad |= ~np.isfinite(columns[name]) & of_interest
        return sorted(set(columns["image_id"][bad].astype(str)))

    def compare_with_exact(self, image_id):
        """Print how well the suite ranks a group that is to be scored: Kendall's τ with float32 and nothing compiled, metric by metric."""
        if not self._missing(image_id, self._provenance(image_id)):
            return
        group, gt = self._read(image_id)
        images = self.decode(group)
        self._check_size(image_id, images, gt)
        fast = self.suite.score(images, gt, image_id, strict=False)
        import torch

        with mock.patch.object(self.suite, "precision", "fp32"), torch.compiler.set_stance("force_eager"):
            exact = self.suite.score(images, gt, image_id, strict=False)
        agreement = ", ".join(f"{name} {kendalltau(fast[name], exact[name]).statistic:.3f}" for name in exact)
        how = self.suite.precision + (", compiled," if self.suite.compiled else "")
        print(f"{how} against fp32 on the {len(images)} candidates of '{image_id}', Kendall's tau: {agreement}")

    def report_draws(self, image_id):
        """Print how much a metric that draws random numbers depends on the draw: pairs of a group's candidates that change places."""
        if not self.suite.drawing:
            return
        group, gt = self._read(image_id)
        images, names = self.decode(group), sorted(self.suite.drawing)
        first = self.suite.score(images, gt, image_id, names=names, strict=False)
        with mock.patch.object(self.suite, "seed", self.suite.seed + 1):
            second = self.suite.score(images, gt, image_id, names=names, strict=False)
        flips = ", ".join(f"{name} {share_of_flips(first[name], second[name]):.1%}" for name in names)
        print(f"pairs of candidates of '{image_id}' that another random draw ranks the other way round: {flips}")

    def _provenance(self, image_id):
        """What a group's scores were made from."""
        gt = self.gt_paths.get(image_id)
        return {"latents_sha256": file_hash(self.store.groups / image_id / "latents.safetensors"), "gt_sha256": gt and file_hash(gt)}

    def _metadata(self, metrics, groups):
        return {"pyiqa": pyiqa_version(), "metrics": metrics, "candidates": self.store.settings, "groups": groups}

    def _made_with(self, metrics):
        """What the table says of its making: this reward and the earlier ones whose metrics it still has."""
        if self.reward is None:
            return {}
        told = dict(self._earlier[1]) if self._earlier else {}
        kept = {
            name: content
            for name, content in told.get("reward_configs", {}).items()
            if all(spec["name"] in metrics or spec.get("better") for spec in content["fr"] + content["nr"])
        }
        return record_reward(told | {"reward_configs": kept}, **self.reward)

    def _part(self, image_id):
        """The part file of a group; a name that would be too long for a file system is replaced by its hash."""
        name = f"{image_id}.parquet"
        return self.parts_dir / (name if len(name.encode()) <= LONGEST_NAME else f"{short_name(image_id)}.parquet")

    def _previous(self, image_id):
        """(columns, metric descriptions, provenance) known of a group: from its part file, else from the earlier output."""
        part = self._part(image_id)
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
