"""Figures as elements of an HTML page."""

import html
import io
import re

from matplotlib import rc_context
from matplotlib.figure import Figure

from beamclip.plots.style import FAINT, INK, MUTED


def svg_element(figure: Figure, name: str, label: str) -> str:
    """Return a figure as an <svg> element, which fills the width that the page gives it.

    Its texts stay texts. Ink and the greys of axes are CSS variables of the page (--ink, --muted, --faint),
    so that they follow its light or dark colours.

    Args:
        figure: is drawn on a transparent ground.
        name: letters and digits; comes before each id in the element, so that the ids of a page are unique.
        label: what the figure shows, for readers who do not see it.
    """
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    # matplotlib's metadata name addresses, and its style rule would hold for the whole page.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<defs>\s*</defs>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'\bxlink:href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    for colour, variable in ((INK, "ink"), (MUTED, "muted"), (FAINT, "faint")):
        text = text.replace(colour, f"var(--{variable})")
    head, body = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    return f'<svg role="img" aria-label="{html.escape(label)}" {view[0] if view else ""}>{body}'.strip()
