"""Rows of pictures on one sheet, titled."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def draw_sheet(
    rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], columns: int = 1, zoom: int = 1, head: int = 16
) -> Image.Image:
    """A PIL image of `rows` of pictures, `columns` rows side by side, titles above them.

    Args:
        head: height of the titles' line, pixels. A title that is wider than its picture is cut.
    """
    wide, high = (max(picture.size[axis] for row in rows for picture in row) * zoom for axis in (0, 1))
    gap, font = 4, ImageFont.load_default(head - 6)
    width, height = len(titles) * (wide + gap) + 8, high + gap
    sheet = Image.new("RGB", (columns * width, -(-len(rows) // columns) * height + head), "white")
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        for place, picture in enumerate(row):
            x, y = index % columns * width + place * (wide + gap), index // columns * height + head
            sheet.paste(picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST), (x, y))
            if index < columns:
                draw.text((x + 2, 2), fitting(titles[place], wide, font), fill="black", font=font)
    return sheet


def fitting(title: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of a title as `width` pixels hold."""
    while title and font.getlength(title) > width:
        title = title[:-1]
    return title
