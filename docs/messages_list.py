"""The list of all messages, for the page on troubles."""

from itertools import groupby
from pathlib import Path

import yaml
from messages import Message, messages

ROOT = Path(__file__).parents[1]
CURES = "cures.yaml"
"""Cures of messages that do not say what to do: a part of the message, and its cure."""
HEADINGS = {
    "cluster": "Clusters and Ray",
    "commands": "Commands and their options",
    "data": "Data",
    "evaluation": "Evaluation",
    "export": "Export",
    "ingest": "Ingest",
    "models": "Models",
    "prompts": "Classes, templates and contexts",
    "report": "Reports",
    "runs": "Runs",
    "sweep": "Sweeps",
    "tracking": "MLflow",
    "training": "Training",
}
ELSEWHERE = "Files and values"


def read_cures() -> dict[str, str]:
    """Return the cures by the parts of messages that they belong to."""
    cures: dict[str, str] = yaml.safe_load((ROOT / "docs" / CURES).read_text(encoding="utf-8"))
    return cures


def cure_of(message: Message, cures: dict[str, str]) -> str | None:
    """Return the cure that belongs to a message, if there is one: that of the longest part."""
    parts = [part for part in cures if part in message.text]
    return cures[max(parts, key=len)] if parts else None


def messages_list() -> str:
    """Return the messages in Markdown, by what they are about, each with its cure."""
    cures = read_cures()
    found = sorted(messages(ROOT / "beamclip"), key=lambda each: (_heading(each), each.text))
    parts = []
    for heading, group in groupby(found, key=_heading):
        parts.append(f"### {heading}\n")
        for message in group:
            cure = cure_of(message, cures)
            parts.append(f"- `{message.text.replace('`', chr(39))}`" + (f"  \n  {cure}" if cure else ""))
        parts.append("")
    return "\n".join(parts)


def _heading(message: Message) -> str:
    return HEADINGS.get(message.room, ELSEWHERE)
