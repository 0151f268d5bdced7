"""Which of the two comparisons is meant, of candidates or of images."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from dp2osr.cli import refuse_ignored
from dp2osr.errors import UserError
from dp2osr.evaluation.settings import OF_CANDIDATES, OF_IMAGES, EvaluateSettings

if TYPE_CHECKING:
    from dp2osr.evaluation.candidates import Evaluation
    from dp2osr.evaluation.image_comparison import ImageTable


def compare_methods(args: EvaluateSettings, given: Container[str]) -> Evaluation | ImageTable:
    """The comparison that `args` ask for; `given` are the names of the settings that the user gave.

    Raises:
        UserError: both `candidates` and `images`, or neither; a setting of the other comparison; candidates without `gt_path`.
    """
    if bool(args.images) == bool(args.candidates):
        raise UserError("--candidates, --images: give one of the two")
    used, others = ("--images", OF_CANDIDATES) if args.images else ("--candidates", OF_IMAGES)
    refuse_ignored(given, others, f"with {used}")
    if args.images:
        from dp2osr.evaluation.image_comparison import run_image_evaluation

        return run_image_evaluation(args)
    from dp2osr.evaluation.candidates import run_evaluation

    if not args.gt_path:
        raise UserError("--gt_path: is needed with --candidates")
    return run_evaluation(args)
