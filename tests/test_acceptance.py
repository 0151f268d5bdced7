"""The acceptance run on the tiny model: images, scores and published means side by side."""

import pytest
import yaml
from conftest import CONTROLNET, MODEL, ROOT

from dp2osr.cli import parse
from dp2osr.data.images import read_image
from dp2osr.errors import UserError
from dp2osr.evaluation.acceptance import run_acceptance
from dp2osr.evaluation.settings import AcceptanceSettings


def test_the_means_of_a_few_images_stand_beside_the_published_ones(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text("fr: [psnr, gmsd]\nnr: [piqe]\n", encoding="utf-8")
    table = {"source": "nobody", "metrics": ["psnr", "gmsd", "musiq"], "methods": {"ours": {"psnr": 99.0, "gmsd": 0.1, "musiq": 70.0}}}
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    words = ["--pretrained_model_name_or_path", MODEL, "--controlnet_model_name_or_path", CONTROLNET, "--num_inference_steps", 1]
    words += ["--image_path", ROOT / "preset/test/lr", "--gt_path", ROOT / "preset/test/gt", "--output_dir", tmp_path / "out"]
    words += ["--num_images", 3, "--protocol", tmp_path / "small.yaml", "--published", tmp_path / "published.yaml", "--bootstrap", 50]

    def accept(method, *more):
        return run_acceptance(parse(AcceptanceSettings, [*words, "--method", method, *more]))

    with pytest.raises(UserError, match="--method our: .* has no such row; did you mean 'ours'"):
        accept("our")
    with pytest.raises(UserError, match="--num_images 999: .* has 99"):
        accept("ours", "--num_images", 999)
    assert not (tmp_path / "out").exists()
    found = accept("ours")
    told = capsys.readouterr().out
    made = sorted((tmp_path / "out/images").glob("*.png"))
    assert len(made) == 3 == len(found.results.images) and read_image(made[0]).size == (128, 128)
    [row] = [line.split() for line in told.splitlines() if line.startswith("psnr ")]
    assert float(row[1]) == pytest.approx(found.cell("ours", "psnr")["mean"], abs=1e-4) and row[-2:] == ["99.0000", "outside"]
    assert "of 2 published means lie in the interval over these 3 images; outside: psnr" in told
    before = made[0].stat().st_mtime_ns
    accept("ours")
    assert made[0].stat().st_mtime_ns == before
