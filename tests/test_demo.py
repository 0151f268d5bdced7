"""The page in the browser: the API's pixels, the reward's best, refusals in words, every visitor gets what they asked for."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from conftest import ROOT, assert_one_clear_line, run_program, save_noise
from PIL import Image
from trainings import trained  # noqa: F401 - a fixture

import dp2osr
from dp2osr.demo.asked import Order, read_upload
from dp2osr.demo.jobs import Job, Stopped
from dp2osr.demo.offers import offers_of
from dp2osr.demo.parcel import command_of
from dp2osr.demo.settings import DemoSettings
from dp2osr.demo.studio import Studio
from dp2osr.errors import UserError

BASE, CONTROLNET = "preset/models/tiny-sd2", "preset/models/c-tiny-sd2"
LR = ROOT / "preset/test/lr/astronaut_00.png"
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
QUICK = {"num_inference_steps": 2, "guidance_scale": 1.0}
on_sd2 = pytest.mark.parametrize("kind", ["sd2"], indirect=True, scope="session")


@pytest.fixture(scope="module")
def settings():
    return DemoSettings(model=[f"tiny={ROOT / BASE}+{ROOT / CONTROLNET}"])


@pytest.fixture(scope="module")
def studio(settings):
    return Studio(settings)


@pytest.fixture(scope="module")
def reference():
    return dp2osr.load(ROOT / BASE, controlnet=ROOT / CONTROLNET)


@pytest.fixture(scope="module")
def page(studio, settings, tmp_path_factory):
    """(the page, its address), served in this process."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'gradio>=6.20,<7'")
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("gradio"))
    from dp2osr.demo import page

    served = pytest.MonkeyPatch()
    served.setattr(page, "Studio", lambda _: studio)
    blocks, address = page.serve(settings, block=False)
    yield blocks, address
    blocks.close(verbose=False)
    served.undo()


def client_of(page):
    from gradio_client import Client

    return Client(page[1], verbose=False)


def asked(client, path, samples=1, seed=0, upscale=2, steps=2, reward="none", model="tiny"):
    """The job of a click."""
    from gradio_client import handle_file

    return client.submit(handle_file(path), model, upscale, 1, samples, seed, steps, 1, "", reward, api_name="/restore")


def run(studio, order):
    job = Job(lambda job: studio.restore(order, job))
    return list(job.watch()), job.result()


# -- what is given --


def test_the_pixels_are_those_of_the_api_and_the_best_that_of_the_reward(page, reference, tmp_path):
    status, slider, base, gallery, download = asked(client_of(page), LR, samples=3, seed=5, upscale=4, reward="nr_only").result()
    expected = reference.restore(LR, samples=3, seed=5, **QUICK)
    found = [Image.open(entry["image"]) for entry in gallery]
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    reward = dp2osr.Reward("nr_only")
    best = reward.best(expected)
    assert [entry["caption"].startswith("★ best, ") for entry in gallery] == [number == best for number in range(3)]
    scores = reward.score(expected)
    for entry, row in zip(gallery, scores.to_dict("records"), strict=True):
        assert f"reward {row['reward']:.2f} (brisque {row['brisque']:.3g} ↓" in entry["caption"]
    lr, shown = (np.asarray(Image.open(path)) for path in slider["value"])
    assert np.array_equal(shown, expected[best]) and lr.shape == shown.shape
    assert not base["visible"] and "announced" in status
    with zipfile.ZipFile(download["value"]) as archive:
        assert set(archive.namelist()) == {"settings.json", *(f"astronaut_00_{number:02d}.png" for number in range(3))}
        record = json.loads(archive.read("settings.json"))
    assert record["best"] == best and record["settings"]["seed"] == 5 and "path" not in record["order"]
    words = shlex.split(record["command"])[1:]
    words[words.index("--image_path") + 1] = str(LR)
    words[words.index("--output_dir") + 1] = str(tmp_path)
    run_program(*words)
    written = [Image.open(tmp_path / f"astronaut_00_{number:02d}.png") for number in range(3)]
    assert all(np.array_equal(one, other) for one, other in zip(written, expected, strict=True))


