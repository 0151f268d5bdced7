"""Folders of SR images of any method: pairing by name, scores against pyiqa called directly, tables against plain loops."""

import json
import sys
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, assert_one_clear_line, run_program, save_noise
from PIL import Image
from sr_folders import SIDE, photographs, protocol, rows_of  # noqa: F401 - fixtures

from dp2osr.errors import UserError
from dp2osr.evaluation.image_comparison import ImageTable, table_markdown
from dp2osr.evaluation.image_folders import pair_images, parse_folders
from dp2osr.evaluation.image_scores import ImageScorer, protocol_specs
from dp2osr.evaluation.published import Published, load_published
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.metrics import MetricSuite

sys.path.insert(0, str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def evaluated(photographs, protocol, tmp_path_factory):
    """(output folder, what was printed) of a whole run."""
    output = tmp_path_factory.mktemp("table")
    flags = ["--images", f"sharp={photographs / 'sharp'}", f"soft={photographs / 'soft'}", "--gt_path", photographs / "gt"]
    done = run_program(
        "scripts/evaluate.py", *flags, "--protocol", protocol, "--crop_border", 4, "--crop_suffix", "", "--output_dir", output
    )
    return output, done.stdout


# ---------------------------------------------------------------- numbers


def test_every_score_is_pyiqa_s_own_of_that_image(evaluated, photographs):
    import pyiqa

    options = {"psnr": {"test_y_channel": True, "crop_border": 4}, "ssim": {"crop_border": 4}}
    rows = rows_of(evaluated[0] / "per_image.csv")
    assert len(rows) == 60
    for name in ("psnr", "ssim", "gmsd", "fsim", "piqe"):
        metric = pyiqa.create_metric(name, device=torch.device("cpu"), **options.get(name, {}))
        for row in rows:
            suffix = f"_{int(row['sample']):02d}" if row["method"] == "soft" else ""
            path, gt = photographs / row["method"] / f"{row['image']}{suffix}.png", photographs / "gt" / f"{row['image']}.png"
            expected = metric(str(path)) if name == "piqe" else metric(str(path), str(gt))
            assert float(row[name]) == pytest.approx(float(expected), abs=1e-4)


def test_the_table_s_numbers_are_those_of_loops_over_the_scores(evaluated):
    output, _ = evaluated
    rows = rows_of(output / "per_image.csv")
    table = {(row["method"], row["metric"]): row for row in rows_of(output / "table.csv")}
    for metric in ("psnr", "piqe"):
        sharp = np.array([float(row[metric]) for row in rows if row["method"] == "sharp"])
        soft = np.array([[float(row[metric]) for row in rows if row["method"] == "soft" and row["sample"] == str(s)] for s in range(2)])
        of_soft = table["soft", metric]
        assert float(of_soft["mean"]) == pytest.approx(soft.mean(), rel=1e-6)
        assert float(of_soft["std_of_means"]) == pytest.approx(soft.mean(axis=1).std(ddof=1), rel=1e-6)
        assert float(of_soft["std_within_image"]) == pytest.approx(np.mean([np.std(pair, ddof=1) for pair in soft.T]), rel=1e-6)
        differences = soft.mean(axis=0) - sharp
        assert float(of_soft["difference"]) == pytest.approx(differences.mean(), rel=1e-6)
        draws = np.random.default_rng(7).choice(differences, (4000, len(differences))).mean(axis=1)
        spread = differences.std() / np.sqrt(len(differences))
        assert [float(of_soft["difference_low"]), float(of_soft["difference_high"])] == pytest.approx(
            list(np.percentile(draws, [2.5, 97.5])), abs=0.2 * spread
        )
        assert table["sharp", metric]["std_within_image"] == table["sharp", metric]["difference"] == ""


def test_the_p_value_is_that_of_signed_ranks_by_enumeration():
    """Six photographs, one with two crops, which count as one: all 2⁶ signs of the ranks."""
    differences = np.array([0.3, 0.5, -0.1, 0.9, 1.2, 0.7, 0.8])
    scores = {"psnr": {"a": np.full((7, 1), 20.0), "b": 20.0 + differences[:, None]}}
    suite = MetricSuite(load_reward_config_of("fr: [psnr]").metrics)
    found = ImageTable(scores, ["p_00", "p_01", "q_00", "r_00", "s_00", "t_00", "u_00"], suite.lower_better)
    merged = np.array([differences[:2].mean(), *differences[2:]])
    ranks = np.argsort(np.argsort(np.abs(merged))) + 1
    statistic = min(ranks[merged > 0].sum(), ranks[merged < 0].sum())
    sums = [sum(rank for rank, bit in zip(ranks, f"{signs:06b}") if bit == "1") for signs in range(64)]
    expected = 2 * np.mean([value <= statistic for value in sums])
    assert found.num_photographs == 6 and found.table.loc[("b", "psnr"), "p_value"] == pytest.approx(expected)


def load_reward_config_of(text):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "protocol.yaml"
        path.write_text(text, encoding="utf-8")
        return load_reward_config(path)


def test_a_smaller_border_or_another_channel_is_another_number(photographs):
    config = load_reward_config(ROOT / "configs/evaluation/offline.yaml")
    specs = {spec.name: spec.options for spec in protocol_specs(config, "rgb", 4)}
    assert specs["psnr"] == specs["ssim"] == {"test_y_channel": False, "crop_border": 4} and specs["gmsd"] == {}
    with pytest.raises(UserError, match="lpips"):
        protocol_specs(config, exclude=["lpips"])


def test_the_middle_of_the_images_is_scored_where_asked(photographs, tmp_path):
    methods, gt = pair_images({"sharp": [photographs / "sharp"]}, photographs / "gt")
    suite = MetricSuite(load_reward_config_of("fr: [psnr]").metrics)
    [score, *_] = ImageScorer(suite, gt, tmp_path / "scores.jsonl", 32).score(methods)["psnr"]["sharp"][:, 0]
    name, box = sorted(gt)[0], (32, 32, 64, 64)
    images = [np.asarray(Image.open(photographs / part / f"{name}.png").crop(box), float) for part in ("sharp", "gt")]
    assert score == pytest.approx(10 * np.log10(255**2 / np.square(images[0] - images[1]).mean()), abs=1e-3)


# ---------------------------------------------------------------- what is written


def test_tables_mark_the_best_and_tell_their_protocol(evaluated, photographs):
    output, printed = evaluated
    text = (output / "table.md").read_text(encoding="utf-8")
    assert text in printed and "psnr (test_y_channel True, crop_border 4)" in text and "20 images" in text
    table = {(row["method"], row["metric"]): float(row["mean"]) for row in rows_of(output / "table.csv")}
    better = "sharp" if table["sharp", "gmsd"] < table["soft", "gmsd"] else "soft"
    header, lines = next(
        (line.split("|"), text.splitlines()[number + 2 :]) for number, line in enumerate(text.splitlines()) if "gmsd" in line
    )
    [row] = [line.split("|") for line in lines[:2] if line.split("|")[1].strip() == better]
    assert row[header.index(" gmsd ↓ ")].strip().startswith("**")
    tex = (output / "table.tex").read_text(encoding="utf-8")
    assert tex.count(r"\textbf") == 5 == tex.count(r"\underline") and tex.count("&") == 3 * 5 and r"$\pm$" in tex


def test_published_values_stand_beside_and_the_difference_is_told(evaluated, photographs, protocol, tmp_path):
    published = {"source": "a paper", "metrics": ["psnr", "lpips"], "methods": {"sharp": {"psnr": 10.0}, "other": {"psnr": 31.5}}}
    published["spreads"] = {"other": {"psnr": 1.25}}
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(published), encoding="utf-8")
    flags = ["--images", f"sharp={photographs / 'sharp'}", "--gt_path", photographs / "gt", "--protocol", protocol]
    done = run_program("scripts/evaluate.py", *flags, "--published", tmp_path / "paper.yaml", "--output_dir", tmp_path / "out")
    [row] = [row for row in rows_of(tmp_path / "out" / "table.csv") if row["metric"] == "psnr"]
    assert row["published"] == "10" and "a paper" in done.stdout and "31.50 ± 1.25" in done.stdout
    [line] = [line for line in done.stdout.splitlines() if line.startswith("| ours − sharp")]
    assert f"{float(row['mean']) - 10:+.2f} !" in line and "no method has a name" not in done.stderr
    renamed = [word.replace("sharp=", "mine=") if isinstance(word, str) else word for word in flags]
    done = run_program("scripts/evaluate.py", *renamed, "--published", tmp_path / "paper.yaml", "--output_dir", tmp_path / "out")
    assert "no method has a name of that table (other, sharp)" in done.stderr and "ours −" not in done.stdout


