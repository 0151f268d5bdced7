"""Models by their candidates, from folders to a page: numbers against naive loops, and what is refused."""

import csv
import json
import math
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import ROOT
from fabricated import CONFIG, IMAGE_IDS, METRICS, SIDE, naive_gain, naive_rewards, raw_scores, write_method, write_table
from PIL import Image

from dp2osr.errors import UserError
from dp2osr.evaluation import pictures, plots, summary
from dp2osr.evaluation.candidates import evaluate
from dp2osr.evaluation.methods import load_methods, parse_candidates
from dp2osr.evaluation.summary import headlines, worst_sentence
from dp2osr.evaluation.training_log import read_training_log, read_training_logs
from dp2osr.rewards.config import MetricSpec, RewardConfig
from dp2osr.sampling.store import CandidateStore

sys.path.insert(0, str(ROOT / "scripts"))


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two methods, their GT and a reward YAML; the autoencoder is the identity."""
    import dp2osr.sampling.decode

    monkeypatch.setattr(dp2osr.sampling.decode, "load_decoder", lambda settings, device: settings)
    monkeypatch.setattr(dp2osr.sampling.decode, "decode_group", lambda backbone, group, align: group.latents.float())
    write_method(tmp_path / "base", 0.0, seed=0)
    write_method(tmp_path / "policy", 1.5, seed=1)
    (tmp_path / "gt").mkdir()
    rng = np.random.default_rng(5)
    for image_id in IMAGE_IDS:
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(tmp_path / "gt" / f"{image_id}.png")
    (tmp_path / "small.yaml").write_text("fr: [psnr, gmsd]\nnr: [piqe]\n")
    records = [
        {"step": s, "loss": 0.69 - 0.01 * s, "implicit_accuracy": 0.5 + 0.02 * s, "winner_error": 0.2, "loser_error": 0.3, "grad_norm": 1.0}
        for s in range(20)
    ]
    records.insert(10, {"step": 9, "val_reward_mean": 0.5, "val_reward_best": 0.7, "val_reward_worst": 0.3, "G": 0.25})
    (tmp_path / "train_log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def run_script(world, monkeypatch, *more, candidates=("base", "policy")):
    import evaluate as script

    words = ["evaluate.py", "--candidates", *(f"{name}={world / name}" for name in candidates), "--gt_path", str(world / "gt")]
    words += ["--reward_config", str(world / "small.yaml"), "--output_dir", str(world / "out"), "--bootstrap", "200", *more]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    return world / "out"


class Resources(HTMLParser):
    """Every address that a page asks for, and whether its tags close."""

    def __init__(self):
        super().__init__()
        self.addresses, self.scripts, self.open = [], 0, []

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.addresses += [value for key, value in attributes if key in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_from_folders_to_a_page_that_needs_nothing_but_itself(world, monkeypatch, capsys):
    output = run_script(world, monkeypatch, "--training_log", str(world / "train_log.jsonl"), "--max_images_in_report", "3")
    lower_better = {name: entry["lower_better"] for name, entry in METRICS.items()}
    raw = {"base": raw_scores(0.0, 6, 0), "policy": raw_scores(1.5, 6, 1)}
    rewards = naive_rewards(raw, CONFIG, lower_better)
    value = naive_gain(rewards["policy"], rewards["base"])
    improved = sum(rewards["policy"].mean(axis=1) > rewards["base"].mean(axis=1))

    gain = json.loads((output / "summary.json").read_text())["comparisons"]["policy"]["G"]
    assert gain["value"] == pytest.approx(value) and gain["low"] < value < gain["high"]
    line = f"G = {value:.2f} [{gain['low']:.2f}, {gain['high']:.2f}] over 4 photographs x 6 seeds: policy better on {improved} of 8 images"
    page = (output / "report.html").read_text()
    assert line in capsys.readouterr().out and line in page and line in (output / "summary.md").read_text()
    assert "seed 0" in page and page.count('class="panel"') == 3

    resources = Resources()
    resources.feed(page)
    assert not resources.open and not resources.scripts
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in resources.addresses)
    assert not re.search(r"https?:|url\((?!#)|@import", page) and str(world) not in page and "somebody" not in page
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    clipped = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page))
    assert {name for pair in clipped for name in pair if name} <= set(identifiers), "inline plots refer to themselves"

    with open(output / "metrics.csv", newline="") as file:
        table = {(line["metric"], line["method"]): line for line in csv.DictReader(file)}
    gmsd = table["gmsd", "policy"]
    assert float(gmsd["mean"]) == pytest.approx(raw["policy"]["gmsd"].mean(), rel=1e-4)
    assert float(gmsd["change_in_sigma"]) == pytest.approx(naive_gain(-raw["policy"]["gmsd"], -raw["base"]["gmsd"]), rel=1e-4)
    assert gmsd["verdict"] == "better" and table["ssim", "base"]["set"] == "FR outside"
    assert ("psnr", "GT") not in table and ("piqe", "GT") in table and ("psnr", "bicubic") in table
    assert Image.open(output / "curves.png").width > 600
    assert not list(output.glob(".*.part")), "nothing half-written"


def test_bicubic_row_is_the_metric_of_the_upsampled_lr(world, monkeypatch):
    output = run_script(world, monkeypatch, "--max_images_in_report", "0")
    errors = []
    for image_id in IMAGE_IDS:
        lr = Image.open(world / "base" / "groups" / image_id / "lr.png").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        gt = np.asarray(Image.open(world / "gt" / f"{image_id}.png"), dtype=np.float64) / 255
        errors.append(-10 * math.log10(((np.asarray(lr, dtype=np.float64) / 255 - gt) ** 2).mean() + 1e-12))
    values = json.loads((output / "summary.json").read_text())["metrics"]["psnr"]["values"]
    assert values["bicubic"]["mean"] == pytest.approx(np.mean(errors), abs=0.01)


def test_the_same_command_writes_the_same_bytes(world, monkeypatch):
    names = ("metrics.csv", "summary.json", "summary.md", "report.html", "curves.png")
    output = run_script(world, monkeypatch, "--no_bicubic", "--training_log", str(world / "train_log.jsonl"), "--max_images_in_report", "2")
    first = {name: (output / name).read_bytes() for name in names}
    run_script(world, monkeypatch, "--no_bicubic", "--training_log", str(world / "train_log.jsonl"), "--max_images_in_report", "2")
    for name in names:
        assert (output / name).read_bytes() == first[name], name


def test_what_gets_worse_is_said(world):
    worse = raw_scores(1.5, 6, 1) | {"piqe": raw_scores(-2.0, 6, 1)["piqe"]}
    write_table(world / "policy", worse)
    methods, _ = load_methods([f"base={world / 'base'}", f"policy={world / 'policy'}"], CONFIG, "label {folder}")
    evaluation = evaluate(methods, CONFIG, resamples=200)
    text = summary.terminal(evaluation)
    assert "worse on piqe" in text
    assert "WORSE" in next(line for line in text.splitlines() if line.startswith("piqe ↓"))
    assert text.splitlines()[-1] == headlines(evaluation)[0]
    assert "of the distance from base's Worst to base's Mean" in worst_sentence(evaluation, "policy")


def test_three_methods_and_one(world, monkeypatch):
    write_method(world / "later", 3.0, seed=2)
    output = run_script(world, monkeypatch, "--no_bicubic", "--max_images_in_report", "1", candidates=("base", "policy", "later"))
    gains = {name: entry["G"]["value"] for name, entry in json.loads((output / "summary.json").read_text())["comparisons"].items()}
    assert gains["later"] > gains["policy"] > 0
    output = run_script(world, monkeypatch, "--no_bicubic", "--max_images_in_report", "1", candidates=("base",))
    assert json.loads((output / "summary.json").read_text())["comparisons"] == {}


def test_pictures_show_losses_too_and_the_same_seed_for_all(world):
    methods, _ = load_methods([f"base={world / 'base'}", f"policy={world / 'policy'}"], CONFIG, "label {folder}")
    evaluation = evaluate(methods, CONFIG, resamples=50)
    gains = evaluation.gain("policy").by_image
    chosen = pictures.choose_images(evaluation, 3)
    assert chosen[0] == gains.argmax() and chosen[-1] == gains.argmin() and len(set(chosen)) == 3
    assert sorted(pictures.choose_images(evaluation, 99)) == list(range(8)) and pictures.choose_images(evaluation, 0) == []
    panel = pictures.make_panels(evaluation, methods, None, world / "gt", 1)[0]
    image = IMAGE_IDS.index(panel.image_id)
    assert [tile.title for tile in panel.side_by_side] == ["LR", "bicubic", "base · seed 0", "policy · seed 0", "GT"]
    (_, worst), (_, median), (_, best) = panel.pairs
    assert [tile.reward for tile in worst] == [evaluation.rewards[name][image].min() for name in ("base", "policy")]
    assert [tile.reward for tile in best] == [evaluation.rewards[name][image].max() for name in ("base", "policy")]
    assert median[0].title.split()[-1] == median[1].title.split()[-1]
    for tile in worst + best:
        assert sum(tile.parts.values()) == pytest.approx(tile.reward)
    pixels = CandidateStore(world / "policy").read(panel.image_id).latents[int(worst[1].title.split()[-1])].numpy()
    assert abs(np.asarray(worst[1].image).transpose(2, 0, 1) / 255 - pixels).max() < 1 / 255, "the picture is that candidate's"


def test_large_images_are_shown_by_their_most_detailed_window():
    array = np.zeros((300, 400, 3), np.uint8)
    array[150:250, 250:350] = np.random.default_rng(0).integers(0, 256, (100, 100, 3))
    left, top, right, bottom = pictures.detail_window(Image.fromarray(array), 120)
    assert left <= 250 and top <= 150 and right >= 350 and bottom >= 250 and (right - left, bottom - top) == (120, 120)
    assert pictures.detail_window(Image.fromarray(array[:100, :100]), 120) is None


# ---------------------------------------------------------------- bad input


def refusal(world, *candidates, **options):
    with pytest.raises(UserError) as error:
        load_methods(
            [f"{name}={world / name}" for name in candidates],
            options.pop("config", CONFIG),
            "python label_rewards.py --candidates_dir {folder}",
            **options,
        )
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_scores_and_metrics_name_the_command(world):
    (world / "policy" / "scores.parquet").unlink()
    assert f"python label_rewards.py --candidates_dir {world / 'policy'}" in refusal(world, "base", "policy")
    config = RewardConfig("other", [MetricSpec("lpips")], [])
    message = refusal(world, "base", config=config)
    assert "lpips" in message and "label_rewards.py" in message


def test_other_images_are_listed(world):
    write_method(world / "other", 1.0, image_ids=[*IMAGE_IDS[1:], "zebra_00"])
    message = refusal(world, "base", "other")
    assert "only in 'base': photo0_00" in message and "only in 'other': zebra_00" in message


def test_scores_of_other_groups_are_refused(world):
    shutil.rmtree(world / "policy" / "groups" / "photo1_01")
    assert "photo1_01" in refusal(world, "base", "policy")


def test_other_metric_options_are_refused(world):
    metrics = METRICS | {"psnr": METRICS["psnr"] | {"options": {"test_y_channel": True}}}
    write_table(world / "policy", raw_scores(1.0, 6, 1), metrics=metrics)
    assert "test_y_channel" in refusal(world, "base", "policy")


def test_a_score_that_is_no_number_is_named(world, capsys):
    """One of the reward is refused; another metric is left out."""
    broken = raw_scores(1.0, 6, 1)
    broken["gmsd"][2, 4] = np.nan
    write_table(world / "policy", broken)
    message = refusal(world, "base", "policy")
    assert "gmsd" in message and IMAGE_IDS[2] in message and "candidate 4" in message
    broken["ssim"][1, 3], broken["gmsd"][2, 4] = np.inf, 0.1
    write_table(world / "policy", broken)
    methods, _ = load_methods([f"base={world / 'base'}", f"policy={world / 'policy'}"], CONFIG, "")
    assert all("ssim" not in method.scores and "gmsd" in method.scores for method in methods)
    assert f"ssim is not finite for {IMAGE_IDS[1]}, candidate 3; ssim is left out of 'policy'" in capsys.readouterr().err


def test_the_smaller_number_of_candidates_counts(world):
    write_method(world / "more", 1.0, total=9, seed=3)
    methods, notes = load_methods([f"base={world / 'base'}", f"more={world / 'more'}"], CONFIG, "")
    assert [method.num_candidates for method in methods] == [6, 6] and "first 6" in notes[0]
    assert (methods[1].scores["psnr"] == raw_scores(1.0, 9, 3)["psnr"][:, :6]).all()
    assert "at most 6" in refusal(world, "base", "more", num_candidates=7)


def test_different_sampling_is_noted(world):
    settings = json.loads((world / "policy" / "settings.json").read_text())
    (world / "policy" / "settings.json").write_text(json.dumps(settings | {"num_inference_steps": 50}))
    _, notes = load_methods([f"base={world / 'base'}", f"policy={world / 'policy'}"], CONFIG, "")
    assert notes == ["Sampled with different num_inference_steps: base 20, policy 50."]


def test_a_gt_that_is_missing_or_of_the_wrong_size(world, monkeypatch):
    Image.new("RGB", (SIDE + 1, SIDE)).save(world / "gt" / f"{IMAGE_IDS[3]}.png")
    with pytest.raises(UserError, match=f"{IMAGE_IDS[3]}.*33 x 32"):
        run_script(world, monkeypatch)
    (world / "gt" / f"{IMAGE_IDS[3]}.png").unlink()
    with pytest.raises(UserError, match=f"no GT for 1 of 8 images: {IMAGE_IDS[3]}"):
        run_script(world, monkeypatch)


@pytest.mark.parametrize("words", [["base"], ["=x"], ["a=x", "a=y"], ["bicubic=x"]])
def test_malformed_names(words):
    with pytest.raises(UserError, match="--candidates"):
        parse_candidates(words)


def test_training_log_of_a_killed_and_resumed_run(tmp_path):
    path = tmp_path / "train_log.jsonl"
    path.write_text(
        '{"step": 1, "loss": 0.7}\n{"step": 2, "loss": 0.6}\n{"step": 2, "loss": 0.5}\n{"step": 2, "val_reward_mean": 0.4}\n{"step": 3, "lo'
    )
    training, validation = read_training_log(path)
    assert [record["loss"] for record in training.values()] == [0.7, 0.5] and list(validation) == [2]
    path.write_text("not json\n" + '{"step": 1, "loss": 0.7}\n')
    with pytest.raises(UserError, match="line 1"):
        read_training_log(path)
    path.write_text("")
    with pytest.raises(UserError, match="no training record"):
        read_training_log(path)


def test_training_logs_of_rounds_are_counted_through(tmp_path):
    paths = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    paths[0].write_text('{"step": 1, "loss": 0.7}\n{"step": 2, "loss": 0.6}\n')
    paths[1].write_text('{"step": 1, "loss": 0.5}\n{"step": 1, "val_reward_mean": 0.4}\n')
    training, validation = read_training_logs(paths)
    assert {step: record["loss"] for step, record in training.items()} == {1: 0.7, 2: 0.6, 3: 0.5} and list(validation) == [3]


def test_one_photograph_has_no_interval(world):
    methods, _ = load_methods([f"base={world / 'base'}", f"policy={world / 'policy'}"], CONFIG, "")
    evaluation = evaluate(methods, CONFIG, crop_suffix=r"\d_\d\d$")
    assert evaluation.num_photographs == 1 and "no interval" in evaluation.notes[0]
    assert "[" not in headlines(evaluation)[0]
    assert {change.estimate.verdict for change in evaluation.changes["policy"].values()} == {"unclear"}
    assert plots.to_svg(*plots.result_plots(evaluation)[1]).startswith("<svg")


def test_a_sheet_of_portraits_shows_every_picture_whole():
    from dp2osr.data.contact_sheet import draw_sheet

    colours = ["red", "green", "blue"]
    sheet = draw_sheet([[Image.new("RGB", (10, 30), colour)] for colour in colours], ["one"])
    counts = {colour: count for count, colour in sheet.getcolors(10**6)}
    assert [counts[Image.new("RGB", (1, 1), name).getpixel((0, 0))] for name in colours] == [300] * 3
