"""What `import beamclip` brings, and what it leaves for later."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

import beamclip

PACKAGES = ("beamclip", "beamclip.losses", "beamclip.models", "beamclip.data")


def test_importing_beamclip_and_its_rooms_imports_no_heavy_library():
    script = (
        "import json, sys, beamclip; beamclip.losses, beamclip.models, beamclip.data, beamclip.ingest\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "mlflow", "numpy", "tyro", "PIL"} & set(json.loads(ended.stdout))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_that_a_package_offers_is_there_and_typed_under_the_same_name(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    choice = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname: node.module for node in choice.body for alias in node.names}  # type: ignore[attr-defined]
    offered = ast.literal_eval(ast.unparse(choice.orelse[0].value.args[1]).replace("MODULE", "''"))  # type: ignore[attr-defined]
    assert typed.keys() == offered.keys()
    for name, home in typed.items():
        found = getattr(module, name)
        assert name in dir(module)
        if offered[name]:
            assert home == f"{package}.{offered[name]}"
            assert found is getattr(importlib.import_module(home), name)


def test_a_name_that_is_not_there_is_refused_as_by_any_module():
    with pytest.raises(AttributeError, match="module 'beamclip' has no attribute 'distil'"):
        beamclip.distil  # noqa: B018


@pytest.mark.parametrize("command", ["export", "ingest", "sweep"])
def test_a_room_with_the_name_of_a_command_is_that_command_and_still_a_package(command):
    room = importlib.import_module(f"beamclip.{command}")
    assert getattr(beamclip, command) is room
    assert room.__path__
    with pytest.raises(beamclip.InputError, match="quux: no such option"):
        room(quux=1)
    assert cloudpickle.loads(cloudpickle.dumps(room)) is room
