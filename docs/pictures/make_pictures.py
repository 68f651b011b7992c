"""Make the READMEs' pictures in headless Chromium.

``pipelines.svg`` is drawn from the registered pipelines: an arrow for each dataset that a pipeline
reads or writes. ``pipelines.png`` is its screenshot, ``report.png`` that of the demo's report. Run
it after ``make demo``, with Chromium and a Japanese font installed (Debian: ``chromium`` and
``fonts-noto-cjk``)::

    python docs/pictures/make_pictures.py
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
REPORT = PROJECT / "data/08_reporting/demo/report.html"
REPORT_SIZE = (1000, 2150)
# pixels per CSS pixel: the picture stays below 200 KB
REPORT_SCALE = 0.72

WIDTH, HEIGHT = 1410, 430
BOX = (144, 40)
# centre of each box: pipelines and the datasets that flow between them
PIPELINES = {
    "data_filtering": (280, 40),
    "quantization": (280, 110),
    "rag_index": (280, 320),
    "sft": (660, 75),
    "inference": (1000, 215),
    "reporting": (1165, 340),
}
DATASETS = {
    "raw_conversations": (85, 40),
    "base_model": (85, 110),
    "qa_pairs": (85, 180),
    "few_shot_pool": (85, 250),
    "tasks": (85, 390),
    "filtered_pairs": (455, 40),
    "quantized_model": (455, 110),
    "retrieval_index": (455, 320),
    "adapter": (825, 75),
    "answers": (1165, 215),
    "run_report": (1330, 340),
}
STYLE = """
text { font: 14px sans-serif; text-anchor: middle; dominant-baseline: central; fill: #1f2933; }
.pipeline rect { fill: #2457a6; } .pipeline text { fill: #fff; font-weight: 600; }
.dataset rect { fill: #eef3fb; stroke: #8aa4cf; }
path { fill: none; stroke: #5b6b82; stroke-width: 1.5; marker-end: url(#arrow); }
"""


def find_arrows() -> Iterator[tuple[str, str]]:
    """Yield the source and target of each arrow, read from the registered pipelines."""
    from ja_instruct.pipeline_registry import register_pipelines

    registered = register_pipelines()
    for name in PIPELINES:
        pipeline = registered[name]
        for dataset in DATASETS:
            if dataset in pipeline.inputs():
                yield dataset, name
            elif dataset in pipeline.all_outputs():
                yield name, dataset


def draw() -> str:
    """Return the picture of the pipelines as SVG."""
    places = PIPELINES | DATASETS
    width, height = BOX
    parts = []
    for source, target in find_arrows():
        (x1, y1), (x2, y2) = places[source], places[target]
        if x1 == x2:  # straight down
            parts.append(f'<path d="M{x1} {y1 + height // 2} L{x2} {y2 - height // 2 - 6}"/>')
            continue
        start, end = x1 + width // 2, x2 - width // 2 - 6
        # level as far as possible, so that a long arrow passes below the boxes between
        level = max(start, end - 90)
        middle = (level + end) // 2
        parts.append(
            f'<path d="M{start} {y1} L{level} {y1} C{middle} {y1} {middle} {y2} {end} {y2}"/>'
        )
    for kind, boxes in (("pipeline", PIPELINES), ("dataset", DATASETS)):
        for name, (x, y) in boxes.items():
            parts.append(
                f'<g class="{kind}"><rect x="{x - width // 2}" y="{y - height // 2}" '
                f'width="{width}" height="{height}" rx="{6 if kind == "pipeline" else 18}"/>'
                f'<text x="{x}" y="{y}">{escape(name)}</text></g>'
            )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
            f"<style>{STYLE}</style>",
            '<marker id="arrow" markerWidth="8" markerHeight="8" refX="2" refY="4" orient="auto">',
            '<path d="M0 0 L7 4 L0 8 z" style="fill:#5b6b82;stroke:none;marker-end:none"/>',
            "</marker>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def take_screenshot(
    page: Path, picture: Path, size: tuple[int, int], chromium: str, scale: float = 1.0
) -> None:
    """Save what Chromium shows of a local page at ``size`` (width, height in CSS pixels)."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--window-size={size[0]},{size[1]}",
                f"--force-device-scale-factor={scale}",
                "--virtual-time-budget=10000",
                f"--screenshot={picture}",
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
        )


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium-browser")
    options = parser.parse_args()
    drawing = HERE / "pipelines.svg"
    drawing.write_text(draw(), "utf-8")
    take_screenshot(drawing, HERE / "pipelines.png", (WIDTH, HEIGHT), options.chromium)
    if not REPORT.is_file():
        parser.exit(1, f"{REPORT} does not exist; run 'make demo' first\n")
    take_screenshot(REPORT, HERE / "report.png", REPORT_SIZE, options.chromium, REPORT_SCALE)


if __name__ == "__main__":
    main()
