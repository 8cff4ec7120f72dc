"""Run a student as PyTorch and as each of its exports, on the same pixels."""

import argparse
import base64
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from beamclip.commands.export_inputs import classes_of
from beamclip.data.listing import list_labelled
from beamclip.data.shards import Columns, iterate_rows
from beamclip.export import onnx_model, torch_program
from beamclip.export.mlflow_model import png_bytes
from beamclip.export.pictures import fitted_picture, stacked
from beamclip.models.clip import LoadedClip, load_clip, normalise_pixels
from beamclip.models.teacher import copied_image_teacher
from beamclip.openclip import open_clip, timm
from beamclip.prompts.config import PromptConfig

PORT = 5979
_BATCH = 32
_UNTOLD = -1.0


@dataclass(frozen=True)
class Runner:
    """One way to run the model."""

    megabytes: float
    prepare: Callable[[Tensor], object]
    """Turns uint8 pixels [N, 3, S, S] into what `run` takes; not timed."""
    run: Callable[[object], object]
    probabilities: Callable[[object], Tensor] | None = None
    """Turns what `run` returns into probabilities [N, K], _UNTOLD where it tells none; None for features."""
    reference: Tensor | None = None
    """[N, K], to compare with."""

    def timed(self, pixels: Tensor) -> Callable[[], object]:
        """Return a function that runs the model on these pixels."""
        return partial(self.run, self.prepare(pixels))

    def quality(self, pixels: Tensor, labels: Tensor) -> dict[str, float | None]:
        """Top-1 accuracy and the largest difference of a probability, or of nothing."""
        if self.probabilities is None:
            return {"difference": None, "top1": None}
        parts = [self.probabilities(self.run(self.prepare(part))) for part in pixels.split(_BATCH)]
        found = torch.cat(parts)
        top1 = float((found.argmax(dim=1) == labels).double().mean())
        difference = None
        if self.reference is not None:
            difference = float((found - self.reference)[found != _UNTOLD].abs().max())
        return {"difference": difference, "top1": top1}


def labelled_pixels(clip: LoadedClip, address: str, ids: list[str], column: str) -> tuple[Tensor, Tensor]:
    """Decode a labelled data set as a model takes it: uint8 [N, 3, S, S] and class indices [N]."""
    index = {class_id: place for place, class_id in enumerate(ids)}
    images, labels = [], []
    for shard in list_labelled(address):
        for row in iterate_rows(shard, Columns(label=column), range(shard.samples)):
            if not row["problem"] and row["label"] in index:
                images.append(fitted_picture(row["image"], clip))
                labels.append(index[row["label"]])
    return stacked(images, clip.image_size), torch.tensor(labels)


@contextlib.contextmanager
def runners(options: argparse.Namespace, exports: Path) -> Iterator[dict[str, Runner]]:
    """Yield the ways to run the model, by name; MLflow's server runs meanwhile."""
    clip = load_clip(options.model)
    head = classes_of(clip, options.classes, PromptConfig(templates=tuple(options.templates)), ()).head
    labels = json.loads((exports / "onnx" / "labels.json").read_text())
    classes = {label["id"]: place for place, label in enumerate(labels)}
    pixels, _ = labelled_pixels(clip, options.data, list(classes), options.label_column)
    eager = copied_image_teacher(clip)
    with torch.inference_mode():
        reference = torch.cat([head(eager.encode_image(part)) for part in pixels.split(_BATCH)])
    made = {
        "teacher in PyTorch": _pytorch(load_clip(options.teacher), None, None),
        "PyTorch": _pytorch(clip, head, reference),
        "open_clip": _open_clip(exports / "open_clip", clip, head, reference),
        "timm": _timm(exports / "timm", clip),
        "torch.export": _torch(exports / "torch", reference),
        "ONNX": _onnx(exports / "onnx", options.threads, reference),
        "ONNX int8": _onnx(exports / "onnx-int8", options.threads, reference),
    }
    if options.without_serving:
        yield made
        return
    with _server(exports / "mlflow", options.threads):
        yield {**made, "MLflow server": _mlflow(exports / "mlflow", classes, reference)}


def _inference(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(values: Tensor) -> Tensor:
        with torch.inference_mode():
            return function(values)

    return run


def _megabytes(*files: Path) -> float:
    return sum(file.stat().st_size for file in files) / 1e6


def _pytorch(clip: LoadedClip, head: torch.nn.Module | None, reference: Tensor | None) -> Runner:
    network = copied_image_teacher(clip)
    size = sum(each.numel() * each.element_size() for each in network.state_dict().values()) / 1e6

    def prepare(pixels: Tensor) -> Tensor:
        if pixels.shape[-1] == clip.image_size:
            return pixels
        resized = torch.nn.functional.interpolate(pixels.float(), (clip.image_size,) * 2)
        return resized.to(torch.uint8)

    return Runner(size, prepare, _inference(network.encode_image), head and _inference(head), reference)


def _open_clip(folder: Path, clip: LoadedClip, head: torch.nn.Module, reference: Tensor) -> Runner:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    encode = partial(model.eval().encode_image, normalize=True)

    prepare = partial(normalise_pixels, preprocessing=clip.preprocessing)
    file = folder / "open_clip_model.safetensors"
    return Runner(_megabytes(file), prepare, _inference(encode), _inference(head), reference)


def _timm(folder: Path, clip: LoadedClip) -> Runner:
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    prepare = partial(normalise_pixels, preprocessing=clip.preprocessing)
    return Runner(_megabytes(folder / "model.safetensors"), prepare, _inference(network))


def _torch(folder: Path, reference: Tensor) -> Runner:
    file = folder / torch_program.CLASSIFIER
    program = torch.export.load(file).module()
    return Runner(_megabytes(file), lambda pixels: pixels, _inference(program), lambda p: p, reference)


def _onnx(folder: Path, threads: int, reference: Tensor) -> Runner:
    file = folder / onnx_model.CLASSIFIER
    session = onnx_model.cpu_session(file, threads)
    return Runner(
        _megabytes(file),
        lambda pixels: pixels.numpy(),
        lambda pixels: session.run(None, {onnx_model.PIXELS: pixels})[0],
        torch.from_numpy,
        reference,
    )


def _mlflow(folder: Path, classes: dict[str, int], reference: Tensor) -> Runner:
    def prepare(pixels: Tensor) -> bytes:
        rows = [{"image": base64.b64encode(png_bytes(image)).decode()} for image in pixels]
        return json.dumps({"dataframe_records": rows, "params": {"top": 1}}).encode()

    def run(body: bytes) -> list[dict]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}/invocations", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["predictions"]

    def probabilities(rows: list[dict]) -> Tensor:
        found = torch.full((len(rows), len(classes)), _UNTOLD)  # the server names the first class alone
        for place, row in enumerate(rows):
            found[place, classes[row["id"]]] = row["probability"]
        return found

    size = _megabytes(*(file for file in folder.rglob("*") if file.is_file()))
    return Runner(size, prepare, run, probabilities, reference)


@contextlib.contextmanager
def _server(folder: Path, threads: int) -> Iterator[None]:
    command = [Path(sys.executable).with_name("mlflow"), "models", "serve", "-m", folder]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "-p", str(PORT)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": str(threads)}
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_for_server()
        yield
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _wait_for_server() -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ping", timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"mlflow models serve does not answer on port {PORT}")
