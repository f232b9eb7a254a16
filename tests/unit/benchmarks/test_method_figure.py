"""The README's figure."""

from pathlib import Path

from PIL import Image

from benchmarks.method.figure import Bar, Panel, draw

MAX_BYTES = 150_000


def panels() -> list[Panel]:
    theirs = [
        Bar(f"Published {i}", "published", 12.0 * i, 12.0 * i - 3, 12.0 * i + 4) for i in range(7)
    ]
    ours = [Bar(f"+ ours {i}", "ours", 90.0 + i, 85, 99, i == 3) for i in range(5)]
    bars = [*theirs, *ours]
    return [Panel(f"Setting {i}", bars, {"perfect selection": 97.0 - i}) for i in range(3)]


def test_the_figure_is_a_small_png_and_the_same_every_time(tmp_path: Path) -> None:
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    draw(panels(), first, "note")
    draw(panels(), second, "note")
    content = first.read_bytes()
    assert content == second.read_bytes() and len(content) <= MAX_BYTES
    with Image.open(first) as image:
        image.verify()
        assert image.format == "PNG" and image.width >= 1000
