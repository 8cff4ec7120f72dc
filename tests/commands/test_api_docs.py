"""The blocks of docs/api.md run as they stand, in order, and leave what the page says."""

import re
from pathlib import Path

import pytest
import torch

import beamclip
from beamclip.data.listing import list_shards
from beamclip.data.shards import Columns, iterate_rows
from beamclip.summary import read_summary

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture
def folder(corpus, teacher, tmp_path, monkeypatch) -> Path:
    """A folder as the page describes it."""
    (tmp_path / "shards").symlink_to(corpus.train)
    (tmp_path / "labelled").symlink_to(corpus.test)
    (tmp_path / "classes.yaml").symlink_to(corpus.classes)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "teacher").symlink_to(teacher[0])
    (tmp_path / "pictures").mkdir()
    for row in iterate_rows(list_shards(str(corpus.test))[0], Columns(), range(3)):
        (tmp_path / "pictures" / f"{row['key']}.png").write_bytes(row["image"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_blocks() -> list[tuple[int, str]]:
    """Line and text of each block of Python."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(1)), block[1]) for block in blocks]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_blocks_of_the_page_run_in_order(folder, capsys):
    before = torch.get_num_threads()
    # Functions of a module that nobody can import are pickled with their code, like those of a notebook.
    names = {"__name__": "api_page"}
    for line, block in python_blocks():
        exec(compile("\n" * line + block, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "beamclip.distill: tau_techer: no such option. Did you mean tau_teacher?" in said
    assert names["images"].shape == (3, 32)
    assert names["similarity"].shape == (3, 2)
    assert read_summary(folder / "runs" / "student").metrics == {**names["summary"].metrics}
    assert len(names["further"]) == 6  # 200 images an epoch, batches of 32: 19 steps, of which 13 are done
    assert beamclip.load("runs/own/model").embed_dim == 32
    assert torch.get_num_threads() == before
