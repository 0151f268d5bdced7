"""Folders of inputs: everything that cannot be used is named at once, everything that is not taken is said once."""

import shutil

import pytest
import torch
from conftest import KINDS, ROOT, save_noise
from PIL import Image

from dp2osr.cli import given, parse
from dp2osr.data.inputs import find_gt, find_inputs, list_images, scan
from dp2osr.errors import UserError
from dp2osr.sampling.defaults import read_recommended, with_defaults
from dp2osr.sampling.settings import GenerateSettings, RestoreSettings


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        save_noise(folder / name, (16, 12))
    return folder


def break_it(folder):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    (folder / "link.png").symlink_to(folder / "nowhere.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-200])
    save_noise(folder / "b.png", (16, 12))
    save_noise(folder / "small.png", (4, 4))


BAD = ("empty.png", "text.jpg", "link.png", "cut.png", "b.png", "small.png")


def test_all_inputs_that_cannot_be_used_are_named_at_once(folder):
    break_it(folder)
    with pytest.raises(UserError) as error:
        find_inputs(folder, least=8)
    assert all(f"{name}: " in str(error.value) for name in BAD) and "6 of 8" in str(error.value)


def test_those_that_can_be_used_are_taken_when_asked(folder):
    break_it(folder)
    files, skipped = find_inputs(folder, skip_unreadable=True, least=8)
    assert [file.id for file in files] == ["a", "b"] and {path.name for path in skipped} == set(BAD)
    for path in folder.glob("[ab].*"):
        path.unlink()
    with pytest.raises(UserError, match="cannot be used"):
        find_inputs(folder, skip_unreadable=True, least=8)


def test_sidecars_and_folders_are_no_images_and_what_is_passed_over_is_said(folder, capsys):
    (folder / "._a.png").write_bytes(b"\x00\x05\x16\x07")
    (folder / "thumbs.png").mkdir()
    save_noise(folder / "thumbs.png/x.png", (8, 8))
    (folder / "phone.HEIC").write_bytes(b"heic")
    save_noise(folder / ".hidden.png", (8, 8))
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    files, _ = find_inputs(folder)
    told = capsys.readouterr().err
    assert [file.id for file in files] == ["a", "b", "film"]
    for words in ("1 not of a format", "phone.HEIC", "1 hidden: .hidden.png", "thumbs.png", "film.gif (3)", "--recursive"):
        assert words in told
    assert "._a" not in told and told.count("note:") == 1


def test_sub_folders_are_taken_when_asked_and_give_their_images_ids_of_their_own(folder):
    for sub in ("x", "x/y"):
        (folder / sub).mkdir()
        save_noise(folder / sub / "a.png", (8, 8))
    files, _ = find_inputs(folder, recursive=True)
    assert {file.id: file.folder for file in files} == {"a": "", "b": "", "x__a": "x", "x__y__a": "x/y"}
    assert [file.name for file in files] == ["a.png", "b.jpg", "x/a.png", "x/y/a.png"]  # none stands for another in the estimate
    assert find_gt(folder, ["a", "x__y__a"])["x__y__a"] == folder / "x/y/a.png"


@pytest.mark.parametrize("name", ["a\n.png", b"\xff\xfe.png".decode("utf-8", "surrogateescape")])
def test_names_that_no_later_stage_could_handle_are_refused(folder, name):
    shutil.copy(folder / "a.png", folder / name)
    with pytest.raises(UserError, match="name"):
        list_images(folder)


def test_a_replaced_file_is_seen(folder):
    before = find_inputs(folder)[0][0]
    content = before.content
    save_noise(folder / "a.png", (16, 12), seed=1)
    after = find_inputs(folder)[0][0]
    assert after.size == before.size and after.content != content


def test_a_manifest_with_excels_byte_order_mark_is_one(folder):
    (folder / "manifest.csv").write_text("file\nb.jpg\n", encoding="utf-8-sig")
    assert [path.name for path in list_images(folder / "manifest.csv")] == ["b.jpg"]


def test_all_gt_that_is_missing_or_broken_is_named(folder):
    with pytest.raises(UserError, match="x, y"):
        find_gt(folder, ["a", "x", "y"])
    (folder / "c.png").write_bytes(b"broken")
    (folder / "d.png").write_bytes(b"")
    with pytest.raises(UserError, match="c.png.*d.png"):
        find_gt(folder, ["a", "c", "d"])


def test_results_among_the_inputs_are_no_inputs(folder, capsys):
    listing = scan(folder, leave_out=lambda path: path.name == "b.jpg")
    assert [file.id for file in listing.files] == ["a"] and "b.jpg" in listing.passed_over[0]


# -- settings that no flag gives --


def flags_of(kind, *words):
    return parse(GenerateSettings, [*words, "--image_path", "x", "--output_dir", "y"])


class Published:
    """What `with_defaults` reads of a backbone."""

    published_sampling, default_scheduler = {"num_inference_steps": 25, "guidance_scale": 2.5}, "flow_euler"


def test_a_model_recommends_its_settings_flags_win_and_without_either_the_paper_holds(tmp_path):
    kind = KINDS["flux"]
    args, filled = with_defaults(flags_of(kind, *kind.model_flags, "--guidance_scale", 2), Published)
    assert (args.num_inference_steps, args.guidance_scale, args.align_method, args.scheduler) == (8, 2.0, "wavelet", "flow_euler")
    assert "sampling_settings.json" in filled["num_inference_steps"][1] and "guidance_scale" not in filled
    elsewhere = flags_of(kind, "--pretrained_model_name_or_path", tmp_path, "--controlnet_model_name_or_path", tmp_path)
    assert with_defaults(elsewhere, Published)[0].num_inference_steps == 25
    (tmp_path / "sampling_settings.json").write_text('{"num_inference_steps": 7}')
    policy = flags_of(kind, "--pretrained_model_name_or_path", kind.model, "--controlnet_model_name_or_path", tmp_path)
    args, _ = with_defaults(policy, Published)  # the ControlNet's own come before the base's
    assert (args.num_inference_steps, args.guidance_scale) == (7, 1.0)


@pytest.mark.parametrize(
    "content", ['{"steps": 3}', '{"num_inference_steps": "3"}', '{"num_inference_steps": 0}', '{"align_method": "x"}', "[1]", "{"]
)
def test_a_broken_recommendation_is_one_line(tmp_path, content):
    (tmp_path / "sampling_settings.json").write_text(content)
    with pytest.raises(UserError, match="sampling_settings.json"):
        read_recommended(str(tmp_path))


def test_the_tiny_models_recommend_what_their_configs_sample_with():
    for name, steps in (("tiny-sd2", 8), ("tiny-flux", 8)):
        settings, _ = read_recommended(str(ROOT / "preset/models" / name))
        text = (ROOT / f"configs/{name.replace('-', '_')}/full/sample.yaml").read_text()
        assert settings["num_inference_steps"] == steps and f"num_inference_steps: {steps}\n" in text
        assert f"guidance_scale: {settings['guidance_scale']}" in text and f"align_method: {settings['align_method']}" in text


def test_what_a_program_sets_itself_gives_way_to_its_flags_and_changes_no_other_program():
    words = [*KINDS["flux"].model_flags, "--image_path", "x", "--output_dir", "y"]
    assert parse(RestoreSettings, words, backbone="flux").backbone == "flux"
    assert parse(RestoreSettings, [*words, "--backbone", "sd2"], backbone="flux").backbone == "sd2"
    assert parse(RestoreSettings, words).backbone is None and parse(RestoreSettings, words).upscale == 1
    assert parse(GenerateSettings, words).upscale == 4
    assert given(GenerateSettings, words) == {"pretrained_model_name_or_path", "controlnet_model_name_or_path", "image_path", "output_dir"}


# -- growing --


def test_candidates_grow_and_those_that_are_there_stay_as_they_are(folder, tmp_path):
    from dp2osr.sampling.generate import generate_candidates
    from dp2osr.sampling.store import CandidateStore

    def sample(out, count):
        words = [*KINDS["sd2"].model_flags, "--num_inference_steps", "1", "--num_candidates", str(count), "--upscale", "1"]
        return generate_candidates(parse(GenerateSettings, [*words, "--image_path", folder, "--output_dir", out]))

    few = {image_id: store.read(image_id) for store in [sample(tmp_path / "out", 2)] for image_id in ("a", "b")}
    sample(tmp_path / "out", 5)
    grown, whole = CandidateStore(tmp_path / "out"), sample(tmp_path / "whole", 5)
    assert grown.settings == whole.settings
    for image_id, group in few.items():
        more, fresh = grown.read(image_id), whole.read(image_id)
        assert torch.equal(more.latents[:2], group.latents) and more.seeds == fresh.seeds
        assert torch.allclose(more.latents.float(), fresh.latents.float(), atol=2e-2)
    with pytest.raises(UserError, match="has 5 candidates an image.*--num_candidates 5"):
        sample(tmp_path / "out", 3)


def test_a_manifest_may_name_the_ids_of_its_images(tmp_path):
    for name in ("a", "b"):
        save_noise(tmp_path / f"{name}.png", (8, 8))
    manifest = tmp_path / "images.csv"
    manifest.write_text("file,id\na.png,first__a\nb.png,\n")
    assert [file.id for file in scan(manifest).files] == ["first__a", "b"]
    manifest.write_text("file,id\na.png,../a\nb.png,.b\n")
    assert len(scan(manifest).problems) == 2