def test_a_published_value_is_marked_by_what_several_seeds_say(tmp_path):
    """Images far apart, samples of each close together: 10.5 is within the interval over images and far outside of the seeds'."""
    rng, names = np.random.default_rng(0), [f"image{number}" for number in range(20)]
    scores = np.linspace(0, 20, 20)[:, None] + 0.01 * rng.standard_normal((20, 5))
    published = Published(["psnr"], {"a": {"psnr": 10.5}})

    def marked(values):
        found = ImageTable({"psnr": {"a": values}}, names, {"psnr": False}, 200, 0, "", published)
        return "!" in table_markdown(found, {}, {}).split("ours − a")[1].splitlines()[0]

    assert marked(scores) and not marked(scores[:, :1])


@pytest.mark.parametrize(("images", "told"), [(5, True), (20, False)])
def test_intervals_over_few_photographs_come_with_a_warning(images, told):
    rng, names = np.random.default_rng(0), [f"image{number}" for number in range(images)]
    scores = {"psnr": {name: rng.standard_normal((images, 1)) for name in ("a", "b")}}
    found = ImageTable(scores, names, {"psnr": False}, 200, 0, "")
    assert (f"Intervals over {images} photographs are too narrow" in table_markdown(found, {})) == told


@pytest.mark.parametrize("path", sorted((ROOT / "configs/paper").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_paper_s_tables_are_readable_and_their_metrics_known(path):
    content = load_published(path.stem)
    known = {spec.name for spec in load_reward_config(ROOT / "configs/evaluation/paper.yaml").metrics}
    assert set(content.metrics) <= known and {"C-SD2", "DP2O-SD2", "C-FLUX", "DP2O-FLUX"} <= set(content.methods)


# ---------------------------------------------------------------- run again


def test_a_second_run_scores_what_is_new_alone(photographs, tmp_path, monkeypatch):
    suite = MetricSuite(load_reward_config_of("fr: [psnr, gmsd]").metrics)
    methods, gt = pair_images({"sharp": [photographs / "sharp"]}, photographs / "gt")
    cache, scored = tmp_path / "scores.jsonl", []
    first = ImageScorer(suite, gt, cache).score(methods)
    lines = cache.read_text(encoding="utf-8").splitlines()
    cut = sum("image" in line for line in lines) - 1
    cache.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20], encoding="utf-8")  # killed in the middle of a line
    original = MetricSuite.score
    monkeypatch.setattr(MetricSuite, "score", lambda self, *words, **flags: scored.append(words) or original(self, *words, **flags))
    second = ImageScorer(suite, gt, cache).score(methods)
    assert cut == 19 and len(scored) == 2  # one image, two metrics
    for name in first:
        assert np.array_equal(first[name]["sharp"], second[name]["sharp"])
    scored.clear()
    methods, gt = pair_images({"sharp": [photographs / "sharp"], "GT": [photographs / "gt"]}, photographs / "gt")
    more = ImageScorer(suite, gt, cache).score(methods)
    assert len(scored) == 40 and all(len(words[0]) == 1 for words in scored)  # the new method's images alone
    assert np.array_equal(more["psnr"]["sharp"], first["psnr"]["sharp"])
    changed = photographs.parent / "changed"
    changed.mkdir(exist_ok=True)
    for path in (photographs / "sharp").iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    save_noise(changed / "image3.png", (SIDE, SIDE))
    scored.clear()
    methods, gt = pair_images({"sharp": [changed]}, photographs / "gt")
    third = ImageScorer(suite, gt, cache).score(methods)
    assert len(scored) == 2 and (third["psnr"]["sharp"] != first["psnr"]["sharp"]).sum() == 1


