"""mistakes.html: one self-contained page that shows the worst mistakes as small pictures."""

import base64
from html import escape

import cv2
import numpy as np

DETECTION, TRUTH, OTHER = (230, 57, 40), (46, 175, 80), (245, 170, 40)  # RGB; named in the page's legend
_CROP_SIDE = 240  # pixels

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #222; background: #fafafa;
       margin: 0 auto; padding: 1.5rem; max-width: 1560px; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .2rem; border-top: 1px solid #ddd; padding-top: 1rem; }
h3 { font-size: .95rem; margin: 1rem 0 .5rem; color: #555; font-weight: 600; }
p { margin: .3rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin: 1rem 0; }
nav a { color: inherit; text-decoration: none; background: #fff; border: 1px solid #ddd; border-radius: .4rem;
        padding: .15rem .55rem; }
nav a:hover, nav a:focus { border-color: #1f5fa8; color: #1f5fa8; }
nav span, .quiet { color: #777; }
.row { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .8rem; align-items: start; }
@media (max-width: 1100px) { .row { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
@media (max-width: 560px) { .row { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
figure { margin: 0; background: #fff; border: 1px solid #ddd; border-radius: .4rem; overflow: hidden; }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #ececec; }
figcaption { padding: .4rem .6rem .5rem; font-size: .85rem; overflow-wrap: anywhere; }
figcaption b { font-variant-numeric: tabular-nums; }
.key { display: inline-block; width: .9em; height: .9em; border: 3px solid; border-radius: 2px; vertical-align: -.2em;
       box-sizing: border-box; margin: 0 .2em 0 .6em; }
"""


def write_mistakes_page(path, *, title, summary, result, mistakes, threshold, picture_ids, read_image):
    """Write the page: title and summary (lines of text), then for each class what find_mistakes found.

    result: the VOCResult; mistakes: list of ClassMistakes; threshold: the score given to find_mistakes; picture_ids:
    names of the pictures by index; read_image: function from a picture's index to its pixels, uint8 RGB [H, W, 3].
    Whatever comes from the data is escaped.
    """
    cards = _all_cards(mistakes, picture_ids, read_image)
    links, sections = [], []
    for number, (of_class, found) in enumerate(zip(result.classes, mistakes, strict=True)):
        if not found.false_positives and not found.misses:
            continue
        name, ap = escape(of_class.name), _ap(of_class)
        false_positives = _count(found.false_positive_count, "false positive")
        misses = _count(found.miss_count, "miss", "misses")
        links.append(f'<a href="#class-{number}">{name} <span>{ap}</span></a>')
        sections.append(
            f'<section id="class-{number}">\n<h2>{name}</h2>\n'
            f'<p class="quiet">AP {ap} · {_count(of_class.objects, "object")} · at score {threshold:g}: '
            f"{false_positives}, {misses}</p>\n"
            f"{_row('False positives, the most confident first', found.false_positives, cards)}\n"
            f"{_row('Misses, the worst first', found.misses, cards)}\n</section>\n"
        )
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{" · ".join(map(escape, summary))}</p>
<p>Boxes: {_key(DETECTION)}the false detection {_key(TRUTH)}ground truth of the class (thick: a missed object)
{_key(OTHER)}detections of {threshold:g} and more beside a missed object</p>
<nav>{"".join(links) or "No mistakes at all."}</nav>
{"".join(sections)}
</body>
</html>
"""
    path.write_text(page, encoding="utf-8")


def _row(heading, mistakes, cards):
    if not mistakes:
        return f'<h3>{heading}</h3>\n<p class="quiet">none</p>'
    figures = "\n".join(cards[id(mistake)] for mistake in mistakes)
    return f'<h3>{heading}</h3>\n<div class="row">\n{figures}\n</div>'


def _all_cards(mistakes, picture_ids, read_image):
    """{id(mistake): its <figure>}; a picture is read once, however many mistakes it shows."""
    by_picture = {}
    for found in mistakes:
        for mistake in (*found.false_positives, *found.misses):
            by_picture.setdefault(mistake.picture, []).append(mistake)
    cards = {}
    for picture, shown in sorted(by_picture.items()):
        pixels = read_image(picture)
        for mistake in shown:
            cards[id(mistake)] = _card(mistake, draw_mistake(pixels, mistake), str(picture_ids[picture]))
    return cards


def _card(mistake, crop, picture_id):
    score = "" if mistake.missed else f"<b>{mistake.score:.2f}</b> "
    reason = escape(mistake.reason)
    return (
        f'<figure><img src="data:image/jpeg;base64,{_encode(crop)}" alt="{reason}" loading="lazy">'
        f'<figcaption>{score}{reason}<br><span class="quiet">{escape(picture_id)}</span></figcaption></figure>'
    )


def draw_mistake(pixels, mistake):
    """The part of a picture (uint8 RGB [H, W, 3]) around a mistake with its boxes, its longer side 240 pixels."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = _window(mistake, width, height)
    scale = _CROP_SIDE / max(right - left, bottom - top)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    crop = cv2.resize(np.ascontiguousarray(pixels[top:bottom, left:right]), size, interpolation=interpolation)
    layers = [
        (mistake.truth, TRUTH, 2),
        (mistake.detected, OTHER, 2),
        (mistake.box[None], TRUTH if mistake.missed else DETECTION, 3),
    ]
    for boxes, colour, thickness in layers:
        for box in (boxes - 1 - [left, top, left, top]) * scale:
            _draw_box(crop, box, colour, thickness)
    return crop


def _window(mistake, width, height):
    """The part to show, (left, top, right, bottom) in whole pixels: the box with half its size around, 48 at least."""
    x1, y1, x2, y2 = mistake.box - 1
    side = max(x2 - x1, y2 - y1, 1)
    margin = max(side / 2, (48 - side) / 2)
    left, top = int(np.clip(x1 - margin, 0, width - 1)), int(np.clip(y1 - margin, 0, height - 1))
    right, bottom = (
        int(np.ceil(np.clip(x2 + margin, left + 1, width))),
        int(np.ceil(np.clip(y2 + margin, top + 1, height))),
    )
    return left, top, right, bottom


def _draw_box(crop, box, colour, thickness):
    """A box; a thick one gets a dark rim and shows on any ground. Edges at the picture's own rim are kept visible."""
    height, width = crop.shape[:2]
    x1, y1, x2, y2 = (round(float(number)) for number in np.clip(box, -10_000, 10_000))
    x1, y1 = (1 if -3 <= x1 < 1 else x1), (1 if -3 <= y1 < 1 else y1)
    x2 = width - 2 if width - 2 < x2 <= width + 3 else x2
    y2 = height - 2 if height - 2 < y2 <= height + 3 else y2
    if thickness > 2:
        cv2.rectangle(crop, (x1, y1), (x2, y2), (20, 20, 20), thickness + 2)
    cv2.rectangle(crop, (x1, y1), (x2, y2), colour, thickness)


def _encode(pixels):
    # Full colour resolution: halved, it would muddy thin lines.
    settings = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), settings)
    return base64.b64encode(data.tobytes()).decode("ascii")


def _key(colour):
    return f'<span class="key" style="border-color: rgb{colour}"></span>'


def _count(number, one, several=None):
    return f"{number} {one if number == 1 else several or one + 's'}"


def _ap(of_class):
    return "-" if of_class.ap_area != of_class.ap_area else f"{of_class.ap_area:.3f}"
