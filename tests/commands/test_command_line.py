"""Flags, YAML and messages, through the programs of the public commands."""

import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

import beamclip
from beamclip.commands.command_line import parse, run_command
from beamclip.commands.main import COMMANDS, main
from beamclip.commands.options import DistillConfig, EvaluateConfig, PretrainConfig, ScoringConfig
from beamclip.config import parameters, plain, read_config, write_config
from beamclip.errors import InputError
from beamclip.ingest.config import IngestConfig
from beamclip.training.config import CheckpointConfig

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """What a program left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Ended]:
    """run(pipeline, *flags): a program in this process, which has its imports already."""

    def run(pipeline: str, *flags: str) -> Ended:
        program = str(ROOT / "pipelines" / f"{pipeline}.py")
        monkeypatch.setattr(sys, "argv", [program, *flags])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(program, run_name="__main__")
        return Ended(ended.value.code, *capsys.readouterr())

    return run


def test_a_flag_wins_over_yaml_and_yaml_over_the_default(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"seed": 3, "csm": {"tau_teacher": 0.04, "tau_student": 0.1}}))
    config = parse(DistillConfig, ["--config", str(path), "--tau-student", "0.07"], "")
    assert (config.seed, config.csm.tau_teacher, config.csm.tau_student) == (3, 0.04, 0.07)
    assert config.stream.batch_size == DistillConfig().stream.batch_size


@pytest.mark.parametrize(
    "config", [DistillConfig(seed=7, data=("s3://b/x",)), PretrainConfig(out=Path("runs/a"))]
)
def test_a_written_config_reads_back_as_it_was(config, tmp_path):
    write_config(config, tmp_path / "config.yaml")
    assert read_config(type(config), tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"csm": {"tau_techer": 0.1}}, "csm.tau_techer: no such option. Did you mean tau_teacher?"),
        ({"quux": 1}, "quux: no such option."),
        ({"csm": {"tau_teacher": "warm"}}, "csm.tau_teacher: 'warm' does not fit."),
        ({"optim": {"steps": 1.5}}, "optim.steps: '1.5' does not fit."),
        ({"prompts": {"anchor_reduce": "median"}}, "prompts.anchor_reduce: 'median' does not fit."),
        ({"csm": 3}, "csm: '3' does not fit. It is a section: give a mapping of its options."),
        ({"csm": {"lr": 0.1}}, "csm.lr: no such option. lr belongs in the section optim."),
        ({"csm": {"seed": 1}}, "csm.seed: no such option. seed belongs outside of all sections."),
        ({"optm": {"lr": 0.1}}, "optm: no such option. Did you mean optim?"),
        ({"lr": 0.1, "optim": {"lr": 0.1}}, "given twice, as lr and as optim.lr. Leave one out."),
        ({"tau-student": 1, "tau_student": 1}, "given twice, as tau_student and as tau_student."),
        ({"resume": "runs/a"}, "resume: cannot be set in a file."),
        ({"seed": "9" * 5000}, "seed: '99999"),
        (
            {"workers": {"num_workers": -1}},
            "workers: num_workers is -1: give 0 or more, or a range such as 2..8.",
        ),
    ],
)
def test_yaml_with_a_wrong_key_or_type_is_refused_with_its_path(content, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as caught:
        read_config(DistillConfig, path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert len(str(caught.value)) < 400


def test_values_and_names_in_yaml_are_read_as_on_the_command_line(tmp_path):
    sectioned = {"student": {"student": "resnet18"}, "optim": {"lr": 0.001}, "csm": {"tau_student": 0.07}}
    flat = "student: resnet18\nlr: 1e-3\ntau-student: 7e-2\nuse_gpu: yes\nteacher: 2026-02-30\nclasses: ~\n"
    (tmp_path / "flat.yaml").write_text(flat)
    given = {**sectioned, "workers": {"use_gpu": True}, "teacher": "2026-02-30"}
    (tmp_path / "sectioned.yaml").write_text(yaml.safe_dump(given))
    read = [read_config(DistillConfig, tmp_path / name) for name in ("flat.yaml", "sectioned.yaml")]
    assert read[0] == read[1]
    assert (read[0].optim.lr, read[0].csm.tau_student, read[0].workers.use_gpu) == (0.001, 0.07, True)
    assert (read[0].teacher, read[0].classes) == ("2026-02-30", None)


@pytest.mark.parametrize("given", [4, "2..8"])
def test_a_number_or_range_of_workers_is_the_same_in_files_flags_and_what_is_recorded(given, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"num_workers: {given}\n")
    from_file, from_flag = (
        read_config(DistillConfig, path),
        parse(DistillConfig, ["--num-workers", str(given)], ""),
    )
    assert from_file == from_flag
    assert parameters(from_flag)["num_workers"] == given
    write_config(from_flag, path)
    assert read_config(DistillConfig, path) == from_flag


def test_paths_hold_in_any_folder_and_other_addresses_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("shards", "resnet18", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    monkeypatch.chdir(tmp_path / "work")
    given = DistillConfig(
        data=("../shards",),
        teacher="open_clip:ViT-B-32/openai",
        more_teachers=("../resnet18", "gone"),
        classes=Path("../classes.txt"),
        scoring=ScoringConfig(eval_data="s3://bucket/x"),
    )
    write_config(given, tmp_path / "config.yaml")
    monkeypatch.chdir("/")
    assert read_config(DistillConfig, tmp_path / "config.yaml") == replace(
        given,
        data=(str(tmp_path / "shards"),),
        more_teachers=(str(tmp_path / "resnet18"), "gone"),
        classes=tmp_path / "classes.txt",
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "nan"], "lr is nan, not a finite number: give a number above 0"),
        (["--tau-student", "inf"], "tau_student is inf, not a finite number: give a number above 0"),
        (["--seed", "9" * 4000], f"--seed {'9' * 80}: is more than 64 bits hold"),
    ],
)
def test_a_number_that_nobody_can_mean_is_refused(flags, message):
    with pytest.raises(InputError, match=f"^{message}"):
        parse(DistillConfig, flags, "")


@pytest.mark.parametrize("option", ["teacher", "data", "classes", "init-checkpoint"])
def test_a_path_that_no_file_can_have_is_refused(option):
    with pytest.raises(InputError, match=f"^--{option} xxx.*: is too long for the name of a file"):
        parse(DistillConfig, [f"--{option}", "x" * 5000], "")


SECRET = "https://user:hunter2@host/x?X-Amz-Signature=hunter2"


def test_what_lets_a_reader_in_is_not_written_down_and_is_asked_for_again(tmp_path, capsys):
    config = DistillConfig(
        data=(SECRET,), checkpoint=CheckpointConfig(checkpoints="s3://KEY:hunter2@bucket/run")
    )
    write_config(config, tmp_path / "config.yaml")
    assert "hunter2" not in (tmp_path / "config.yaml").read_text()
    assert "hunter2" not in str(parameters(config))
    with pytest.raises(InputError, match=r"^--data https://\*\*\*@host/x\?\*\*\*: .* Give the whole address"):
        parse(DistillConfig, ["--resume", str(tmp_path)], "")
    with pytest.raises(InputError, match="--checkpoints"):
        parse(DistillConfig, ["--resume", str(tmp_path), "--data", SECRET], "")
    again = ["--resume", str(tmp_path), "--data", SECRET, "--checkpoints", "s3://KEY:hunter2@bucket/run"]
    assert parse(DistillConfig, again, "").data == (SECRET,)


def test_no_message_and_no_traceback_shows_what_lets_a_reader_in(tmp_path, capsys):
    def fail(error):
        def body(config):
            raise error(f"{SECRET}: no answer")

        return run_command(DistillConfig, body, "", argv=["--out", str(tmp_path)])

    assert [fail(error) for error in (InputError, OSError, KeyboardInterrupt)] == [2, 1, 130]
    printed = capsys.readouterr().err
    assert printed.count("https://***@host/x?***: no answer") == 3
    assert "https://***@host/x?***: no answer" in (tmp_path / "error.log").read_text()
    assert "hunter2" not in printed + (tmp_path / "error.log").read_text()


def test_what_ended_a_command_is_told_though_the_disk_is_full(tmp_path, capsys):
    (tmp_path / "error.log").symlink_to("/dev/full")

    def body(config):
        raise RuntimeError("lost")

    assert run_command(DistillConfig, body, "", argv=["--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "error: RuntimeError: lost"
    assert told[1].endswith("error.log cannot be written (No space left on device)")


def test_a_list_or_nonsense_in_place_of_a_mapping_is_refused(tmp_path):
    for text, message in (
        ("- 1", "holds a list"),
        ("a: [", "is not valid YAML"),
        ("a", "holds a text"),
    ):
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            read_config(DistillConfig, tmp_path / "run.yaml")


@pytest.mark.parametrize("config_class", [DistillConfig, PretrainConfig, EvaluateConfig, IngestConfig])
def test_every_option_has_a_name_of_its_own_and_a_text(config_class):
    import dataclasses
    import inspect

    names = []
    for item in dataclasses.fields(config_class):
        section = getattr(config_class(), item.name)
        owner = type(section) if dataclasses.is_dataclass(section) else config_class
        members = dataclasses.fields(section) if dataclasses.is_dataclass(section) else [item]
        source = inspect.getsource(owner)
        for member in members:
            names.append(member.name)
            after = source.split(f"    {member.name}: ", 1)[1].split("\n", 1)[1].lstrip()
            assert after.startswith('"""'), f"{owner.__name__}.{member.name} has no text for --help"
    assert len(names) == len(set(names))
    recorded = [name for name in names if name not in ("config", "resume")]
    assert sorted(parameters(config_class())) == sorted(recorded)
    assert set(plain(config_class())).isdisjoint({"config", "resume"})


