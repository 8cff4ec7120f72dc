"""The page of a report, made from folders as commands leave them, and read by a strict parser."""

import json
import re
from pathlib import Path

import pytest
from html_pages import PageReader
from run_folders import METRICS, counted, write_everything, write_run

from beamclip.commands.options import DistillConfig
from beamclip.commands.report import write_reports
from beamclip.errors import InputError
from beamclip.report.run_files import NothingToShowError
from beamclip.summary import Summary, write_summary

HOSTILE = (
    "<script>alert(1)</script>",
    'a "quoted" & <b>bold</b> name',
    "it's {{ 7 * 7 }}",
    "]]> --> </style>",
    "' onerror='alert(1)",
    "漢字 🦩",
)
TITLES = ["Scores", "Images", "Worst classes", "Retrieval", "Similarity of images and text", "Contexts"]


def read_page(folders: list[Path], out: Path) -> tuple[str, PageReader]:
    text = write_reports(folders, out).read_text(encoding="utf-8")
    return text, PageReader(text)


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


@pytest.mark.slow
def test_texts_of_users_appear_as_text_in_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a <run> & more", notes=[HOSTILE[0]], counts=counted(10, **{HOSTILE[1]: 3}))
    write_everything(run, HOSTILE)
    text, page = read_page([run], run / "report.html")
    assert headings(text)[:6] == TITLES
    for name in HOSTILE:
        assert page.text.count(name) >= 3
    assert "a <run> & more" in page.text
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "b", "link", "iframe", "object", "base"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "style", "srcset", "clip-path"):
            assert "//" not in re.sub(
                r"^data:image/(webp|png);base64,[\w+/=]*$", "", attributes.get(name, "")
            )
        if tag == "img":
            assert attributes["src"].startswith("data:image/")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert len(text.encode()) < 5e6


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics={}, steps=3)
    text, _ = read_page([run], run / "report.html")
    assert headings(text) == ["Curves", "Speed and cost"]
    bare = write_run(tmp_path / "bare", steps=0)
    assert headings(read_page([bare], bare / "report.html")[0]) == ["Scores", "Speed and cost"]


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a" / "run", config=DistillConfig(seed=1))
    second = write_run(tmp_path / "b" / "run", config=DistillConfig(seed=2), metrics={"zeroshot_top1": 0.25})
    text, page = read_page([first, second], tmp_path / "both.html")
    assert headings(text) == ["Scores", "Curves", "Speed and cost", "Options that differ"]
    for label in ("a/run", "b/run"):
        assert label in page.text
    table = text[text.index("Options that differ</h2>") :]
    assert re.findall(r"<th><code>(.*?)</code></th>", table) == ["seed"]
    assert re.findall(r"<td><code>(.*?)</code></td>", table) == ["1", "2"]


def test_options_are_those_that_are_not_the_defaults(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", config=DistillConfig(seed=7, out=Path("there"), teacher="open_clip:X/y")
    )
    text, _ = read_page([run], run / "report.html")
    table = text[text.index("Options that differ from the defaults") :]
    assert re.findall(r"<th><code>(.*?)</code></th>", table) == ["teacher", "seed"]


def test_the_lineage_leads_back_to_the_list_of_urls(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "config.yaml").write_text(f"urls: {tmp_path / 'list.parquet'}\n")
    counts = counted(20, **{"HTTP 404": 4})
    write_summary(shards, Summary("ingest", "finished", 5.0, 16, counts=counts))
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.yaml").write_text(f"data: [{shards}]\nmodel: tiny-vit\nobjective: clip\n")
    write_summary(teacher, Summary("pretrain", "finished", 5.0, metrics={"zeroshot_top1": 0.5}))
    config = DistillConfig(data=(str(shards),), teacher=str(teacher))
    run = write_run(tmp_path / "run", config=config)
    text, page = read_page([run], run / "report.html")
    way = page.text[page.text.index("as far as the folders could be read") : page.text.index("left out")]
    order = [
        "Student, by distill",
        "Shards, by ingest",
        "URL list",
        "Model, by pretrain",
        "Shards, by ingest",
        "URL list",
    ]
    assert re.findall("|".join(dict.fromkeys(order)), way) == order
    assert f"{tmp_path / 'list.parquet'}" in way
    assert "zero-shot top-1 50.0 %" in way
    samples = text[text.index("<h2>Samples") :]
    assert samples.count("4 HTTP 404") == 1
    assert '<td class="number">20</td><td class="number">16</td>' in samples


