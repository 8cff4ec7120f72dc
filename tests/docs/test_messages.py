"""The page on troubles has every message that beamclip raises, and each says what to do or has a cure."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from messages import messages, passed_on  # noqa: E402
from messages_list import cure_of, messages_list, read_cures  # noqa: E402

VERBS = (
    "Add Bring Build Choose Check Continue Correct Delete Divide Drop Evaluate Export Give Ingest Label "
    "Leave Lower Make Move Name Put Quote Read Remove Rename Restore Resume Run Save See Set Show Start Take "
    "Try Use Wait "
    "Write give keep leave write"
)
ADVICE = re.compile(rf"(?:^|[.:;,(] |\bor |, and |…)\s?(?:For example|{'|'.join(VERBS.split())})\b")
"""A sentence, or its second half, that tells the reader to do something."""
MESSAGES = messages(ROOT / "beamclip")


def test_each_message_says_what_to_do_or_has_a_cure() -> None:
    cures = read_cures()
    assert [each.text for each in MESSAGES if not ADVICE.search(each.text) and not cure_of(each, cures)] == []


def test_no_cure_is_left_of_a_message_that_is_gone() -> None:
    cures = read_cures()
    chosen = {cure_of(message, cures) for message in MESSAGES}
    assert [part for part, cure in cures.items() if cure not in chosen] == []


def test_the_only_texts_that_are_not_listed_are_those_of_other_errors() -> None:
    assert {line.partition(":")[0] for line in passed_on(ROOT / "beamclip")} <= {
        *("account.py", "cluster_file.py", "after_training.py", "embedding.py", "config.py", "url_list.py"),
        *("clip.py", "launch.py"),
    }


def test_the_list_has_every_message() -> None:
    listed = messages_list()
    assert [each.text for each in MESSAGES if each.text.replace("`", "'") not in listed] == []


def test_messages_are_found_however_they_are_put_together(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text(
        'LIMIT = 7\nADVICE = "Give less."\n'
        'def why(x):\n    if x:\n        return f"{x}: too long"\n    return ADVICE\n'
        'def f(x):\n    raise InputError(f"{x} is above {LIMIT}. {ADVICE}")\n'
        "def g(x):\n    raise InputError(why(x)) from None\n"
        "def h(x):\n    raise FailedRunError('one' if x else 'two')\n"
        "def i(x):\n    raise ValueError('a mistake of the caller')\n"
    )
    found = {(each.room, each.text) for each in messages(tmp_path)}
    said = {"… is above 7. Give less.", "…: too long", "Give less.", "one", "two"}
    assert found == {("room", text) for text in said}