@pytest.mark.parametrize("pipeline", ["ingest", "pretrain", "distill", "evaluate"])
def test_help_names_every_option(pipeline, run):
    config_class = {
        "ingest": IngestConfig,
        "pretrain": PretrainConfig,
        "distill": DistillConfig,
        "evaluate": EvaluateConfig,
    }[pipeline]
    done = run(pipeline, "--help")
    assert done.returncode == 0
    for name, default in parameters(config_class()).items():
        negation = "no-" if default is True else ""
        assert f"--{negation}{name.replace('_', '-')}" in done.stdout


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert run_command(DistillConfig, lambda _: signal.raise_signal(signal.SIGTERM), "", argv=[]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--studnet", "resnet18"], "Unrecognized options: --studnet, resnet18. Did you mean --student?"),
        (
            ["--tau-teacher", "warm"],
            "Error parsing --tau-teacher: could not convert string to float: 'warm'.",
        ),
        (
            ["--anchors", "texts"],
            "invalid choice 'texts' for argument '--anchors'. "
            "Expected one of ('classes', 'captions', 'both'). --help lists all options.",
        ),
        (["--batch-size", "0"], "batch_size is 0: give 1 or more. --help lists all options."),
        (
            ["--seed", "1"],
            "--data and --teacher are required. Without any option at all,",
        ),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--resume", "nowhere"], "--resume nowhere: no run there (config.yaml is missing)"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(flags, message, run):
    done = run("distill", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_program_needs_nothing_of_the_process_that_the_tests_run_in(tmp_path):
    command = [sys.executable, str(ROOT / "pipelines" / "distill.py"), "--studnet", "resnet18"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Unrecognized options: --studnet")


LOADED = """
import sys
from beamclip.commands.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code or 0
print("LOADED", code, *sorted({"torch", "ray", "mlflow", "numpy", "pyarrow", "timm"} & set(sys.modules)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *(([name, "--help"], 0) for name in COMMANDS),
        (["distill", "--studnet", "resnet18"], 2),
        (["sweep", "--lr", "-1"], 2),
        (["destill"], 2),
    ],
)
def test_help_and_typos_load_nothing_that_takes_seconds(words, code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1].split() == ["LOADED", str(code)]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["distill", "pretrain"])
def test_a_mistake_in_the_data_is_found_before_torch_and_ray_are_loaded(command, tmp_path):
    model = {"distill": ["--teacher", "T", "--classes", "C", "--student", "resnet18"], "pretrain": []}
    words = [command, "--data", "missing", *model[command]]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "missing: " in done.stderr
    ended, code, *loaded = done.stdout.splitlines()[-1].split()
    assert (ended, code) == ("LOADED", "2")
    assert not {"torch", "ray", "timm", "mlflow"} & set(loaded)


def test_the_installed_program_names_its_commands(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    assert main(["destill"]) == 2
    assert capsys.readouterr().err == "error: destill: no such command. Did you mean distill?\n"
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["beamclip", beamclip.__version__]


def test_help_shows_whole_sentences_ranges_and_what_is_required(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usage: beamclip distill" in text
    assert "with a cache, no teacher runs. (required)" in text
    assert "Softmax temperature of the student. (above 0; default: 0.05)" in text
    assert "(default: None)" not in text
    assert "--batch-size INT " in text
    assert "--init-mean FLOAT FLOAT FLOAT " in text
