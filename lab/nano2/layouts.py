"""How keys and values stand on a page. HELD_OUT layouts are on no page of another split."""

from __future__ import annotations

from collections.abc import Callable

from lab.nano2 import words
from lab.nano2.sheet import SIZE, Asked, Hand, Sheet

MARGIN = 3
Layout = Callable[[Sheet, str], None]


def lines(s: Sheet, split: str) -> None:
    """Lines `key: value` anywhere, each in a size of its own; some values far from their keys."""
    r, y, hand = s.r, s.r.randint(1, 24), s.hand()
    while True:
        if r.random() < 0.35:
            hand = s.hand()
        if y + hand.height > SIZE - MARGIN:
            return
        key, value = words.pair(r, split)
        after = r.choice((":", ":", "", "", " -", " ="))
        gap = hand.width(r.choice((" ", "  ")))
        wide = hand.width(key + after) + gap + hand.width(value)
        free = SIZE - 2 * MARGIN - wide
        if free >= 0 and s.fresh(key):
            x = MARGIN + r.uniform(0, free)
            far = r.uniform(0, SIZE - MARGIN - x - wide) if r.random() < 0.3 else 0
            at = x + hand.width(key + after) + gap + far
            s.pair((key, x, y, hand), (value, at, y, hand), after)
        y += hand.height + (r.randint(0, 6) if r.random() < 0.7 else r.randint(6, 30))


def prose(s: Sheet, split: str) -> None:
    """Close lines of running text, keys and values among them."""
    r, hand, y = s.r, s.hand(), s.r.randint(0, 12)
    ruled = r.random() < 0.3
    while y + hand.height <= SIZE - 1:
        x, room = float(r.randint(2, 14)), int((SIZE - 16) / hand.width("n"))
        if r.random() < 0.25:
            key, value = words.pair(r, split)
            if hand.width(key + ": " + value) < SIZE - 20 and s.fresh(key):
                at = x + hand.width(key + ": ")
                s.pair((key, x, y, hand), (value, at, y, hand), ":")
                x = at + hand.width(value + " ")
        room = int((SIZE - 4 - x) / (1.15 * hand.width("n")))
        if room > 4:
            s.write(words.sentence(r, room), x, y, hand)
        y += hand.height + r.choice((0, 0, 1, 3))
        if ruled:
            s.draw.line((0, y - 1, SIZE, y - 1), fill=s.line_colour())


def receipt(s: Sheet, split: str) -> None:
    """A strip with a head, keys at the left and values at the right edge."""
    r, hand = s.r, s.hand(0, 22)
    wide = r.randint(190, SIZE - 8)
    left = r.randint(2, SIZE - wide - 2)
    if r.random() < 0.5:
        s.draw.rectangle((left - 4, 0, left + wide + 4, SIZE), fill=s.shade())
    y, right = r.randint(0, 14), left + wide
    for _ in range(r.randint(0, 2)):
        text = words.sentence(r, int(wide / hand.width("n") / 1.2))
        s.write(text, left + max(0.0, (wide - hand.width(text)) / 2), y, hand)
        y += hand.height
    while y + hand.height <= SIZE - 2:
        if r.random() < 0.12:
            rule = r.choice("-=*.") * int(wide / hand.width("-") * 0.9)
            if r.random() < 0.5:
                s.write(rule, left, y, hand)
            else:
                s.draw.line((left, y + 6, right, y + 6), fill=s.line_colour())
            y += hand.height if hand.height < 30 else 14
            continue
        large = Hand(hand.name, min(s.look.high, hand.size + r.randint(2, 8)))
        own = large if r.random() < 0.1 else hand
        key, value = words.pair(r, split, amounts=0.7)
        fits = own.width(key + "  " + value) <= wide and y + own.height <= SIZE - 2
        if fits and s.fresh(key):
            at = right - own.width(value)
            s.pair((key, left, y, own), (value, at, y, own), r.choice(("", "", ":")))
            y += own.height + r.choice((0, 0, 1, 2, 4))
        else:
            y += 3


