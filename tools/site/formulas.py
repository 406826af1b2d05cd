"""A Sphinx extension that draws formulas as SVG when the site is built, so that pages need no MathJax, no font and no network.

matplotlib's mathtext knows the part of LaTeX that the course writes. The drawing takes the colour of the text around it, so it reads
in dark mode, and carries its LaTeX source as the text alternative. Knows formulas only; what mathtext cannot read is a build error.
"""

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SIZE = 10.0  # points of an em in the drawing; the page scales it to its own
CURVES = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}  # matplotlib's path codes in SVG's letters


def formula_svg(latex: str) -> str:
    """Returns the formula as an inline SVG element, sized in em and standing on the line of text; ValueError if mathtext cannot read it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath, text_to_path

    text, font = f"${' '.join(latex.split())}$", FontProperties(family="STIXGeneral", math_fontfamily="stix", size=SIZE)
    path = TextPath((0, 0), text, prop=font, usetex=False)
    width, height, depth = text_to_path.get_text_width_height_descent(text, font, ismath=True)
    box = f"0 {-(height - depth):.2f} {width:.2f} {height:.2f}"
    look = f"width:{width / SIZE:.3f}em;height:{height / SIZE:.3f}em;vertical-align:{-depth / SIZE:.3f}em"
    label = escape(" ".join(latex.split()), quote=True)
    return (
        f'<svg class="formula" role="img" aria-label="{label}" viewBox="{box}" style="{look}" xmlns="http://www.w3.org/2000/svg">'
        f'<path fill="currentColor" d="{_outline(path)}"/></svg>'
    )


def _outline(path: Any) -> str:
    """Returns the path in SVG's notation, where y grows downwards."""
    steps = []
    for points, code in path.iter_segments(curves=True, simplify=False):
        numbers = " ".join(f"{value if i % 2 == 0 else -value:.2f}" for i, value in enumerate(points))
        steps.append(CURVES[int(code)] + ("" if code == 79 else numbers))
    return "".join(steps)


def inline(translator: Any, node: Any) -> None:
    """Writes a formula within a line."""
    from docutils import nodes

    translator.body.append(formula_svg(node.astext()))
    raise nodes.SkipNode


def block(translator: Any, node: Any) -> None:
    """Writes a formula on lines of its own; a narrow screen scrolls it."""
    from docutils import nodes

    translator.body.append(f'<div class="math-block">{formula_svg(node.astext())}</div>\n')
    raise nodes.SkipNode


def setup(app: "Sphinx") -> dict[str, bool]:
    """Registers the renderer under the name `svg`."""
    app.add_html_math_renderer("svg", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
