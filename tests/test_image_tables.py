"""Tables of models on test sets: what is restored, what is evaluated, what is said before."""

import csv

import yaml
from conftest import ROOT, assert_one_clear_line
from small_experiment import reproduce


def test_an_image_table_restores_each_set_once_and_evaluates_it(tmp_path, lr_folder):
    model = {"pretrained_model_name_or_path": "preset/models/tiny-sd2", "controlnet_model_name_or_path": "preset/models/c-tiny-sd2"}
    flags = model | {"num_inference_steps": 1, "guidance_scale": 1.0, "upscale": 4, "sample_times": 2}
    (tmp_path / "psnr.yaml").write_text("fr: [psnr]\n", encoding="utf-8")
    gt = tmp_path / "gt"
    gt.mkdir()
    for path in lr_folder.iterdir():
        (gt / path.name).write_bytes((ROOT / "preset/train/gt" / path.name).read_bytes())
    content = {
        "title": "Small",
        "protocol": str(tmp_path / "psnr.yaml"),
        "sets": {"three": {"image_path": str(lr_folder), "gt_path": str(gt)}},
        "methods": {"ours": {"program": "test_sd2b_controlnet.py", "flags": flags}, "bicubic": {"bicubic": 4}, "GT": {"images": str(gt)}},
    }
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    words = ["table1", "--experiment", tmp_path / "table.yaml", "--output_dir", tmp_path / "out"]
    reproduce(*words)
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "out/own/table/three/table.csv").open(encoding="utf-8"))}
    assert set(rows) == {"ours", "bicubic", "GT"} and rows["ours"]["std_within_image"] and float(rows["GT"]["mean"]) > 70
    [log] = (tmp_path / "out").glob("own/table/three/*/log.txt")
    before = log.stat().st_mtime_ns
    assert "0 of them to be restored" in reproduce(*words).stdout and log.stat().st_mtime_ns == before
    content["sets"]["absent"] = {"image_path": str(tmp_path / "absent"), "optional": True}
    content["cost"] = {"machine": "a clock", "processes": 2, "start": 0, "score": 3600, "image": 1e9}
    content["methods"]["ours"] |= {"seconds": 7200, "flags": flags | {"seed": 5}}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    told = reproduce(*words, "--plan").stdout
    assert "without absent" in told and "about 9 hours and 6 GB on a clock" in told  # 3 images, 2 samples, 3 hours each, two processes
    content["sets"]["three"]["optional"] = True
    content["sets"]["three"]["gt_path"] = "nowhere"
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert_one_clear_line(reproduce(*words, check=False), "without absent", "nowhere", "no set is left")
    content["sets"]["three"]["gt_path"] = str(gt)
    content["cost"].pop("score")
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert_one_clear_line(reproduce(*words, check=False), "'cost': 'score' is missing")
    del content["cost"]
    content["methods"]["SeeSR"] = {"images": "nowhere/{set}"}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert_one_clear_line(reproduce(*words, check=False), "nowhere/three")
    content["methods"]["SeeSR"] = {"images": "x", "bicubic": 4}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert_one_clear_line(reproduce(*words, check=False), "method 'SeeSR'", "one of")
