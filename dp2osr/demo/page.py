"""The page: its fields, what a click does, and the server. The one file that needs Gradio."""

from __future__ import annotations

import html
import os
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")  # before Gradio reads them

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware

from dp2osr.demo.asked import MOST_SAMPLES, MOST_STEPS, MOST_STRENGTH, NO_REWARD, Order
from dp2osr.demo.jobs import Job, News, Stopped
from dp2osr.demo.parcel import captions, pack
from dp2osr.demo.settings import DemoSettings
from dp2osr.demo.studio import Outcome, Studio
from dp2osr.errors import UserError
from dp2osr.sampling.speed import in_words

OUTPUTS = 5  # of a click: status, two sliders, gallery, download
ONE_JOB = {"concurrency_limit": 1, "concurrency_id": "model"}
OWN_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # no font is fetched
# A browser asks this server alone, whatever Gradio's page names.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: data: blob:"
CSS = """
#status progress {width: 100%; height: 1rem} #status p {margin: .2rem 0} footer {display: none !important}
#samples .caption-label {white-space: normal; max-width: calc(100% - 1rem); text-align: left}
"""


@dataclass(frozen=True)
class Upload:
    """A file on this machine, and its name on the visitor's."""

    path: Path
    name: str


def as_upload(payload: Any) -> Upload | None:
    """The file of an image field as it is: the API reads it as the programs do, and refuses it in words."""
    return None if payload is None or not payload.path else Upload(Path(payload.path), name_of(payload))


def name_of(payload: Any) -> str:
    """A file's name without folders, as the visitor's browser told it."""
    return Path(str(payload.orig_name or payload.path).replace("\\", "/")).name or "image"


class SameOrigin:
    """ASGI middleware: each answer forbids the browser to ask other servers."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)


def status_of(news: News) -> str:
    """A line and a bar."""
    bar = "" if news.share is None else f'<progress max="1" value="{news.share:.3f}"></progress>'
    return f"<p>{html.escape(news.text)}</p>{bar}"


def done_line(outcome: Outcome) -> str:
    lines = [f"Done in {in_words(outcome.seconds)}; about {in_words(outcome.announced)} were announced.", *outcome.notes]
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def results(outcome: Outcome, folder: Path) -> tuple[Any, ...]:
    """Values of the outputs; Gradio copies the files before the folder goes."""
    files, width = pack(outcome, folder), outcome.lr.width
    shown = min(max(width, 384), 900)
    against_lr = gr.ImageSlider((files["lr.png"], files["best.png"]), label=f"LR, enlarged | sample {outcome.best}", width=shown)
    against_base: Any = gr.ImageSlider(None, visible=False)
    if outcome.base is not None:
        label = f"base | strength {outcome.order.strength:g}, sample 0 of both"
        against_base = gr.ImageSlider((files["base.png"], files["policy.png"]), label=label, visible=True, width=shown)
    gallery = list(zip(files["images"], captions(outcome), strict=True))
    return done_line(outcome), against_lr, against_base, gallery, gr.DownloadButton(value=files["zip"], interactive=True)


def restore(studio: Studio, upload: Upload | None, *values: Any) -> Iterator[tuple[Any, ...]]:
    """What a click does: status lines while it works, then the results. It ends the work where Gradio closes it: cancelled, or gone."""
    rest = (gr.skip(),) * (OUTPUTS - 1)
    job: Job[Outcome] | None = None
    try:
        if upload is None:
            raise UserError("give an image first: drop it into the field, or click there")
        names = ("model", "upscale", "strength", "samples", "seed", "steps", "guidance", "prompt", "reward")
        given = dict(zip(names, values, strict=True))
        given |= {name: given[name] or None for name in ("steps", "guidance")}  # an empty field may come as 0: the model's own
        if given["upscale"] is None or given["seed"] is None:
            raise UserError("scale and seed: give a number for each")
        order = Order(upload.path, upload.name, **given)
        job = Job(lambda job: studio.restore(order, job))
        for news in job.watch():
            yield status_of(news), *rest
        outcome = job.result()
        with tempfile.TemporaryDirectory(prefix="dp2osr_page_") as folder:
            yield results(outcome, Path(folder))
    except Stopped:
        yield "<p>Stopped.</p>", *rest
    except UserError as error:
        yield f"<p>Refused: {html.escape(str(error))}</p>", *rest
        raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from None
    except Exception as error:
        traceback.print_exc()
        line = f"a fault of the program ({type(error).__name__}); its log has more"
        yield f"<p>{line}</p>", *rest
        raise gr.Error(line, print_exception=False) from None
    finally:
        if job is not None:
            job.stop()


def own_values(studio: Studio, name: str) -> tuple[Any, ...]:
    """Updates of strength, steps and guidance for a model."""
    try:
        own = studio.defaults(name)
    except UserError as error:
        raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from None
    return (
        gr.Slider(visible=studio.offers[name].has_base),
        gr.Number(None, placeholder=f"the model's own: {own['num_inference_steps']}"),
        gr.Number(None, placeholder=f"the model's own: {own['guidance_scale']:g}"),
    )


def fields(studio: Studio) -> list[Any]:
    """The inputs, in the order of `restore`'s arguments."""
    names = list(studio.offers)
    image = gr.Image(type="filepath", label="Image", sources=["upload", "clipboard"], height=240, elem_id="upload")
    image.preprocess = as_upload  # a subclass of a component would make Gradio write a .pyi beside this file
    model = gr.Dropdown(names, value=names[0], label="Model")
    strength = gr.Slider(0, MOST_STRENGTH, 1, step=0.05, label="Policy strength", info="0: base, 1: policy", visible=False)
    with gr.Row():
        upscale = gr.Number(4, label="Scale", minimum=0.1, maximum=16, min_width=80)
        samples = gr.Number(4, label="Samples", precision=0, minimum=1, maximum=MOST_SAMPLES, min_width=80)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80)
    with gr.Row():
        steps = gr.Number(None, label="Steps", precision=0, minimum=0, maximum=MOST_STEPS, min_width=80)
        guidance = gr.Number(None, label="Guidance", min_width=80)
    prompt = gr.Textbox("", label="Prompt", placeholder="words about the image, or nothing", max_length=2000)
    rewards = [*studio.rewards, NO_REWARD]
    reward = gr.Dropdown(rewards, value=rewards[0], label="Reward")
    return [image, model, upscale, strength, samples, seed, steps, guidance, prompt, reward]


