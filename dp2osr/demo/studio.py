"""One order after the other on one model: samples, their rewards, and the base beside the policy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dp2osr.api.scorer import REWARD, Reward
from dp2osr.data.images import on_white
from dp2osr.demo.asked import NO_REWARD, Order, read_upload
from dp2osr.demo.jobs import Job
from dp2osr.demo.offers import Loaded, Offer, offers_of
from dp2osr.errors import UserError
from dp2osr.sampling.speed import in_words

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from dp2osr.api.model import Model
    from dp2osr.demo.settings import DemoSettings


@dataclass
class Outcome:
    """What an order gave.

    Attributes:
        lr: the upload at the results' size, bicubic, on white.
        images: the samples, by their numbers.
        base: the base's sample number 0, where there is a base and a policy.
        scores: a row a sample; None without a reward.
        best: number of the sample with the highest reward, 0 without one.
        lower_better: {metric: whether a lower score is the better one}.
        notes: lines to tell.
        settings: of the model that made them, by the names of the test program's flags.
        kind: of the model.
        seconds: it took, without waiting.
    """

    order: Order
    lr: Image.Image
    images: list[Image.Image]
    base: Image.Image | None
    scores: pd.DataFrame | None
    best: int
    lower_better: dict[str, bool]
    notes: list[str]
    settings: dict[str, Any]
    kind: str
    announced: float
    seconds: float


class Studio:
    """The models and rewards of the page, which one job at a time may use.

    Args:
        settings: `DemoSettings`; the first model and all rewards are loaded at once.

    Raises:
        UserError: a model or a reward that cannot be had; a reward that compares with a true image.
    """

    def __init__(self, settings: DemoSettings) -> None:
        self.offers: dict[str, Offer] = offers_of(settings.model)
        self.rewards = {name: Reward(name, settings.device, settings.metrics_dir) for name in settings.reward_config}
        for name, reward in self.rewards.items():
            full_reference = [metric for metric, mode in reward.metrics.items() if mode == "FR"]
            if full_reference:
                raise UserError(f"--reward_config {name}: {', '.join(full_reference)} compare with a true image, which a visitor lacks; "
                                "give a reward of NR metrics, as nr_only")  # fmt: skip
        self._lock = threading.Lock()
        self._loaded = Loaded(self.offers, settings)
        self._loaded.get(next(iter(self.offers)))

    def defaults(self, name: str) -> dict[str, Any]:
        """The options that are the model's own; it is loaded if it is not."""
        with self._lock:
            return dict(self._loaded.get(name).defaults)

    def restore(self, order: Order, job: Job[Outcome]) -> Outcome:
        """Do an order; `job` hears what goes on, and is asked between two passes whether to stop.

        Raises:
            UserError: as of the API; an upload that is refused.
            Stopped: the job was stopped.
        """
        order.check()
        image, notes = read_upload(order.path, order.name, order.upscale)
        with self._lock:
            job.say(f"loading {order.model}")
            return self._restore(order, image, notes, self._loaded.get(order.model), job)

    def _restore(self, order: Order, image: Image.Image, notes: list[str], model: Model, job: Job[Outcome]) -> Outcome:
        started, blends = time.perf_counter(), self.offers[order.model].has_base
        own = {"seed": order.seed, "num_inference_steps": order.steps, "guidance_scale": order.guidance}
        options: dict[str, Any] = {"image_id": order.image_id, "prompt": order.prompt or None} | own
        seconds, lines = model.estimate(image, order.upscale, order.samples, **options)
        with_base = blends and order.strength != 0
        announced = seconds * (order.samples + with_base) / order.samples
        notes += [line for line in lines[1:] if "this takes about" not in line]
        size, head = [round(side * order.upscale) for side in image.size], f"about {in_words(announced)}"
        head = f"{size[0]} × {size[1]} pixels, {order.samples} sample{'s' * (order.samples > 1)}: {head} on this machine"
        job.say(head, 0)
        first = 1 / (order.samples + 1) if with_base else 0
        base = None
        if with_base:
            model.set_policy_strength(0)
            base = model.restore(image, order.upscale, 1, progress=said(job, f"{head}; the base", 0, first), **options)[0]
        if blends:
            model.set_policy_strength(order.strength)
        images = model.restore(image, order.upscale, order.samples, progress=said(job, head, first, 1), **options)
        base = images[0] if blends and base is None else base
        job.say("scoring", 1)
        scores, best, lower_better = self._scored(order, images, notes)
        job.say("writing", 1)
        lr = on_white(image).resize(images[0].size, resample=3)  # bicubic
        made_by = {**model.defaults, **{name: value for name, value in own.items() if value is not None}}
        made_by |= {"pretrained_model_name_or_path": model.model, "controlnet_model_name_or_path": model.controlnet}
        made_by |= self._blend(order) if blends else {}
        took = time.perf_counter() - started
        return Outcome(order, lr, images, base, scores, best, lower_better, notes, made_by, model.kind, announced, took)

    def _blend(self, order: Order) -> dict[str, Any]:
        start = self.offers[order.model].start
        return {"policy_strength": order.strength, "base_controlnet_model_name_or_path": start if order.strength != 1 else None}

    def _scored(self, order: Order, images: list[Image.Image], notes: list[str]) -> tuple[pd.DataFrame | None, int, dict[str, bool]]:
        """(scores, number of the best, directions); what a metric refuses to score is a note, and the images are given all the same."""
        if order.reward == NO_REWARD:
            return None, 0, {}
        if order.reward not in self.rewards:
            raise UserError(f"reward: there is no '{order.reward}' here; take one of {', '.join([*self.rewards, NO_REWARD])}")
        reward = self.rewards[order.reward]
        try:
            scores = reward.score(images, image_id=order.image_id)
        except UserError as error:
            notes.append(f"not scored: {error}")
            return None, 0, {}
        return scores, int(scores[REWARD].to_numpy().argmax()), reward.lower_better


def said(job: Job[Any], text: str, begin: float, end: float) -> Callable[[int, int], None]:
    """A `progress` that tells a job how far it is, where this part of it goes from the share `begin` to `end`."""

    def progress(done: int, total: int) -> None:
        job.say(f"{text}; pass {done} of {total}", begin + (end - begin) * done / total)

    return progress
