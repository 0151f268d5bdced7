"""The nodes for ComfyUI: the example workflow gives the pixels of the Python API, through a stand-in for ComfyUI's executor."""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import torch
from conftest import CONTROLNET, KINDS, MODEL, ROOT, SHIPPED
from PIL import Image

import dp2osr

FOLDER = ROOT / "integrations/comfyui"
PICTURE = ROOT / "preset/test/lr/astronaut_00.png"


@pytest.fixture(scope="module")
def nodes():
    """The module, imported from its folder's path, as ComfyUI imports a folder of `custom_nodes`."""
    spec = importlib.util.spec_from_file_location("custom_nodes_dp2osr", FOLDER / "__init__.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LoadImage:
    """ComfyUI's own node, in what matters here."""

    RETURN_TYPES, FUNCTION = ("IMAGE", "MASK"), "load_image"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": (["astronaut_00.png"],)}}

    def load_image(self, image):
        pixels = np.array(Image.open(PICTURE.parent / image).convert("RGB")).astype(np.float32) / 255.0
        return torch.from_numpy(pixels)[None], torch.zeros(1, 64, 64)


class SaveImage:
    """ComfyUI's own node: it cuts fractions off where it makes bytes."""

    RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "save", True
    saved: list[np.ndarray] = []

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    def save(self, images, filename_prefix):
        self.saved += [np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8) for image in images]
        return ()


def execute(workflow, classes):
    """Run a workflow in API format as ComfyUI does: inputs are checked against INPUT_TYPES, each node runs once, in inference mode."""
    done = {}

    def result(number):
        if number not in done:
            node = classes[workflow[number]["class_type"]]
            offered = node.INPUT_TYPES()
            allowed = {**offered["required"], **offered.get("optional", {})}
            given = workflow[number]["inputs"]
            assert offered["required"].keys() <= given.keys() <= allowed.keys()
            values = {name: value_of(value, *allowed[name]) for name, value in given.items()}
            with torch.inference_mode():
                done[number] = getattr(node(), node.FUNCTION)(**values)
            assert isinstance(done[number], tuple) and len(done[number]) == len(node.RETURN_TYPES)
        return done[number]

    def value_of(value, kind, options=None):
        if isinstance(value, list):
            source, place = value
            assert classes[workflow[source]["class_type"]].RETURN_TYPES[place] == kind
            return result(source)[place]
        if isinstance(kind, list):
            assert value in kind
        elif kind in ("INT", "FLOAT"):
            assert isinstance(value, {"INT": int, "FLOAT": float}[kind]) and options["min"] <= value <= options["max"]
        else:
            assert kind == "STRING" and isinstance(value, str)
        return value

    for number, node in workflow.items():
        if getattr(classes[node["class_type"]], "OUTPUT_NODE", False):
            result(number)


def example():
    text = (FOLDER / "workflow_api.json").read_text(encoding="utf-8")
    assert text.count("/path/to/DP2O-SR") == 2
    return json.loads(text.replace("/path/to/DP2O-SR", str(ROOT)))


def test_the_example_workflow_saves_the_pixels_of_the_python_api(nodes):
    SaveImage.saved = []
    execute(example(), {**nodes.NODE_CLASS_MAPPINGS, "LoadImage": LoadImage, "SaveImage": SaveImage})
    expected = dp2osr.load(SHIPPED["sd2"].model, SHIPPED["sd2"].controlnet).restore(PICTURE, upscale=4, samples=2, seed=0)
    assert len(SaveImage.saved) == 2
    for saved, image in zip(SaveImage.saved, expected, strict=True):
        assert saved.tobytes() == image.tobytes() and saved.shape == (128, 128, 3)


def test_all_inputs_reach_the_api_and_zero_is_the_models_own(nodes):
    asked = []

    class Model:
        def restore(self, pixels, *args, **more):
            asked.append((pixels, args, {name: value for name, value in more.items() if name != "progress"}))
            return [Image.fromarray(pixels)] * args[1]

    image = torch.rand(2, 8, 6, 4)  # with an opacity
    [found] = nodes.Restore().restore(Model(), image, 2.0, 7, 1.5, 3, 2, "a cat", "x")
    bytes_of = np.rint(image[..., :3].numpy() * 255).astype(np.uint8)
    assert found.shape == (4, 8, 6, 3) and found.dtype == torch.float32
    assert np.array_equal((found * 255).round().byte().numpy(), bytes_of[[0, 0, 1, 1]])
    more = {"prompt": "a cat", "num_inference_steps": 7, "guidance_scale": 1.5}
    for number, (pixels, args, given) in enumerate(asked):
        assert np.array_equal(pixels, bytes_of[number]) and args == (2.0, 2, 3)
        assert given == {"image_id": f"x_00{number}", **more}
    nodes.Restore().restore(Model(), image[:1] * 3 - 1, 2.0, 0, 0.0, 3, 1, "")  # out of range: cut
    assert asked[-1][2] == {"image_id": "image", "prompt": None, "num_inference_steps": None, "guidance_scale": None}


def test_what_a_node_offers_is_what_it_takes_with_ranges_and_tooltips(nodes):
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        offered = node.INPUT_TYPES()
        inputs = {**offered["required"], **offered["optional"]}
        code = getattr(node, node.FUNCTION).__code__
        assert set(code.co_varnames[1 : code.co_argcount]) == inputs.keys()
        for kind, options in inputs.values():
            assert options["tooltip"]
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"]
    taken = nodes.Restore.INPUT_TYPES()["required"]["seed"][1]["max"]
    assert int(float(taken)) == taken  # a browser's numbers hold it


def test_a_mistake_is_the_apis_line(nodes):
    with pytest.raises(dp2osr.UserError, match="no_such_folder"):
        nodes.LoadModel().load("no_such_folder", CONTROLNET, 1.0)
    with pytest.raises(dp2osr.UserError, match="policy_strength 0.5: .* name the ControlNet that it was trained from"):
        nodes.LoadModel().load(KINDS["sd2"].model, CONTROLNET, 0.5)


def test_comfyuis_bar_moves_over_all_images_and_its_cancel_ends_the_work(nodes, monkeypatch):
    moved, cancelled = [], []

    class ProgressBar:
        def __init__(self, total):
            pass

        def update_absolute(self, value, total):
            moved.append((value, total))

    def throw():
        if cancelled:
            raise InterruptedError

    modules = {"comfy": {}, "comfy.utils": {"ProgressBar": ProgressBar}, "comfy.model_management": {}}
    modules["comfy.model_management"]["throw_exception_if_processing_interrupted"] = throw
    assert nodes.progress_of(0, 1) is None
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    model = dp2osr.load(MODEL, CONTROLNET)
    images = torch.rand(2, 8, 8, 3)
    nodes.Restore().restore(model, images, 2.0, 2, 1.0, 0, 1, "")
    assert moved == [(1, 4), (2, 4), (3, 4), (4, 4)]
    cancelled.append(True)
    with pytest.raises(InterruptedError):
        nodes.Restore().restore(model, images, 2.0, 2, 1.0, 0, 1, "")
