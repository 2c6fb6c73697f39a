"""Scenes without text: coloured shapes on a coloured ground. Nothing but pixels is learned from."""

from __future__ import annotations

from math import cos, pi, sin

from lab.nano2.sheet import Asked, Colour, Sheet, near

COLOURS: dict[str, Colour] = {
    "red": (205, 40, 40),
    "green": (40, 150, 60),
    "blue": (45, 75, 205),
    "yellow": (235, 205, 50),
    "orange": (235, 130, 35),
    "purple": (130, 55, 165),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
NOTHING = ()


def shape(s: Sheet, name: str, x: float, y: float, radius: float, colour: Colour) -> None:
    """Draw a shape around (x, y)."""
    box = (x - radius, y - radius, x + radius, y + radius)
    thick = radius * 0.35
    if name == "circle":
        s.draw.ellipse(box, fill=colour)
    elif name == "square":
        s.draw.rectangle(box, fill=colour)
    elif name == "ring":
        s.draw.ellipse(box, outline=colour, width=max(3, round(thick)))
    elif name == "cross":
        s.draw.rectangle((x - radius, y - thick, x + radius, y + thick), fill=colour)
        s.draw.rectangle((x - thick, y - radius, x + thick, y + radius), fill=colour)
    else:
        corners = 3 if name == "triangle" else 10
        at = []
        for k in range(corners):
            far = radius if name == "triangle" or k % 2 == 0 else 0.42 * radius
            turn = 2 * pi * k / corners
            at.append((x + far * sin(turn), y - far * cos(turn)))
        s.draw.polygon(at, fill=colour)


def where(x: float, y: float, box: tuple[int, int, int, int]) -> str:
    """The quarter of `box` in which (x, y) lies."""
    down = "top" if y < (box[1] + box[3]) / 2 else "bottom"
    return down + (" left" if x < (box[0] + box[2]) / 2 else " right")


def scene(s: Sheet, box: tuple[int, int, int, int]) -> None:
    """Fill `box` (left, top, right, bottom) with a scene and ask about it."""
    r, names = s.r, list(COLOURS)
    ground = r.choice(names)
    s.draw.rectangle(box, fill=near(r, COLOURS[ground], 18))
    side = min(box[2] - box[0], box[3] - box[1])
    found: list[tuple[str, str, float, float, float]] = []
    for _ in range(r.randint(1, 6) * 4):
        radius = r.uniform(0.07, 0.17) * side
        x, y = (
            r.uniform(box[k] + radius + 2, box[k + 2] - radius - 2) if box[k + 2] > box[k] else 0
            for k in (0, 1)
        )
        if any(
            (x - a) ** 2 + (y - b) ** 2 < (radius + c + 3) ** 2 * 1.3 for _, _, a, b, c in found
        ):
            continue
        colour = r.choice([name for name in names if name != ground])
        name = r.choice(SHAPES)
        shape(s, name, x, y, radius, near(r, COLOURS[colour], 18))
        found.append((name, colour, x, y, radius))
    ask(s, "background", ground)
    kinds = [name for name, *_ in found]
    for name, colour, x, y, _ in found:
        if kinds.count(name) == 1:
            ask(s, f"colour of {name}", colour)
            ask(s, f"where is {name}", where(x, y, box))
    for name in sorted(set(kinds)):
        ask(s, f"how many {name}", str(kinds.count(name)))
    ask(s, "how many shapes", str(len(kinds)))


def ask(s: Sheet, question: str, answer: str) -> None:
    """A question that no character answers."""
    s.asked.append(Asked(question, answer, NOTHING, NOTHING))