def table(s: Sheet, split: str) -> None:
    """A head and rows; where there are two columns of values, row and column are asked for."""
    r, hand = s.r, s.hand(0, 22)
    columns = 1 if r.random() < 0.6 else 2
    step = hand.height + r.randint(2, 10)
    x0, y = r.randint(3, 30), r.randint(2, 40)
    x1 = SIZE - r.randint(3, 30)
    edges = [x0, x0 + (x1 - x0) * r.uniform(0.38, 0.55)]
    edges += [edges[1] + (x1 - edges[1]) / columns * (k + 1) for k in range(columns)]
    heads = [words.cased(r, r.choice(words.WORDS)) for _ in range(columns)]
    grid, shaded, flush = r.random(), r.random() < 0.4, r.random() < 0.5
    top = y
    over = list[range]()  # the heads that were written
    if columns == 2 or r.random() < 0.5:
        if shaded:
            s.draw.rectangle((x0, y, x1, y + step), fill=s.shade())
        for k, head in enumerate(heads):
            if hand.width(head) < edges[k + 2] - edges[k + 1] - 6:
                over.append(s.write(head, edges[k + 1] + 4, y + 2, hand))
        y += step
    while y + step < SIZE - r.randint(2, 60):
        key, values = words.key(r, split), [words.value(r) for _ in range(columns)]
        fits = hand.width(key) < edges[1] - x0 - 8 and all(
            hand.width(v) < edges[k + 2] - edges[k + 1] - 6 for k, v in enumerate(values)
        )
        if not fits or not s.fresh(key):
            if r.random() < 0.05:
                break
            continue
        written = s.write(key, x0 + 4, y + 2, hand)
        for k, value in enumerate(values):
            at = edges[k + 2] - 4 - hand.width(value) if flush else edges[k + 1] + 4
            span = s.write(value, at, y + 2, hand)
            if columns == 1:
                s.asked.append(Asked(key, value, tuple(written), tuple(span)))
            elif len(over) == 2 and heads[0].lower() != heads[1].lower():
                both = (*written, *over[k])
                s.asked.append(Asked(f"{key}, {heads[k]}", value, both, tuple(span)))
        y += step
        if grid < 0.6:
            s.draw.line((x0, y, x1, y), fill=s.line_colour())
    if grid < 0.35:
        for x in edges:
            s.draw.line((x, top, x, y), fill=s.line_colour())


def form(s: Sheet, split: str) -> None:
    """Fields: a label, and under it or beside it a box with the value."""
    r, y = s.r, s.r.randint(1, 16)
    columns = r.choice((1, 2, 2))
    while True:
        label, hand = s.hand(0, 16), s.hand(0, 24)
        high = label.height + hand.height + r.randint(6, 14)
        if y + high > SIZE - 2:
            return
        for k in range(columns):
            x0, x1 = SIZE * k / columns + r.randint(3, 10), SIZE * (k + 1) / columns - 5
            key, value = words.pair(r, split)
            if label.width(key) > x1 - x0 or hand.width(value) > x1 - x0 - 10 or not s.fresh(key):
                continue
            top = y + label.height + 1
            if r.random() < 0.8:
                fill = s.shade() if r.random() < 0.3 else None
                s.draw.rectangle((x0, top, x1, y + high - 2), outline=s.line_colour(), fill=fill)
            else:
                s.draw.line((x0, y + high - 2, x1, y + high - 2), fill=s.line_colour())
            at = x0 + r.uniform(4, max(4.0, x1 - x0 - 6 - hand.width(value)))
            s.pair((key, x0, y, label), (value, at, top + 2, hand), r.choice(("", "", ":")))
        y += high + r.randint(2, 16)


