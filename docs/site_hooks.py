"""What mkdocs does beyond rendering: the page of all options, the list of messages, links to other files.

A page may link to a file outside of docs/, as readers of the repository expect. On the site, such a file is
found below source/.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from messages_list import messages_list
from mkdocs.structure.files import File, Files
from options_page import options_page

MESSAGES = "<!-- messages -->"
"""Where the list of messages comes in a page."""
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")
"""Start and target of a Markdown link that is no address."""


def on_files(files: Files, config: Any) -> Files:
    """Add the page of all options and every file of the repository that a page links to."""
    files.append(File.generated(config, "configuration.md", content=options_page()))
    root = Path(config.config_file_path).parent
    linked = {
        _outside(page.src_uri, target)
        for page in files.documentation_pages()
        for _, target in LINK.findall(page.content_string)
    }
    for target in sorted(filter(None, linked)):
        if (root / target).is_file():
            files.append(File.generated(config, f"source/{target}", abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the list of messages in its place, and point links that lead out of docs/ to source/."""
    folder = posixpath.dirname(page.file.src_uri) or "."

    def moved(match: re.Match[str]) -> str:
        target = _outside(page.file.src_uri, match[2])
        return match[0] if target is None else match[1] + posixpath.relpath(f"source/{target}", folder)

    linked = LINK.sub(moved, markdown)
    return linked.replace(MESSAGES, messages_list()) if MESSAGES in linked else linked


def _outside(page: str, target: str) -> str | None:
    """Return the path from the top of the repository, if a link of a page leads out of docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith("docs/") else path