@on_sd2
def test_a_policy_lies_beside_its_base_and_the_knob_turns_without_loading(kind, trained):
    studio = Studio(DemoSettings(model=[f"mine={trained}"]))
    assert studio.offers["mine"].has_base
    found = {}
    for strength in (0.5, 1, 0, 1.5, 0.5):
        order = Order(LR, LR.name, "mine", upscale=2, strength=strength, samples=2, steps=2, guidance=1)
        said, outcome = run(studio, order)
        expected = dp2osr.load(trained, policy_strength=strength).restore(LR, upscale=2, samples=2, **QUICK)
        assert all(np.array_equal(one, other) for one, other in zip(outcome.images, expected, strict=True)), strength
        shares = [news.share for news in said if news.share is not None]
        assert shares == sorted(shares)
        found[strength] = outcome
    base = dp2osr.load(trained, policy_strength=0).restore(LR, upscale=2, **QUICK)[0]
    for outcome in found.values():
        assert np.abs(np.asarray(outcome.base, np.int16) - np.asarray(base, np.int16)).max() <= 1  # in a batch of two at strength 0
    assert "--policy_strength 0.5" in command_of(found[0.5])
    assert not np.array_equal(found[0].images[0], found[1.5].images[0])


# -- what is refused, and how --


def test_refusals_are_words(page, tmp_path, studio, monkeypatch):
    client = client_of(page)
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (4000, 3000)).save(tmp_path / "large.png")
    for path, mention in ((tmp_path / "text.png", "text.png: not a readable image"), (tmp_path / "large.png", "48 megapixels")):
        job = asked(client, path, upscale=2)
        with pytest.raises(Exception, match=mention):
            job.result()
        assert mention in job.outputs()[-1][0] and "/tmp" not in job.outputs()[-1][0]
    with pytest.raises(Exception, match="there is no 'x' here|not in the list of choices"):
        asked(client, LR, model="x").result()
    monkeypatch.setattr("dp2osr.sampling.estimate.free_bytes", lambda device: 10**8)
    with pytest.raises(Exception, match="memory does not suffice for this image"):
        asked(client, LR, samples=32, upscale=16).result()
    with pytest.raises(UserError, match="steps: must be at most 200 here, not 201"):
        run(studio, Order(LR, LR.name, "tiny", steps=201))


