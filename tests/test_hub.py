"""Models and data on a hub, against a stand-in of it: what is pushed, what a card says, and what a hub's refusal becomes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, one_kind
from hub_server import Repository, environment_of, running_hub, talk_to
from PIL import Image
from programs import run_program
from trainings import copy_validation_images, words

from dp2osr.backbones import load_backbone
from dp2osr.backbones.locate import _list_hub
from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.hub.cards import CARD, is_edited, without_places, write_card
from dp2osr.hub.settings import PushSettings, check_hub_flags
from dp2osr.publishing import push_folder
from dp2osr.training import trainer
from dp2osr.training.model_card import TrainedControlNet, model_card


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub that this process talks to, as the user `me`."""
    _list_hub.cache_clear()
    with running_hub() as running:
        talk_to(running, monkeypatch, tmp_path / "cache", "write-token")
        yield running
    _list_hub.cache_clear()


@pytest.fixture
def policy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "policy")


def front_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def push(*given):
    push_folder(parse(PushSettings, list(map(str, given))))


# -- cards --


def test_a_training_leaves_a_card_whose_lines_run_with_plain_diffusers(kind, trained, tmp_path, monkeypatch):
    """The image is the one that this project's own loop makes from the same noise; FLUX's control is drawn from the posterior there."""
    card = (trained / CARD).read_text(encoding="utf-8")
    assert front_of(card)["library_name"] == "diffusers" and "controlnet" in front_of(card)["tags"] and "base_model" not in front_of(card)
    code = re.search(r"```python\n(.*?)```", model_card(TrainedControlNet(trained), "me/policy", is_pushed=True), re.DOTALL)[1]
    assert "dtype = torch.float32" in code
    shutil.copy(sorted((ROOT / "preset/test/lr").glob("*.png"))[0], tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)
    for name, path in (("me/policy", trained), (kind.model, kind.model)):
        code = code.replace(json.dumps(without_places(name)), json.dumps(str(path)))
    if kind.name == "flux":
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    exec(code, {})
    ours = by_our_loop(kind, trained, Image.open("small.png").convert("RGB"))
    assert np.abs(np.asarray(Image.open("large.png"), dtype=int) - ours).max() <= 2


