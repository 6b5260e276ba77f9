"""A picture of the package from its own imports: folders, and who imports whom."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {
    "md_runs": "what a person runs",
    "calculators": "adapters: one file for each program",
    "models": "physics and networks",
}
"""From the highest to the lowest: each imports itself and those below."""
ROW, BOX, WIDTH, PAD = 58, 30, 860, 18


def boxes_of(root: Path = ROOT) -> dict[str, list[Path]]:
    """Boxes of the picture: the folders of a layer, and its files that stand alone."""
    found: dict[str, list[Path]] = {}
    for layer in LAYERS:
        for path in sorted((root / layer).rglob("*.py")):
            parts = path.relative_to(root).parts
            if parts[1] == "__init__.py" or "scripts" in parts or "pretrained" in parts:
                continue
            single = len(parts) == 2
            name = parts[1].removesuffix(".py")
            # Files that only their own layer's top needs would be a crowd of boxes.
            box = f"{layer}/{name}" if not single or layer != "md_runs" else layer
            found.setdefault(box, []).append(path)
    return found


def arrows_of(boxes: Mapping[str, list[Path]], root: Path = ROOT) -> set[tuple[str, str]]:
    """Pairs of boxes of which the first imports the second."""
    box_of = {
        tuple(path.relative_to(root).with_suffix("").parts): box
        for box, paths in boxes.items()
        for path in paths
    }
    found = set()
    for module, box in box_of.items():
        source = root.joinpath(*module).with_suffix(".py").read_text()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = module[: len(module) - node.level]
            start = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                for target in ((*start, alias.name), start, (*start, "__init__")):
                    if target in box_of:
                        if box_of[target] != box:
                            found.add((box, box_of[target]))
                        break
    return found


def reduced(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows without those that a chain of others stands for."""
    below: dict[str, set[str]] = {}
    for one, two in arrows:
        below.setdefault(one, set()).add(two)

    def reaches(one: str, two: str, seen: set[str]) -> bool:
        for next_box in below.get(one, set()) - seen:
            seen.add(next_box)
            if next_box == two or reaches(next_box, two, seen):
                return True
        return False

    return {
        (one, two)
        for one, two in arrows
        if not any(other != two and reaches(other, two, {one}) for other in below[one])
    }


def joined(boxes: Mapping[str, list[Path]], arrows: set[tuple[str, str]]) -> dict[str, str]:
    """The name of each box in the picture: folders that import one another make one box."""
    below: dict[str, set[str]] = {box: {box} for box in boxes}
    for _ in boxes:
        for one, two in arrows:
            below[one] |= below[two]
    found = {}
    for box in boxes:
        circle = sorted(other for other in below[box] if box in below[other])
        names = " · ".join(other.split("/")[-1] for other in circle)
        found[box] = f"{box.split('/')[0]}/{names}"
    return found


def floors_of(boxes: set[str], arrows: set[tuple[str, str]]) -> dict[str, int]:
    """Floor of each box: 0 imports nothing, others one more than the highest that they import."""
    floors = dict.fromkeys(boxes, 0)
    for _ in boxes:
        for one, two in arrows:
            floors[one] = max(floors[one], floors[two] + 1)
    return floors


def picture() -> str:
    """The picture as SVG."""
    files = boxes_of()
    all_arrows = arrows_of(files)
    name = joined(files, all_arrows)
    boxes = set(name.values())
    arrows = {(name[a], name[b]) for a, b in all_arrows if name[a] != name[b]}
    floors = floors_of(boxes, arrows)
    arrows = reduced(arrows)
    rows: list[tuple[str, list[str]]] = []
    for layer in LAYERS:
        inside = sorted(box for box in boxes if box.split("/")[0] == layer)
        for floor in sorted({floors[box] for box in inside}, reverse=True):
            rows.append((layer, [box for box in inside if floors[box] == floor]))
    # Below those that import it: fewer arrows cross.
    middle: dict[str, float] = {}
    for _, row in rows:
        above = {box: [middle[a] for a, b in arrows if b == box and a in middle] for box in row}
        row.sort(key=lambda box: sum(above[box]) / len(above[box]) if above[box] else 0.5)
        for place, box in enumerate(row):
            middle[box] = (place + 1) / (len(row) + 1)
    places: dict[str, tuple[float, float, float]] = {}
    bands: dict[str, list[float]] = {}
    y = 0.0
    last = ""
    for layer, row in rows:
        y += 46 if layer != last else 0
        last = layer
        bands.setdefault(layer, [y, y])[1] = y + ROW
        widths = [7.4 * len(box.split("/")[-1]) + 26 for box in row]
        gap = (WIDTH - 2 * PAD - sum(widths)) / (len(row) + 1)
        x = PAD + gap
        for box, width in zip(row, widths, strict=True):
            places[box] = (x, y + (ROW - BOX) / 2, width)
            x += width + gap
        y += ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + PAD:.0f}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        "<title>Folders of tensormd and their imports</title>",
        f'<rect width="{WIDTH}" height="{y + PAD:.0f}" fill="#fff"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#9aa5b1"/></marker></defs>',
    ]
    for layer, (top, bottom) in bands.items():
        height = bottom - top + 30
        parts.append(
            f'<rect x="6" y="{top - 26:.0f}" width="{WIDTH - 12}" height="{height:.0f}" '
            f'rx="10" fill="#f5f7fa" stroke="#e4e7eb"/><text x="{PAD}" y="{top - 8:.0f}" '
            f'fill="#616e7c"><tspan font-weight="700" fill="#1f2933">{layer}/</tspan> '
            f"{escape(LAYERS[layer])}</text>"
        )
    for one, two in sorted(arrows):
        (x1, y1, w1), (x2, y2, w2) = places[one], places[two]
        x1, x2 = x1 + w1 / 2, x2 + w2 / 2
        bend = (y2 - y1 - BOX) / 2
        parts.append(
            f'<path d="M{x1:.0f} {y1 + BOX:.0f}C{x1:.0f} {y1 + BOX + bend:.0f} {x2:.0f} '
            f'{y2 - bend:.0f} {x2:.0f} {y2 - 1:.0f}" fill="none" stroke="#9aa5b1" '
            'stroke-width="1.2" marker-end="url(#tip)"/>'
        )
    for box, (x, top, width) in places.items():
        parts.append(
            f'<rect x="{x:.0f}" y="{top:.0f}" width="{width:.0f}" height="{BOX}" rx="6" '
            f'fill="#fff" stroke="#2563a8"/><text x="{x + width / 2:.0f}" y="{top + 22:.0f}" '
            f'text-anchor="middle" fill="#1f2933">{box.split("/")[-1]}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
