"""The method figure of the README: one panel a setting, one bar a method.

Guarantees: equal bars give equal bytes with one version of matplotlib; the file is a PNG. Colours
are two of Okabe and Ito's, told apart by brightness as well; every bar carries its value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

Group = Literal["published", "ours"]
COLOURS: Final[dict[Group, str]] = {"published": "#9aa5ad", "ours": "#0072b2"}
LABELS: Final[dict[Group, str]] = {"published": "#444444", "ours": "#004f7c"}
INSIDE: Final[dict[Group, str]] = {"published": "#222222", "ours": "#ffffff"}
INK: Final = "#222222"
SHORT: Final = 20.0  # per cent
WIDTH_INCHES: Final = 10.0
BAR_INCHES: Final = 0.27
DPI: Final = 110


@dataclass(frozen=True)
class Bar:
    """A method's exact match in per cent with its interval. `bold`: the product's default."""

    label: str
    group: Group
    value: float
    low: float
    high: float
    bold: bool = False


@dataclass(frozen=True)
class Panel:
    """`ceilings`: name -> per cent, drawn as lines across the bars."""

    title: str
    bars: Sequence[Bar]  # from top to bottom
    ceilings: Mapping[str, float]


def draw(panels: Sequence[Panel], path: Path, note: str) -> None:
    """Writes the figure; `note` is the small print below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = max(len(panel.bars) for panel in panels)
    with pyplot.rc_context({"font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK}):
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=(WIDTH_INCHES, rows * BAR_INCHES + 1.5), squeeze=False
        )
        for axis, panel in zip(axes[0], panels, strict=True):
            _draw_panel(axis, panel)
        for axis, panel in zip(axes[0][1:], panels[1:], strict=True):
            if [bar.label for bar in panel.bars] == [bar.label for bar in panels[0].bars]:
                axis.set_yticklabels([])  # the first panel names them
        figure.text(0.01, 0.012, note, fontsize=7.5, color="#555555")
        figure.tight_layout(rect=(0, 0.035, 1, 1), w_pad=2.5)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
        pyplot.close(figure)


def _draw_panel(axis: Any, panel: Panel) -> None:
    places = _places(panel.bars)
    for bar, place in zip(panel.bars, places, strict=True):
        _draw_bar(axis, bar, place)
    axis.set_yticks(places, [bar.label for bar in panel.bars])
    for label, bar in zip(axis.get_yticklabels(), panel.bars, strict=True):
        label.set_fontweight("bold" if bar.bold else "normal")
        label.set_color(LABELS[bar.group])
    _draw_ceilings(axis, panel)
    axis.set_ylim(max(places) + 0.6, -1.3)
    axis.set_xlim(0, 103)
    axis.set_xticks([0, 25, 50, 75, 100])
    axis.set_xlabel("exact match, %")
    axis.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold", pad=10)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _draw_bar(axis: Any, bar: Bar, place: float) -> None:
    axis.barh(place, bar.value, height=0.72, color=COLOURS[bar.group])
    error = [[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]]
    axis.errorbar(bar.value, place, xerr=error, color=INK, linewidth=0.9, capsize=1.5)
    weight = "bold" if bar.bold else "normal"
    is_short = bar.value < SHORT  # its number stands behind it, not in it
    start = max(bar.high, bar.value) + 1.5 if is_short else 2.0
    colour = INK if is_short else INSIDE[bar.group]
    text = f"{bar.value:.1f}"
    axis.text(start, place, text, va="center", fontweight=weight, color=colour)


def _draw_ceilings(axis: Any, panel: Panel) -> None:
    """Dashed lines with their names above the bars."""
    for name, value in panel.ceilings.items():
        axis.axvline(value, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axis.text(value - 1.0, -0.75, f"{name} {value:.1f}", ha="right", va="center", fontsize=8)


def _places(bars: Sequence[Bar]) -> list[float]:
    """Heights of the bars; a gap between the groups."""
    groups = [bar.group for bar in bars]
    return [
        place
        + 0.5 * sum(a != b for a, b in zip(groups[:place], groups[1 : place + 1], strict=True))
        for place in range(len(bars))
    ]