def by_our_loop(kind, folder, small):
    from dp2osr.data.images import tensor_to_pil
    from dp2osr.sampling.defaults import LoopSettings
    from dp2osr.sampling.resize import control_image

    backbone = load_backbone(kind.model)
    control, *_ = control_image(small, 4, backbone.native_size, backbone.size_multiple)
    settings = LoopSettings(2, 1.0, backbone.default_scheduler)
    shape = (backbone.latent_channels, *(side // backbone.vae_scale for side in control.shape[2:]))
    made = backbone.sample(
        backbone.load_controlnet(folder), backbone.prepare_control(control), backbone.encode_prompts([""]), None,
        [torch.Generator().manual_seed(0)], shape, settings,
    )  # fmt: skip
    return np.asarray(tensor_to_pil(backbone.decode_latents(made)[0]), dtype=int)


@one_kind
def test_a_card_says_what_the_records_say_and_nothing_else(kind, policy):
    card = (policy / CARD).read_text(encoding="utf-8")
    settings = json.loads((policy / "settings.json").read_text())
    last = json.loads((policy / "train_log.jsonl").read_text().splitlines()[-1])
    for words_ in (
        settings["start_hash"],
        settings["candidates"]["model_hash"],
        f"{last['loss']:.3f}",
        "gmsd",
        "piqe",
        "6 samples of each of 3",
    ):
        assert words_ in card, words_
    assert "held-out" not in card and "## Evaluation" not in card and "## Pictures" not in card  # there was none of these
    assert "license" not in front_of(card)


@one_kind
def test_a_card_that_a_user_has_edited_is_kept(kind, policy, capsys):
    path = policy / CARD
    assert not is_edited(path)
    card = path.read_text(encoding="utf-8")
    path.write_text(card.replace("---\n", "---\nlicense: mit\n", 1), encoding="utf-8")
    assert is_edited(path) and not write_card(policy, card) and "license: mit" in path.read_text()
    assert "is kept" in capsys.readouterr().out
    path.write_text("mine", encoding="utf-8")
    assert not write_card(policy, card) and path.read_text() == "mine"


def test_what_others_see_names_no_place_of_this_machine():
    seen = {"a": "/home/ann/models/sd2/", "b": ["~/x/y", "me/id", "preset/models/tiny-sd2", 3], "c": {"d": "../up/there"}, "e": r"C:\u\m"}
    assert without_places(seen) == {"a": "sd2", "b": ["y", "me/id", "preset/models/tiny-sd2", 3], "c": {"d": "there"}, "e": "m"}


# -- pushing --


@one_kind
def test_a_training_pushes_what_it_leaves_and_its_token_is_nowhere(kind, labelled, server, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    flags = copy_validation_images(tmp_path, 1)
    given = words(kind, labelled, tmp_path / "run", *flags, "--validation_steps", 6, "--push_to_hub", "--hub_token", "write-token")
    trainer.train_preferences(kind.training_settings(list(map(str, given[1:]))))
    pushed = server.repositories["models/me/run"]
    assert set(pushed.files) == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "sampling_settings.json", "settings.json", "train_log.jsonl",
        "versions.json", "samples/step-000006.png",
    }  # fmt: skip
    card = pushed.files["README.md"].decode()
    assert (
        '"me/run"' in card and "![Held-out images: LR, base, policy, GT](samples/step-000006.png)" in card and "held-out G, step 6" in card
    )
    for content in [*pushed.files.values(), *(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())]:
        assert b"write-token" not in content
    for name in ("settings.json", "README.md"):
        assert str(tmp_path).encode() not in pushed.files[name] and str(ROOT).encode() not in pushed.files[name]


def test_a_pushed_policy_is_loaded_by_its_id_as_from_its_folder(kind, policy, server, monkeypatch):
    from dp2osr.provenance import weights_hash

    push(policy, "--hub_model_id", "me/policy", "--hub_private_repo")
    assert server.repositories["models/me/policy"].private
    backbone = load_backbone(kind.model)
    loaded, here = backbone.load_controlnet("me/policy"), backbone.load_controlnet(policy)
    assert all(torch.equal(tensor, here.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert weights_hash("me/policy") == weights_hash(policy)
    monkeypatch.delenv("HF_TOKEN")
    _list_hub.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(policy.parent / "empty"))
    with pytest.raises(UserError, match="^me/policy: .*none of that id, or a private one: .*log in with `hf auth login` or set HF_TOKEN"):
        backbone.load_controlnet("me/policy")


@one_kind
@pytest.mark.parametrize(
    ("token", "given", "told"),
    [
        (None, [], "there is no token; log in with `hf auth login`"),
        ("stolen", [], "the hub refuses the token"),
        ("read-token", [], "the token of me may only read"),
        ("write-token", ["--hub_model_id", "teams/policy"], "--hub_model_id teams/policy: the token may not do that"),
        ("write-token", ["--hub_model_id", "a/b/c"], "--hub_model_id a/b/c: is NAME or OWNER/NAME"),
        ("write-token", ["--hub_model_id", "me/public", "--hub_private_repo"], "me/public is there and public"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_before_the_first_step(kind, labelled, server, tmp_path, monkeypatch, token, given, told):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    server.repositories["models/me/public"] = Repository()
    monkeypatch.setattr(trainer.PreferenceTrainer, "train", lambda self: pytest.fail("it trains"))
    settings = kind.training_settings(words(kind, labelled, tmp_path / "run", "--push_to_hub", *given)[1:])
    with pytest.raises(UserError) as error:
        trainer.train_preferences(settings)
    assert told in str(error.value) and "\n" not in str(error.value) and (not token or token not in str(error.value))


@one_kind
def test_a_hub_that_cannot_be_reached_is_one_line_and_exit_code_2(kind, policy, server, monkeypatch, tmp_path):
    with running_hub() as gone:
        pass
    environment = environment_of(gone, tmp_path / "home", "write-token")
    done = run_program("scripts/push_to_hub.py", policy, env=environment, check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: pushing to a hub: {gone.address} cannot be reached")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it, or do not push"):
        push(policy)


@one_kind
def test_a_push_that_fails_at_the_end_leaves_the_policy_and_says_how_to_push_it(kind, policy, server):
    before = {path: path.read_bytes() for path in policy.rglob("*") if path.is_file()}
    server.refused = {"/commit/": 403}
    with pytest.raises(UserError) as error:
        push(policy, "--hub_model_id", "mine")
    later = f"python scripts/push_to_hub.py {policy} --hub_model_id me/mine"
    assert str(error.value) == f"{policy}: is whole on disk, and was not pushed to me/mine: the token may not do that; take one that may write " f"to it, or another id. Later: {later}"  # fmt: skip
    after = {path: path.read_bytes() for path in policy.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path.name != CARD} == {
        path: content for path, content in before.items() if path.name != CARD
    }
    server.refused = {}
    push(policy, "--hub_model_id", "me/mine")
    assert "config.json" in server.repositories["models/me/mine"].files


@one_kind
def test_flags_of_the_hub_that_would_do_nothing_are_refused(kind, labelled, tmp_path):
    from dp2osr.training.publication import Publication

    settings = kind.training_settings(words(kind, labelled, tmp_path / "run", "--hub_model_id", "x")[1:])
    with pytest.raises(UserError, match="--hub_model_id: would do nothing without --push_to_hub"):
        check_hub_flags(settings, {"hub_model_id"})
    flags = ["--push_to_hub", "--hub_token", "secret", "--report_to", "wandb"]
    settings = kind.training_settings(words(kind, labelled, tmp_path / "run", *flags)[1:])
    assert "secret" not in repr(settings)
    with pytest.raises(UserError, match="wandb keeps the command line"):
        Publication(settings)


# -- G of an evaluation, later --


@one_kind
def test_the_g_of_an_evaluation_enters_the_card_if_it_is_of_these_weights(kind, policy, tmp_path, capsys):
    from dp2osr.provenance import weights_hash

    (tmp_path / "report").mkdir()

    def report(of):
        about = {
            "base": "base", "num_photographs": 7, "num_candidates": 8, "comparisons": {"tuned": {"G": {"value": 1.234, "low": 1, "high": 2}}},
            "settings": {"methods": {"base": {"controlnet_hash": "x"}, "tuned": {"controlnet_hash": of}}},
        }  # fmt: skip
        (tmp_path / "report/summary.json").write_text(json.dumps(about))
        push(policy, "--report", tmp_path / "report", "--dry_run")

    with pytest.raises(UserError, match="compares no samples of the weights in"):
        report("others")
    report(weights_hash(policy))
    assert "G = 1.23, 95 % interval 1.00 to 2.00 against `base`, over 7 photographs × 8 seeds." in (policy / CARD).read_text(
        encoding="utf-8"
    )
    assert "nothing is uploaded; 7 files would go to a model repository" in capsys.readouterr().out
    (policy / CARD).write_text("mine")
    with pytest.raises(UserError, match="--report: .*is kept; remove it, or write G into it"):
        report(weights_hash(policy))


# -- candidates --


@one_kind
def test_a_pushed_candidate_folder_trains_as_the_one_here(kind, labelled, server, tmp_path, monkeypatch):
    from huggingface_hub import snapshot_download

    from dp2osr.preference.groups import PreferenceGroups
    from dp2osr.rewards.config import load_reward_config
    from dp2osr.rewards.table import read_scores
    from dp2osr.sampling.store import CandidateStore

    here = shutil.copytree(labelled, tmp_path / "candidates")
    push(here, "--hub_model_id", "me/candidates")
    card = server.repositories["datasets/me/candidates"].files["README.md"].decode()
    store = CandidateStore(here)
    assert "3 LR images (groups), 6 candidates each, 18 in all" in card and store.settings["controlnet_hash"] in card
    assert all(f"| {licence} |" in card for licence in licences_of_csv(store.ids()))
    there = snapshot_download("me/candidates", repo_type="dataset", local_dir=tmp_path / "theirs")
    config = load_reward_config(here / "reward.yaml")
    groups = [
        PreferenceGroups(CandidateStore(folder), read_scores(f"{folder}/scores.parquet", config), config, None, 2).fingerprint()
        for folder in (here, there)
    ]
    assert groups[0] == groups[1]
    for path in (here / "groups").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "theirs" / path.relative_to(here)).read_bytes()
    assert str(ROOT) not in (tmp_path / "theirs/settings.json").read_text()


def licences_of_csv(image_ids):
    import csv

    rows = {row["stem"]: row["licence"] for row in csv.DictReader((ROOT / "configs/photographs.csv").open(encoding="utf-8"))}
    found = {rows[image_id[:-3]] for image_id in image_ids}
    assert found
    return found


# -- reading from a hub --


@one_kind
def test_a_gated_model_a_lost_one_and_another_revision_are_one_clear_line(kind, sd2, server):
    files = {"config.json": b"{}", "model_index.json": b"{}"}
    server.repositories |= {"models/big/gated": Repository(gated=True, files=files), "models/big/open": Repository(files=files)}
    for path, told in (
        ("big/gated", "it is gated: ask for access on its page"),
        ("big/none", "the hub has none of that id, or a private one"),
    ):
        with pytest.raises(UserError, match=f"^{path}: .*{told}"):
            sd2.load_controlnet(path)
    from dp2osr.backbones.loading import ModelSource

    with pytest.raises(UserError, match=r"big/open \(revision v9\): .*the hub has no such revision"):
        load_backbone(ModelSource("big/open", revision="v9"))


@one_kind
def test_a_base_and_a_controlnet_by_id_restore_as_their_folders_do(kind, server):
    import dp2osr

    for name, folder in (("base", kind.model), ("control", kind.controlnet)):
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
        server.repositories[f"models/big/{name}"] = Repository(files=files)
    image = Image.effect_noise((24, 24), 60).convert("RGB")
    by_id = dp2osr.load("big/base", controlnet="big/control", device="cpu").restore(image, num_inference_steps=1)
    here = dp2osr.load(kind.model, controlnet=kind.controlnet, device="cpu").restore(image, num_inference_steps=1)
    assert by_id[0].tobytes() == here[0].tobytes()


@one_kind
def test_a_pushed_policy_knows_its_base_which_may_be_on_the_hub_too(kind, policy, server):
    import dp2osr

    about = json.loads((policy / "settings.json").read_text())
    (policy / "settings.json").write_text(json.dumps({**about, "pretrained_model_name_or_path": "big/base"}))
    files = {path.relative_to(kind.model).as_posix(): path.read_bytes() for path in sorted(Path(kind.model).rglob("*")) if path.is_file()}
    server.repositories["models/big/base"] = Repository(files={**files, "README.md": b"---\nlicense: openrail++\n---\nA base."})
    push(policy, "--hub_model_id", "me/policy")
    card = server.repositories["models/me/policy"].files["README.md"].decode()
    assert front_of(card)["base_model"] == "big/base" and "`big/base` is under openrail++, as its card says." in card
    assert dp2osr.load("me/policy", device="cpu").kind == "sd2"


# -- baselines, and the program itself --


def test_a_baseline_leaves_its_card_beside_the_controlnet_and_a_program_pushes_it(server, tmp_path):
    from baselines import train_controlnet

    output, image = tmp_path / "baseline", sorted((ROOT / "preset/test/lr").glob("*.png"))[0]
    shown = ["--validation_image", str(image), "--num_validation_images", "1", "--num_inference_steps", "1"]
    train_controlnet("--output_dir", str(output), "--max_train_steps", "2", *shown)
    card = (output / "controlnet" / CARD).read_text(encoding="utf-8")
    [picture] = (output / "samples").glob("*.png")
    assert (
        "trained on degraded photographs" in card
        and "`model`, which was trained along with it" in card
        and f"(../samples/{picture.name})" in card
    )
    environment = environment_of(server, tmp_path / "home", "write-token")
    done = run_program("scripts/push_to_hub.py", output, "--hub_model_id", "c-mine", env=environment)
    assert done.stdout.splitlines()[-1] == f"pushed: {server.address}/me/c-mine"
    files = server.repositories["models/me/c-mine"].files
    assert f"(samples/{picture.name})" in files["README.md"].decode() and files[f"samples/{picture.name}"] == picture.read_bytes()
    assert files["diffusion_pytorch_model.safetensors"] == (output / "controlnet/diffusion_pytorch_model.safetensors").read_bytes()