def test_of_an_animation_the_first_frame_is_taken_and_it_is_said(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    image, notes = read_upload(tmp_path / "two.gif", "two.gif", 4)
    assert image.getpixel((3, 3)) == (255, 0, 0) and notes == ["two.gif has 2 frames: the first one is taken"]


@pytest.mark.parametrize(
    ("words", "mention"),
    [
        (["a"], "not of the form NAME=BASE"), (["a=b+"], "not of the form"), (["a=b+c", "a=d+e"], "the name 'a' is given twice"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_of_the_form_is_refused(words, mention):
    with pytest.raises(UserError, match=mention):
        offers_of(words)


def test_a_reward_that_needs_a_true_image_is_refused(settings):
    with pytest.raises(UserError, match="compare with a true image"):
        Studio(DemoSettings(model=settings.model, reward_config=["embedded"]))


def test_without_gradio_one_line_says_how_to_have_it(tmp_path):
    code = (
        "import sys, runpy, importlib.util as u; f = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'gradio' else f(name, *a); "
        "sys.argv = ['demo.py']; runpy.run_path('scripts/demo.py', run_name='__main__')"
    )
    done = run_program("-c", code, check=False)
    assert_one_clear_line(done, "gradio is not installed", "pip install 'gradio>=6.20,<7'")
    assert len(done.stderr.strip().splitlines()) == 1


# -- visitors beside each other --


def test_two_visitors_with_ten_requests_each_get_their_own(page, reference, tmp_path):
    orders = {}
    for visitor in range(2):
        for number in range(10):
            path = tmp_path / str(visitor) / f"photo{number}.png"  # both visitors' are of one name, and of one seed
            path.parent.mkdir(exist_ok=True)
            save_noise(path, (16, 16 + 4 * visitor), seed=100 * visitor + number)
            orders[visitor, number] = path
    clients = [client_of(page) for _ in range(2)]
    jobs = {}
    for visitor, number in sorted(orders, key=lambda key: key[1]):
        jobs[visitor, number] = asked(clients[visitor], orders[visitor, number], seed=number)
    found = {key: job.result(timeout=300) for key, job in jobs.items()}
    lost = len(orders) - len(found)
    mixed = 0
    for key, path in orders.items():
        expected = reference.restore(path, upscale=2, seed=key[1], **QUICK)[0]
        mixed += not np.array_equal(Image.open(found[key][3][0]["image"]), expected)
    print(f"{len(orders)} requests of two visitors: {lost} lost, {mixed} mixed up")
    assert (lost, mixed) == (0, 0)


def test_a_job_that_is_stopped_ends_between_two_passes_and_the_next_one_runs(studio):
    long = Job(lambda job: studio.restore(Order(LR, LR.name, "tiny", upscale=4, samples=32, steps=200), job))
    heard = 0
    for news in long.watch():
        heard += "pass" in news.text
        if heard == 1:
            long.stop()
    with pytest.raises(Stopped):
        long.result()
    _, outcome = run(studio, Order(LR, LR.name, "tiny", upscale=2, steps=2, guidance=1))
    assert outcome.images[0].size == (64, 64)


VISITOR = """
import sys
from gradio_client import Client, handle_file

Client(sys.argv[1], verbose=False).predict(handle_file(sys.argv[2]), "tiny", 4, 1, 32, 0, 200, 1, "", "none", api_name="/restore")
"""


def jobs_at_work():
    return [thread for thread in threading.enumerate() if thread.name == "dp2osr job"]


@pytest.mark.parametrize("way", ["cancel", "gone"])
def test_a_visitor_who_cancels_or_goes_away_frees_the_queue(page, way):
    second = client_of(page)
    if way == "cancel":
        long = asked(client_of(page), LR, samples=32, upscale=4, steps=200)
    else:
        other = subprocess.Popen([sys.executable, "-c", VISITOR, page[1], str(LR)])
    end = time.monotonic() + 60
    while not (working := jobs_at_work()) and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(1)
    assert len(working) == 1
    if way == "cancel":
        long.cancel()
    else:
        other.kill()
    assert asked(second, LR).result(timeout=60)[3]
    working[0].join(20)
    assert not working[0].is_alive()


def test_files_are_removed_after_a_while(page):
    assert page[0].delete_cache == (900, 3600)


# -- in a browser --


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
def test_in_a_browser_an_upload_ends_with_a_visible_result_and_nothing_is_asked_of_other_servers(page, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.add_argument("--window-size=1280,1300")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def wait(condition):
        end = time.monotonic() + 60
        while not (found := condition()):
            assert time.monotonic() < end, browser.find_element(By.TAG_NAME, "body").text
            time.sleep(0.1)
        return found

    def find(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    try:
        browser.get(page[1])
        wait(lambda: find("#start"))[0].click()
        wait(lambda: "give an image first" in find("#status")[0].text)
        wait(lambda: find("#upload input[type=file]"))[0].send_keys(str(LR))
        wait(lambda: find("#upload img"))
        find("#start")[0].click()
        wait(lambda: "Done in" in find("#status")[0].text)
        wait(lambda: len([image for image in find("#samples img") if image.get_property("naturalWidth") == 128]) >= 4)
        assert len([image for image in find("#result img") if image.is_displayed() and image.get_property("naturalWidth") == 128]) == 2
        assert "★ best" in find("#samples")[0].text
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = [
            each["request"]["url"] for each in sent if each["documentURL"].startswith(page[1])
        ]  # and not of the browser's own first page
        assert len(urls) > 5 and not [url for url in urls if not url.startswith((page[1], "data:", "blob:"))]
        severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not [message for message in severe if "favicon" not in message]
    finally:
        browser.quit()
