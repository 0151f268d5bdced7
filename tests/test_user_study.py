"""The blind study: a page driven in a real browser, votes counted against enumeration."""

import json
import shutil
import time

import numpy as np
import pytest
from conftest import assert_one_clear_line, run_program, save_noise
from PIL import Image

from dp2osr.errors import UserError
from dp2osr.evaluation.user_study import Votes, make_study, read_votes, shares, votes_table

METHODS = ("first_method", "second_method", "third_method")
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A page of four images and three methods; (page, key, folder)."""
    folder = tmp_path_factory.mktemp("study")
    for place, name in enumerate(("lr", *METHODS)):
        (folder / name).mkdir()
        for index in range(4):
            save_noise(folder / name / f"photo{index}.png", (8, 8) if name == "lr" else (32, 32), seed=10 * place + index)
    words = [f"{name}={folder / name}" for name in METHODS]
    page = folder / "page.html"
    run_program("scripts/user_study.py", "make", "--images", *words, "--lr_path", folder / "lr", "--output", page)
    return page, json.loads((folder / "page.key.json").read_text(encoding="utf-8")), folder


def test_the_page_does_not_tell_which_result_is_whose(study):
    page, key, _ = study
    text = page.read_text(encoding="utf-8")
    assert not any(word in text for word in (*METHODS, "photo"))
    assert "http://" not in text and "https://" not in text and 'src="' not in text
    trials = json.loads(text.split("const study = ", 1)[1].split(";\n", 1)[0])["trials"]
    assert {trial["id"] for trial in trials} == set(key["trials"])
    orders = {tuple(key["trials"][trial["id"]]["candidates"][candidate["id"]] for candidate in trial["candidates"]) for trial in trials}
    assert len(orders) > 1


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
def test_a_participant_votes_by_keyboard_and_mouse_goes_back_and_reloads(study, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.common.by import By

    page, key, folder = study
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        browser.get(page.as_uri())
        candidates = lambda: browser.find_elements(By.CSS_SELECTOR, "#candidates button")  # noqa: E731
        press = lambda keys: browser.find_element(By.TAG_NAME, "body").send_keys(keys)  # noqa: E731
        count = lambda: browser.find_element(By.ID, "count").text  # noqa: E731
        state = lambda: browser.execute_script("return votes()")  # noqa: E731
        assert len(candidates()) == 3 and count() == "1 of 4"
        widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
        assert widths == [32] * 4
        first = browser.execute_script("return state.shown[study.trials[state.order[0]].id]")
        press("2")
        assert count() == "2 of 4" and state()["votes"][0]["choice"] == first[1]
        candidates()[2].click()
        assert count() == "3 of 4"
        press("9")  # there is no ninth candidate
        assert count() == "3 of 4"
        browser.find_element(By.ID, "back").click()
        press("\ue012")  # ←
        assert count() == "1 of 4" and candidates()[1].get_attribute("aria-pressed") == "true"
        press("1")  # a change of mind
        assert count() == "2 of 4"  # the page has seen the key before it goes
        browser.refresh()
        assert count() == "2 of 4" and state()["votes"][0]["choice"] == first[0]
        for _ in range(3):
            press("3")
        assert browser.find_element(By.ID, "done").is_displayed() and not browser.find_element(By.ID, "voting").is_displayed()
        expected = state()
        browser.find_element(By.ID, "download").click()
        end = time.monotonic() + 20
        while not (files := list((tmp_path / "downloads").glob("votes-*.json"))) and time.monotonic() < end:
            time.sleep(0.2)
        browser.find_element(By.ID, "next").click()
        browser.switch_to.alert.accept()
        assert count() == "1 of 4" and state()["participant"] != expected["participant"] and not state()["votes"]
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        browser.quit()
    assert len(expected["votes"]) == 4
    methods, [votes] = read_votes(files, folder / "page.key.json")
    assert votes.choices == {vote["trial"]: key["trials"][vote["trial"]]["candidates"][vote["choice"]] for vote in expected["votes"]}
    assert sorted(votes.places.values()) == [0, 2, 2, 2]
    done = run_program("scripts/user_study.py", "count", "--key", folder / "page.key.json", *files)
    assert "4 votes of 1 participants on 4 images" in done.stdout and methods == list(METHODS)


def votes_of(rng, people=5, images=6):
    return [
        Votes(str(person), {f"t{i}": METHODS[rng.integers(3)] for i in range(images) if person or i}, {f"t{i}": 0 for i in range(images)})
        for person in range(people)
    ]


def test_shares_are_those_of_a_count_and_their_intervals_those_of_a_loop():
    everyone = votes_of(np.random.default_rng(0))
    found = shares(METHODS, everyone, resamples=400, seed=3)
    ballots = [(votes.participant, trial, choice) for votes in everyone for trial, choice in votes.choices.items()]
    images = sorted({trial for _, trial, _ in ballots})
    rng = np.random.default_rng(3)
    of_people = rng.multinomial(5, np.full(5, 0.2), size=400)
    of_images = rng.multinomial(6, np.full(6, 1 / 6), size=400)
    for method in METHODS:
        assert found[method].value == sum(choice == method for *_, choice in ballots) / len(ballots)
        drawn = []
        for people, pictures in zip(of_people, of_images, strict=True):
            weight = {(person, trial): people[int(person)] * pictures[images.index(trial)] for person, trial, _ in ballots}
            drawn.append(sum(weight[person, trial] for person, trial, choice in ballots if choice == method) / sum(weight.values()))
        assert [found[method].low, found[method].high] == pytest.approx(list(np.percentile(drawn, [2.5, 97.5])))
    assert sum(share.value for share in found.values()) == pytest.approx(1)


def test_one_participant_and_one_image_have_a_share_without_an_interval():
    table = votes_table(METHODS, [Votes("x", {"t": METHODS[1]}, {"t": 2})])
    assert "| second_method | 100.0% |  |" in table and "0%, 0%, 100%" in table
    one_person = votes_table(
        METHODS, [Votes("x", {f"t{number}": METHODS[1] for number in range(5)}, dict.fromkeys(map("t{}".format, range(5)), 2))]
    )
    assert "| second_method | 100.0% |  |" in one_person


def made_up(key, participant="p", **changes):
    votes = []
    for trial, entry in key["trials"].items():
        shown = list(entry["candidates"])
        votes.append({"trial": trial, "choice": shown[0], "shown": shown, "milliseconds": 5})
    return {"study": key["study"], "participant": participant, "votes": votes} | changes


@pytest.mark.parametrize(
    ("content", "mention"),
    [
        (lambda key: "no json", "not a readable JSON"),
        (lambda key: json.dumps([1]), "not the votes"),
        (lambda key: json.dumps(made_up(key, study="another")), "another study"),
        (lambda key: json.dumps(made_up(key, votes=[])), "no vote"),
        (lambda key: json.dumps(made_up(key, votes=[{"trial": "x", "choice": "y", "shown": []}])), "not the votes"),
        (lambda key: json.dumps(made_up(key))[:-40], "not a readable JSON"),
        (lambda key: json.dumps(made_up(key, votes=made_up(key)["votes"] * 2)), "there twice"),
        (
            lambda key: json.dumps(made_up(key, votes=[{**vote, "shown": vote["shown"] * 2} for vote in made_up(key)["votes"]])),
            "other candidates",
        ),
    ],
)
def test_a_votes_file_that_cannot_be_read_is_named(study, tmp_path, content, mention):
    _, key, folder = study
    (tmp_path / "votes.json").write_text(content(key), encoding="utf-8")
    done = run_program("scripts/user_study.py", "count", "--key", folder / "page.key.json", tmp_path / "votes.json", check=False)
    assert_one_clear_line(done, "votes.json", mention)


@pytest.mark.parametrize("change", [{"methods": None}, {"study": None}, {"trials": []}, {"trials": {"x": 3}}])
def test_a_broken_key_is_not_blamed_on_the_votes(study, tmp_path, change):
    _, key, _ = study
    (tmp_path / "votes.json").write_text(json.dumps(made_up(key)), encoding="utf-8")
    (tmp_path / "key.json").write_text(json.dumps(key | change), encoding="utf-8")
    with pytest.raises(UserError, match="key.json: not the key"):
        read_votes([tmp_path / "votes.json"], tmp_path / "key.json")


def test_a_count_of_no_files_is_one_line(study):
    _, _, folder = study
    done = run_program("scripts/user_study.py", "count", "--key", folder / "page.key.json", check=False)
    assert_one_clear_line(done, "no votes", "page.key.json")


def test_a_participant_counts_once(study, tmp_path):
    _, key, folder = study
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(made_up(key)), encoding="utf-8")
    with pytest.raises(UserError, match="b.json: its participant"):
        read_votes([tmp_path / "a.json", tmp_path / "b.json"], folder / "page.key.json")


def test_a_study_of_other_pictures_is_another_study_and_takes_no_size_that_tells(study, tmp_path):
    _, key, folder = study
    folders = {name: [folder / name] for name in METHODS[:2]}
    make_study(folders, folder / "lr", tmp_path / "page.html", num_images=2)
    other = json.loads((tmp_path / "page.key.json").read_text(encoding="utf-8"))
    assert other["study"] != key["study"] and len(other["trials"]) == 2
    bigger = tmp_path / "bigger"
    bigger.mkdir()
    for path in (folder / METHODS[0]).iterdir():
        Image.open(path).resize((40, 40)).save(bigger / path.name)
    with pytest.raises(UserError, match="different sizes"):
        make_study({"a": [bigger], "b": [folder / METHODS[1]]}, folder / "lr", tmp_path / "page.html")
    with pytest.raises(UserError, match="2 to 9"):
        make_study({"a": [bigger]}, folder / "lr", tmp_path / "page.html")
