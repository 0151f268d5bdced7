"""A study's page as pictures: what stood left and right comes back as the page's own votes; rivals that are as sharp as a method."""

import json

import numpy as np
import pytest
from conftest import save_noise
from PIL import Image

from dp2osr.errors import UserError
from dp2osr.evaluation.image_folders import parse_folders
from dp2osr.evaluation.user_study import make_study, read_votes
from studies.viewing import MARGIN, mean_gradient, sharpen, sharpen_folder, write_pictures, write_votes


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A page of six images of a bright and a dark method."""
    folder = tmp_path_factory.mktemp("viewing")
    for name, level in (("lr", 128), ("bright", 250), ("dark", 5)):
        (folder / name).mkdir()
        for index in range(6):
            size = 4 if name == "lr" else 16
            Image.fromarray(np.full((size, size, 3), level, np.uint8)).save(folder / name / f"photo{index}.png")
    make_study(parse_folders([f"bright={folder / 'bright'}", f"dark={folder / 'dark'}"]), folder / "lr", folder / "page.html")
    return folder


def test_who_always_takes_the_bright_side_has_voted_for_the_bright_method_alone(study, tmp_path):
    orders = []
    for participant in ("first", "second"):
        pictures = tmp_path / participant
        write_pictures(study / "page.html", participant, pictures, 3)
        seen = [np.asarray(Image.open(pictures / f"{number:02d}.png"), int) for number in range(1, 7)]
        assert all(image.shape == (48, 3 * 48 + 2 * MARGIN, 3) for image in seen)
        bright = ["left" if image[:, 60:108].mean() > image[:, -48:].mean() else "right" for image in seen]
        answers = tmp_path / f"{participant}.txt"
        answers.write_text("".join(f"{number:02d}: {side.title()}\n" for number, side in enumerate(bright, 1)), encoding="utf-8")
        write_votes(pictures, answers, tmp_path / f"votes-{participant}.json")
        orders.append((bright, json.loads((pictures / "shown.json").read_text())["pictures"]))
    _, everyone = read_votes([tmp_path / "votes-first.json", tmp_path / "votes-second.json"], study / "page.key.json")
    assert [set(votes.choices.values()) for votes in everyone] == [{"bright"}, {"bright"}]
    assert all(len(votes.choices) == 6 for votes in everyone)
    assert orders[0][1] != orders[1][1]  # each participant has an order of his own


def test_an_answer_that_is_missing_is_named(study, tmp_path):
    write_pictures(study / "page.html", "first", tmp_path / "pictures", 1)
    (tmp_path / "answers.txt").write_text("1 left\n2 right\n4 left\n5 left\n6 up\n", encoding="utf-8")
    with pytest.raises(UserError, match="answers.txt: has no line such as '3 left' for picture 3"):
        write_votes(tmp_path / "pictures", tmp_path / "answers.txt", tmp_path / "votes.json")
    with pytest.raises(UserError, match="none.txt: is missing"):
        write_votes(tmp_path / "pictures", tmp_path / "none.txt", tmp_path / "votes.json")
    assert not (tmp_path / "votes.json").exists()


def test_a_soft_image_gets_the_gradient_that_was_asked_for_and_a_sharp_one_stays():
    rng = np.random.default_rng(0)
    image = np.kron(rng.uniform(60, 200, (8, 8, 3)), np.ones((4, 4, 1)))
    sharpened, amount = sharpen(image, 1.3 * mean_gradient(image))
    assert mean_gradient(sharpened) == pytest.approx(1.3 * mean_gradient(image), rel=1e-3) and amount > 0
    flat = np.full((8, 8, 3), 100.0)
    assert (sharpen(flat, 3)[0] == flat).all()
    assert sharpen(image, 0.9 * mean_gradient(image)) == (pytest.approx(image), 0)


def test_a_folder_is_made_as_sharp_as_its_namesakes(tmp_path, capsys):
    (tmp_path / "soft").mkdir(), (tmp_path / "noise").mkdir()
    save_noise(tmp_path / "noise/a.png", (32, 32), seed=0)
    with Image.open(tmp_path / "noise/a.png") as image:
        image.resize((8, 8), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BICUBIC).save(tmp_path / "soft/a.png")
    sharpen_folder(tmp_path / "noise", tmp_path / "soft", tmp_path / "kept")
    assert (np.asarray(Image.open(tmp_path / "kept/a.png")) == np.asarray(Image.open(tmp_path / "noise/a.png"))).all()
    assert "as sharp before: 1" in capsys.readouterr().out
    with pytest.raises(UserError, match="none"):
        sharpen_folder(tmp_path / "none", tmp_path / "soft", tmp_path / "out")
    (tmp_path / "soft/a.png").rename(tmp_path / "soft/b.png")
    with pytest.raises(UserError, match="noise: has no image of the name b.png, which .*soft has"):
        sharpen_folder(tmp_path / "soft", tmp_path / "noise", tmp_path / "out")
    assert not (tmp_path / "out").exists()
