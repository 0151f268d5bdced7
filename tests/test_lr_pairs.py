"""Degradation: lr pairs."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from degrading import photograph
from PIL import Image

from dp2osr.data.degradation import degrade, image_rng
from dp2osr.data.degradation_settings import load_degradation
from dp2osr.errors import run

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "make_lr_pairs.py"


def save(image, path):
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(path)


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "hr"
    folder.mkdir()
    for index in range(3):
        save(photograph(70 + index, 90, index), folder / f"p{index}.png")
    return folder


def arguments(image_path, output_dir, *more):
    return ["--image_path", str(image_path), "--output_dir", str(output_dir), *map(str, more)]


def script(args):
    """The script in this process, through the same `run` that turns a UserError into exit code 2."""
    spec = importlib.util.spec_from_file_location("make_lr_pairs", SCRIPT)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    before, sys.argv = sys.argv, [str(SCRIPT), *args]
    try:
        run(loaded.main)
    finally:
        sys.argv = before


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*"))}


def test_whole_images(photographs, tmp_path):
    script(arguments(photographs, tmp_path / "pairs", "--seed", 3))
    config = load_degradation("resshift")
    for index in range(3):
        gt = np.asarray(Image.open(tmp_path / "pairs/gt" / f"p{index}.png"))
        assert (gt == np.asarray(Image.open(photographs / f"p{index}.png"))[: (70 + index) // 4 * 4, :88]).all()  # cut, never sharpened
        lr = np.asarray(Image.open(tmp_path / "pairs/lr" / f"p{index}.png"))
        assert (lr == np.rint(degrade(gt.astype(np.float32) / 255, config, image_rng(3, f"p{index}")) * 255)).all()


def test_crops_are_places_of_the_photograph_with_detail(tmp_path, capsys):
    folder = tmp_path / "hr"
    folder.mkdir()
    image = photograph(64, 160)
    image[:, 70:] = 0.5  # flat: no crop from here
    save(image, folder / "half.png")
    save(np.full((64, 64, 3), 0.3, np.float32), folder / "flat.png")
    script(arguments(folder, tmp_path / "pairs", "--crop_size", 32, "--crops_per_image", 2, "--min_detail", 4))
    assert sorted(path.name for path in (tmp_path / "pairs/gt").iterdir()) == ["half_00.png", "half_01.png"]
    assert "2 pairs written" in (out := capsys.readouterr().out) and "2 crops fewer" in out
    source = np.asarray(Image.open(folder / "half.png"))
    windows = np.lib.stride_tricks.sliding_window_view(source, (32, 32), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    crops = [np.asarray(Image.open(tmp_path / "pairs/gt" / f"half_0{index}.png")) for index in range(2)]
    corners = [np.argwhere((windows == crop).all((2, 3, 4)))[0] for crop in crops]
    assert corners[0][1] < 70 and corners[1][1] < 70
    config = load_degradation("resshift")
    for pair_id, crop in zip(("half_00", "half_01"), crops, strict=True):
        lr = np.asarray(Image.open(tmp_path / "pairs/lr" / f"{pair_id}.png"))
        assert (lr == np.rint(degrade(crop.astype(np.float32) / 255, config, image_rng(0, pair_id)) * 255)).all()


def test_crops_do_not_overlap_where_there_is_room():
    from dp2osr.data.lr_pairs import PairSettings, choose_crops

    rows, columns = np.mgrid[:64, :120]
    image = np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)  # each pixel tells where it is
    settings = PairSettings(load_degradation("resshift"), crop_size=32, crops_per_image=2)
    for seed in range(30):
        first, second = (crop[0, 0, :2].astype(int) for crop in choose_crops(image, settings, image_rng(seed, "x")))
        assert (np.abs(first - second) >= 32).any()


def test_other_settings_are_refused_with_both_shown(photographs, tmp_path, capsys):
    script(arguments(photographs, tmp_path / "pairs", "--crop_size", 32))
    before = contents(tmp_path / "pairs")
    with pytest.raises(SystemExit) as stopped:
        script(arguments(photographs, tmp_path / "pairs", "--crop_size", 64, "--degradation", "resshift_second_order"))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert "crop_size is 32 there and 64 here" in error and "degradation.second_order_prob is 0.0 there and 0.5 here" in error
    assert contents(tmp_path / "pairs") == before


def test_killed_and_started_again_with_two_workers_gives_the_same_bytes(tmp_path):
    folder, whole, killed = tmp_path / "hr", tmp_path / "whole", tmp_path / "killed"
    folder.mkdir()
    image = photograph(240, 240)
    for index in range(40):
        save(np.roll(image, 8 * index, axis=0), folder / f"p{index:02d}.png")
    flags = ("--crop_size", 64, "--crops_per_image", 3)
    script(arguments(folder, whole, *flags))
    process = subprocess.Popen([sys.executable, SCRIPT, *arguments(folder, killed, *flags)], stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((killed / "lr").glob("*.png"))) < 5:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in (killed / "lr").glob("*.png")}
    assert 5 <= len(done) < 120
    victim = sorted(done)[0]
    (killed / "gt" / victim).unlink()  # half a pair is none
    script(arguments(folder, killed, *flags, "--num_workers", 2))
    assert contents(killed) == contents(whole)
    for name, written in done.items():
        assert ((killed / "lr" / name).stat().st_mtime_ns == written) == (name != victim)
    assert json.loads((killed / "settings.json").read_text())["crops_per_image"] == 3


def bad_inputs(folder):
    """name → (prepare the folder of photographs, more flags, part of the message)."""

    def truncate():
        data = (folder / "p1.png").read_bytes()
        (folder / "p1.png").write_bytes(data[: len(data) // 2])

    def empty():
        for path in folder.iterdir():
            path.unlink()

    return {
        "truncated": (truncate, (), "p1.png: not a readable image"),
        "not an image": (lambda: (folder / "p1.png").write_text("no"), (), "p1.png: not a readable image"),
        "empty": (empty, (), "holds no image"),
        "one stem": (lambda: save(photograph(64, 64), folder / "p1.jpg"), (), "share the stem 'p1'"),
        "too small": (lambda: save(photograph(20, 64), folder / "small.png"), ("--crop_size", 32), "small.png: 64x20 pixels"),
        "crop size": (lambda: None, ("--crop_size", 30), "--crop_size 30: must be 0 or a multiple"),
        "crops of the whole": (lambda: None, ("--crops_per_image", 2), "give --crop_size too"),
        "no crops": (lambda: None, ("--crop_size", 32, "--crops_per_image", 0), "--crops_per_image 0"),
        "no workers": (lambda: None, ("--num_workers", 0), "--num_workers 0"),
        "degradation": (lambda: None, ("--degradation", "bsrgan"), "degradation 'bsrgan': not one of"),
    }


@pytest.mark.parametrize("case", bad_inputs(Path()))
def test_bad_input_is_one_line_and_exit_code_2(case, photographs, tmp_path, capsys):
    prepare, more, message = bad_inputs(photographs)[case]
    prepare()
    with pytest.raises(SystemExit) as stopped:
        script(arguments(photographs, tmp_path / "pairs", *more))
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    for path in (tmp_path / "pairs").rglob("*.png"):
        Image.open(path).load()  # whatever is there is whole


def test_bad_input_from_the_shell_and_help_without_torch(photographs, tmp_path):
    (photographs / "p2.png").write_bytes(b"\x89PNG")
    command = [sys.executable, SCRIPT, *arguments(photographs, tmp_path / "pairs")]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 2 and "p2.png" in failed.stderr
    assert "Traceback" not in failed.stderr and len(failed.stderr.splitlines()) == 1
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "cv2"):
        (blocked / f"{name}.py").write_text("raise ImportError('imported by --help')")
    env = {**os.environ, "PYTHONPATH": f"{blocked}{os.pathsep}{os.environ['PYTHONPATH']}"}
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, env=env)
    assert shown.returncode == 0 and "--degradation" in shown.stdout