def make_page(studio: Studio, settings: DemoSettings) -> gr.Blocks:
    """The page of a studio, not served yet."""
    seconds = settings.keep_minutes * 60
    with gr.Blocks(title="DP²O-SR", analytics_enabled=False, delete_cache=(max(1, seconds // 4), seconds)) as page:
        gr.Markdown("## DP²O-SR: enlarge an image, and choose among samples")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                inputs = fields(studio)
                with gr.Row():
                    start = gr.Button("Restore", variant="primary", elem_id="start")
                    stop = gr.Button("Cancel", elem_id="stop")
            with gr.Column(scale=2):
                status = gr.HTML("<p>Drop an image and click Restore.</p>", elem_id="status")
                slider = gr.ImageSlider(label="LR, enlarged | result", format="png", elem_id="result", interactive=False)
                base = gr.ImageSlider(label="base | policy", format="png", visible=False, elem_id="base", interactive=False)
                gallery = gr.Gallery(
                    label="Samples", format="png", columns=2, height="auto", elem_id="samples", interactive=False, object_fit="contain"
                )
                download = gr.DownloadButton("Download all (zip)", interactive=False, elem_id="download")

        def click(*values: Any) -> Iterator[tuple[Any, ...]]:
            yield from restore(studio, *values)

        outputs = [status, slider, base, gallery, download]
        job = start.click(click, inputs, outputs, api_name="restore", show_progress="minimal", show_progress_on=status, **ONE_JOB)
        stop.click(lambda: "<p>Cancelled: it stops after this pass.</p>", None, status, cancels=[job], api_name=False, queue=False)
        of_model = [inputs[3], *inputs[6:8]]
        for event in (inputs[1].change, page.load):
            event(lambda name: own_values(studio, name), inputs[1], of_model, api_name=False, show_progress="hidden", **ONE_JOB)
    return page.queue(max_size=settings.max_waiting, default_concurrency_limit=4)


def serve(settings: DemoSettings, block: bool = True) -> tuple[gr.Blocks, str]:
    """Load what is offered and serve the page, until it is interrupted where `block`; (the page, its address)."""
    page = make_page(Studio(settings), settings)
    try:
        _, address, public = page.launch(
            server_name=settings.server_name, server_port=settings.server_port, share=settings.share, quiet=True, inbrowser=False,
            prevent_thread_lock=True, show_error=False, ssr_mode=False, max_file_size="100mb", enable_monitoring=False, footer_links=[],
            theme=gr.themes.Default(**OWN_FONTS), css=CSS, app_kwargs={"middleware": [Middleware(SameOrigin)]},
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"--server_port {settings.server_port}: cannot listen there ({error}); give another") from None
    print(f"open {address}{f' or, from anywhere, {public}' if public else ''} (Ctrl-C ends it)", flush=True)
    if block:
        page.block_thread()
    return page, address
