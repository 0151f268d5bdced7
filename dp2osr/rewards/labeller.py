"""Scoring of a candidate folder, group by group: the next one is read while one is scored."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from scipy.stats import kendalltau
from tqdm import tqdm

from dp2osr.data.images import pil_to_tensor, read_image
from dp2osr.device import without_tf32
from dp2osr.errors import UserError
from dp2osr.rewards.draws import share_of_flips
from dp2osr.rewards.known_scores import KnownScores, Provenance
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.table import GT_CANDIDATE, write_scores
from dp2osr.sampling.store import CandidateGroup, CandidateStore
from dp2osr.sharing import Launch, Shared, WorkLog


class Job(NamedTuple):
    """A group that is to be scored: the metrics that it lacks, what it is made of, its content in the reading, its lock."""

    image_id: str
    missing: list[str]
    provenance: Provenance
    content: Future
    held: ExitStack


class Labeller(KnownScores):
    """Scores groups of one store with one suite.

    Args:
        store: `CandidateStore`.
        suite: `MetricSuite`.
        gt_paths: image id → GT file, or {} (then only NR metrics, and no GT rows).
        output: parquet file of all scores; part files lie in `<output>.parts` until it is written.
        decode: group → (M, 3, H, W) float32 in [0, 1], the images that a user gets, on any device.
        strict: a NaN or infinite score is an error; otherwise a warning, and it stays in the table, where training passes its group over.
        reward: what the table is to say of its making, see `record_reward`: its `config`, `given` and `gt_path`; or None.
    """

    def __init__(
        self,
        store: CandidateStore,
        suite: MetricSuite,
        gt_paths: Mapping[str, Path],
        output: str | Path,
        decode: Callable[[CandidateGroup], torch.Tensor],
        strict: bool = False,
        reward: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(store, suite, gt_paths, output, reward)
        self.decode, self.strict = decode, strict

    def score_missing(self, image_ids: Sequence[str], launch: Launch | None = None, show_progress: bool = True) -> int:
        """Score what these groups lack, one atomic part file a group, beside other ranks and jobs; returns how many this rank scored.

        The next group is read while one is scored.
        """
        launch = launch or Launch({})
        progress = tqdm(total=len(image_ids), desc="score", unit="group", disable=not show_progress or launch.local_rank > 0)
        log = WorkLog(self.output.parent, "score", launch)

        def seen() -> None:
            progress.update(launch.add(f"scored {self.output.name}", 1) - progress.n)

        def is_done(image_id: str) -> bool:
            """Whether all scores of a group are there; what another job has just moved is looked at again under its lock."""
            with suppress(FileNotFoundError):
                if not self._missing(image_id, self._provenance(image_id)):
                    seen()
                    return True
            return False

        shared = Shared(launch, f"score {self.output.name}", image_ids, self.locks, self._lock, is_done)

        def done(job: Job) -> None:
            self._run(job)
            log.write(job.image_id, metrics=len(job.missing))
            seen()

        with progress, ThreadPoolExecutor(1) as reader, closing(shared):
            ahead = self._jobs(shared.free(), reader, seen)
            coming = next(ahead, None)
            while coming:
                job, coming = coming, next(ahead, None)
                done(job)
            for job in self._jobs(shared.held_elsewhere(), reader, seen):
                done(job)
        return log.done

    def _jobs(self, items: Iterator[tuple[str, ExitStack]], reader: ThreadPoolExecutor, seen: Callable[[], None]) -> Iterator[Job]:
        """The `Job` of each group that lacks a score."""
        for image_id, held in items:
            provenance = self._provenance(image_id)
            missing = self._missing(image_id, provenance)
            if missing:
                yield Job(image_id, missing, provenance, reader.submit(self._read, image_id), held)
            else:
                held.close()
                seen()

    def _run(self, job: Job) -> None:
        """Score one group and write its part file."""
        with job.held:
            columns, described = self._known(job.image_id, job.provenance)
            fresh = self._score(job.image_id, job.missing, *job.content.result())
            kept = {name: columns[name] for name in described if name not in job.missing}
            described = {**described, **{name: self.wanted[name] for name in job.missing}}
            metadata = self._metadata(described, {job.image_id: job.provenance})
            write_scores(self._part(job.image_id), {**fresh, **kept}, metadata, sidecar=False)

    def _read(self, image_id: str) -> tuple[CandidateGroup, torch.Tensor | None]:
        """A group and its GT, (3, H, W) in [0, 1] or None."""
        gt = pil_to_tensor(read_image(self.gt_paths[image_id])) if image_id in self.gt_paths else None
        return self.store.read(image_id), gt

    def _score(self, image_id: str, names: Sequence[str], group: CandidateGroup, gt: torch.Tensor | None) -> dict[str, np.ndarray]:
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

    def _check_size(self, image_id: str, images: torch.Tensor, gt: torch.Tensor | None) -> None:
        if gt is not None and gt.shape != images.shape[1:]:
            sizes = [f"{shape[-1]} x {shape[-2]}" for shape in (gt.shape, images.shape)]
            problem = f"the GT is {sizes[0]} pixels, the candidates of '{image_id}' are {sizes[1]}"
            raise UserError(f"{self.gt_paths[image_id]}: {problem}; pass the GT of these LR images")

    def compare_with_exact(self, image_id: str) -> None:
        """Print how well the suite ranks a group that is to be scored: Kendall's τ with full float32 and nothing compiled, by metric."""
        if not self._missing(image_id, self._provenance(image_id)):
            return
        group, gt = self._read(image_id)
        images = self.decode(group)
        self._check_size(image_id, images, gt)
        fast = self.suite.score(images, gt, image_id, strict=False)

        with mock.patch.object(self.suite, "precision", "fp32"), without_tf32(), torch.compiler.set_stance("force_eager"):
            exact = self.suite.score(images, gt, image_id, strict=False)
        agreement = ", ".join(f"{name} {kendalltau(fast[name], exact[name]).statistic:.3f}" for name in exact)
        how = ("TF32" if self.suite.tf32 and self.suite.precision == "fp32" else self.suite.precision) + (
            ", compiled," if self.suite.compiled else ""
        )
        print(f"{how} against fp32 on the {len(images)} candidates of '{image_id}', Kendall's tau: {agreement}")

    def report_draws(self, image_id: str) -> None:
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