def test_fid_is_pyiqa_s_own_of_the_two_sets_and_asks_for_enough_images(photographs, tmp_path, monkeypatch):
    from pyiqa.archs import inception

    from dp2osr.evaluation import fid, image_comparison

    untrained = inception._inception_v3

    def random_inception():
        torch.manual_seed(0)
        return untrained(num_classes=1008, aux_logits=False, weights=None)

    monkeypatch.setattr(inception, "fid_inception_v3", random_inception)
    methods, gt = pair_images(parse_folders([f"soft={photographs / 'soft'}", f"gt={photographs / 'gt'}"]), photographs / "gt")
    metric = fid.build_fid()
    narrow = torch.nn.Conv2d(3, 16, 5, stride=4)  # the matrix square root of 2048 features takes a minute
    metric.net.model.forward = lambda images, *_: [100 * narrow(images).mean(dim=(2, 3))]
    monkeypatch.setattr(image_comparison, "build_fid", lambda *_: metric)
    with pytest.raises(UserError, match="--fid: 20 images with GT; at least 100"):
        fid.frechet_distances(methods, gt, metric)
    monkeypatch.setattr(fid, "FEWEST", 20)
    found = fid.frechet_distances(methods, gt, metric)
    direct = metric(str(photographs / "soft"), str(photographs / "gt"), num_workers=0, verbose=False)
    assert found["soft"] == pytest.approx(direct, rel=1e-3) and found["soft"] > 100 * abs(found["gt"])
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    import evaluate

    flags = ["--images", f"soft={photographs / 'soft'}", "--gt_path", str(photographs / "gt"), "--crop_suffix", ""]
    (tmp_path / "psnr.yaml").write_text("fr: [psnr]\n", encoding="utf-8")
    flags += ["--protocol", str(tmp_path / "psnr.yaml"), "--output_dir", str(tmp_path / "out"), "--fid"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags])
    evaluate.main()
    assert f"| soft | {found['soft']:.2f} | 40 |" in (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out/settings.json").read_text(encoding="utf-8"))["fid"] == pytest.approx({"soft": found["soft"]})


def test_fid_without_its_weights_is_one_clear_line(photographs, protocol, tmp_path, monkeypatch):
    flags = ["--images", f"sharp={photographs / 'sharp'}", "--gt_path", photographs / "gt", "--output_dir", tmp_path / "out", "--fid"]
    assert_one_clear_line(run_program("scripts/evaluate.py", *flags, check=False), "--fid: 20 images")
    assert_one_clear_line(run_program("scripts/evaluate.py", *flags, "--center_crop", "32", check=False), "--fid", "--center_crop")
    from dp2osr.evaluation.fid import build_fid

    def no_network(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    monkeypatch.setenv("DP2OSR_METRICS_DIR", str(tmp_path))
    with pytest.raises(UserError, match="--fid: metric 'fid': its weights are not here and cannot be fetched .*no network"):
        build_fid()
    for given, said in ((tmp_path / "nothing", "nothing: no such folder"), (None, "DP2OSR_METRICS_DIR: nowhere: no such folder")):
        monkeypatch.setenv("DP2OSR_METRICS_DIR", "nowhere")
        with pytest.raises(UserError, match=said):
            build_fid(given)


def test_an_image_that_a_metric_cannot_score_is_left_out_of_it_for_all_methods(photographs, tmp_path, capsys):
    suite = MetricSuite(load_reward_config_of("fr: [psnr, gmsd]").metrics)
    methods, gt = pair_images({"a": [photographs / "sharp"], "b": [photographs / "gt"]}, photographs / "gt")
    scores = ImageScorer(suite, gt, tmp_path / "scores.jsonl").score(methods)
    scores["psnr"]["b"][4, 0] = np.nan
    found = ImageTable(scores, sorted(gt), suite.lower_better, crop_suffix="")
    assert found.left_out == {"psnr": [sorted(gt)[4]]}
    assert found.table.loc[("a", "psnr"), "mean"] == pytest.approx(np.delete(scores["psnr"]["a"][:, 0], 4).mean())
    assert f"Left out: psnr on {sorted(gt)[4]}" in table_markdown(found, {})


def test_a_metric_that_fails_on_an_image_is_told_and_the_others_go_on(photographs, tmp_path, monkeypatch, capsys):
    suite = MetricSuite(load_reward_config_of("fr: [psnr, gmsd]").metrics)
    methods, gt = pair_images({"a": [photographs / "sharp"]}, photographs / "gt")
    original = MetricSuite.score

    def score(self, images, reference, image_id, names):
        if names == ["gmsd"] and image_id == "image5":
            raise UserError("gmsd cannot")
        return original(self, images, reference, image_id, names=names)

    monkeypatch.setattr(MetricSuite, "score", score)
    scores = ImageScorer(suite, gt, tmp_path / "scores.jsonl").score(methods)
    assert np.isnan(scores["gmsd"]["a"]).sum() == 1 and np.isfinite(scores["psnr"]["a"]).all()
    assert "image5.png" in capsys.readouterr().err
    monkeypatch.undo()
    again = ImageScorer(suite, gt, tmp_path / "scores.jsonl").score(methods)  # tried again
    assert np.isfinite(again["gmsd"]["a"]).all()