def cards(s: Sheet, split: str) -> None:
    """Filled or outlined boxes anywhere, one or two keys in each."""
    r, taken = s.r, list[tuple[int, int, int, int]]()
    for _ in range(40):
        hand = s.hand(0, 26)
        key, value = words.pair(r, split)
        below = r.random() < 0.6
        both = hand.width(key + ": " + value)
        wide = int(max(hand.width(key), hand.width(value)) if below else both) + r.randint(10, 40)
        high = hand.height * (2 if below else 1) + r.randint(6, 22)
        if wide > SIZE - 6 or high > SIZE - 6:
            continue
        x, y = r.randint(2, SIZE - wide - 3), r.randint(2, SIZE - high - 3)
        box = (x, y, x + wide, y + high)
        if any(
            not (box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1]) for b in taken
        ):
            continue
        if not s.fresh(key):
            continue
        taken.append(box)
        fill = s.shade() if r.random() < 0.6 else None
        s.draw.rectangle(box, fill=fill, outline=s.line_colour() if r.random() < 0.7 else fill)
        at = x + 4 if below else x + 4 + hand.width(key + ": ")
        top = y + 3 + (hand.height if below else 0)
        s.pair((key, x + 4, y + 3, hand), (value, at, top, hand), "" if below else ":")


def margin(s: Sheet, split: str) -> None:
    """Keys set flush right against a line, values to its right."""
    r, hand, y = s.r, s.hand(), s.r.randint(2, 20)
    middle = r.randint(120, 200)
    s.draw.line((middle, 0, middle, SIZE), fill=s.line_colour())
    while y + hand.height <= SIZE - 2:
        key, value = words.pair(r, split)
        if hand.width(key) < middle - 8 and hand.width(value) < SIZE - middle - 8 and s.fresh(key):
            at = middle - 5 - hand.width(key)
            s.pair((key, at, y, hand), (value, middle + 5, y, hand))
            y += hand.height + r.randint(0, 9)


def leaders(s: Sheet, split: str) -> None:
    """A card of fare: key, dots, value."""
    r, hand, y = s.r, s.hand(0, 24), s.r.randint(2, 20)
    left, right = r.randint(3, 40), SIZE - r.randint(3, 40)
    while y + hand.height <= SIZE - 2:
        key, value = words.pair(r, split)
        room = right - left - hand.width(key + value)
        if room > 3 * hand.width(".") and s.fresh(key):
            dots = " " + "." * int((room - 2 * hand.width(" ")) / hand.width("."))
            at = right - hand.width(value)
            s.pair((key, left, y, hand), (value, at, y, hand), dots)
            y += hand.height + r.randint(0, 12)


def upside(s: Sheet, split: str) -> None:
    """Large values, each with its key in small type below: a panel of gauges."""
    r, columns = s.r, s.r.choice((2, 2, 3))
    y = r.randint(2, 20)
    while True:
        hand, label = s.hand(18, 30), s.hand(0, 15)
        if y + hand.height + label.height > SIZE - 2:
            return
        for k in range(columns):
            x0, wide = SIZE * k / columns + 4, SIZE / columns - 8
            key, value = words.pair(r, split)
            if max(label.width(key), hand.width(value)) < wide and s.fresh(key):
                at = x0 + (wide - hand.width(value)) / 2
                under = (key, x0 + (wide - label.width(key)) / 2, y + hand.height, label)
                s.pair(under, (value, at, y, hand))
        y += hand.height + label.height + r.randint(4, 20)


TRAIN: dict[str, tuple[float, Layout]] = {
    "lines": (0.27, lines),
    "receipt": (0.2, receipt),
    "table": (0.15, table),
    "form": (0.12, form),
    "cards": (0.1, cards),
    "prose": (0.16, prose),
}
HELD_OUT: dict[str, dict[str, Layout]] = {
    "val": {"margin": margin},
    "test": {"leaders": leaders, "upside": upside},
}