def test_a_lineage_leads_through_the_average_of_two_models_and_folders_of_models(tmp_path: Path) -> None:
    for name, options in (
        ("tuned", "init: open_clip:ViT-B-16/openai\n"),
        ("between", f"model: open_clip:ViT-B-16/openai\ntowards: {tmp_path / 'tuned' / 'model'}\n"),
    ):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(options)
        command = "pretrain" if name == "tuned" else "interpolate"
        write_summary(tmp_path / name, Summary(command, "finished", 5.0))
    config = DistillConfig(teacher=str(tmp_path / "between" / "model"))
    run = write_run(tmp_path / "run", config=config)
    _, page = read_page([run], run / "report.html")
    order = [
        "Student, by distill",
        "Average of two models, by interpolate",
        "open_clip:ViT-B-16/openai",
        "Model, by pretrain",
        "Initial weights",
    ]
    way = page.text[page.text.index("as far as the folders could be read") :]
    assert re.findall("|".join(order), way)[: len(order)] == order


def test_a_lineage_that_names_itself_ends(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config=DistillConfig(teacher=str(tmp_path / "run")))
    _, page = read_page([run], run / "report.html")
    assert page.text.count("Student, by distill") == 2


def test_a_run_that_goes_on_shows_its_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "summary.json").unlink()
    text, page = read_page([run], run / "report.html")
    assert "Not finished" in page.text
    assert headings(text) == ["Curves", "Speed and cost"]


def test_a_damaged_file_is_named_and_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_everything(run, ["a", "b", "c"])
    (run / "plots" / "predictions.json").write_text('{"cards": 1}')
    (run / "scores.parquet").write_bytes(b"no parquet")
    (run / "plots" / "contexts.json").write_text(
        '{"contexts": "2", "pairs": [], "bare": [], "with_contexts": []}'
    )
    (run / "summary.json").write_text("{}")
    text, page = read_page([run], run / "report.html")
    assert not {"Images", "Worst classes"} & set(headings(text))
    assert "predictions.json: is not a sheet" in page.text
    assert "scores.parquet: cannot be read" in page.text
    assert "contexts.json: is not a file of the effect of contexts" in page.text
    assert "summary.json: not a summary" in page.text


def test_figures_that_are_not_numbers_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics={**METRICS, "probe_top1": float("nan")})
    text, page = read_page([run], run / "report.html")
    assert "Linear probe" not in text
    assert "metrics.probe_top1 was nan" in page.text


def test_a_folder_without_a_run_or_with_nothing_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run there \(no such folder"):
        write_reports([tmp_path / "none"], tmp_path / "out.html")
    with pytest.raises(InputError, match=r"config\.yaml is missing"):
        write_reports([tmp_path], tmp_path / "out.html")
    run = write_run(tmp_path / "run", metrics={}, steps=0)
    with pytest.raises(NothingToShowError, match="nothing to show yet"):
        write_reports([run], tmp_path / "out.html")
    shards = write_run(tmp_path / "shards", command="ingest")
    with pytest.raises(InputError, match="beamclip ingest, which has no report"):
        write_reports([shards], tmp_path / "out.html")
    with pytest.raises(InputError, match="is a folder"):
        write_reports([run], tmp_path)
    assert not (tmp_path / "out.html").exists()


def test_passwords_in_addresses_do_not_reach_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", notes=["s3: https://user:secret@host/x failed"])
    text, _ = read_page([run], run / "report.html")
    assert "secret" not in text


def test_summaries_say_when_they_were_written_and_old_ones_do_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "UTC" in read_page([run], run / "report.html")[1].text
    content = json.loads((run / "summary.json").read_text())
    del content["ended_at"], content["intervals"]
    (run / "summary.json").write_text(json.dumps(content))
    assert "UTC" in read_page([run], run / "report.html")[1].text
