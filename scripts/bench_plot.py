"""The figures of bench.py as an SVG: panels of bars, three in a row. No library draws them."""

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, BAR, GAP, HEAD = 330, 16, 6, 46  # px: of a panel, of a bar, between bars, of a title
LABEL, NUMBER = 120, 60  # px beside a bar
COLUMNS = 3
OURS, THEIRS = "#1a6f5a", "#a9b4b0"

PANELS = (
    ("rate_1", "requests/s, 1 outstanding", 1.0, "{:,.0f}"),
    ("rate_64 as recorded", "requests/s, 64 outstanding", 1.0, "{:,.0f}"),
    ("rate_1024 as recorded", "requests/s, 1,024 outstanding", 1.0, "{:,.0f}"),
    ("cpu_64 as recorded", "CPU µs a request, 64 outstanding", 1e6, "{:.1f}"),
    ("warm_p50", "round trip ms at 50/s, p50", 1e3, "{:.2f}"),
    ("warm_p99", "round trip ms at 50/s, p99", 1e3, "{:.2f}"),
)


def plot(results: dict[str, Any]) -> str:
    """The whole picture, as SVG text."""
    panels: list[tuple[str, list[tuple[str, float, str]]]] = []
    for key, title, scale, form in PANELS:
        medians = {
            name: of["median"] * scale
            for name, of in results["figures"][key].items()
            if name != "floor"  # it would dwarf the rest
        }
        panels.append(
            (title, [(name, value, form.format(value)) for name, value in medians.items()])
        )
    most = max(len(bars) for _, bars in panels)
    height = HEAD + most * (BAR + GAP) + 20
    rows = -(-len(panels) // COLUMNS)
    about = results["machine"]
    foot = f"{about['date']}, {about['cores']} cores, {about['cpu']}, Python {about['python']}"
    drawn = [
        _panel(title, bars, i % COLUMNS * WIDTH, i // COLUMNS * height)
        for i, (title, bars) in enumerate(panels)
    ]
    width, depth = COLUMNS * WIDTH, rows * height + 30
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{depth}"'
    return "\n".join(
        [
            f'{svg} font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            *drawn,
            f'<text x="16" y="{rows * height + 12}" fill="#555">{escape(foot)}</text>',
            "</svg>\n",
        ]
    )


def _panel(title: str, bars: Sequence[tuple[str, float, str]], x: int, y: int) -> str:
    longest = max(value for _, value, _ in bars) or 1.0
    room = WIDTH - LABEL - NUMBER - 24
    lines = [f'<text x="{x + 16}" y="{y + 28}" font-weight="bold">{escape(title)}</text>']
    for i, (label, value, text) in enumerate(bars):
        top = y + HEAD + i * (BAR + GAP)
        length = max(1.0, room * value / longest)
        ours = label.startswith("ratebridge")
        lines.append(
            f'<text x="{x + 10 + LABEL}" y="{top + 12}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{x + 16 + LABEL}" y="{top}" width="{length:.1f}" height="{BAR}" '
            f'fill="{OURS if ours else THEIRS}"/>'
            f'<text x="{x + 20 + LABEL + length:.1f}" y="{top + 12}">{escape(text)}</text>'
        )
    return "\n".join(lines)
