"""Rows of pictures on one sheet, titled."""

from collections.abc import Sequence

from PIL import Image, ImageDraw


def draw_sheet(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], columns: int = 1, zoom: int = 1) -> Image.Image:
    """A PIL image of `rows` of pictures, titled above, `columns` rows side by side."""
    wide, high = (max(picture.size[axis] for row in rows for picture in row) * zoom for axis in (0, 1))
    gap, head = 4, 16
    width, height = len(titles) * (wide + gap) + 8, high + gap
    sheet = Image.new("RGB", (columns * width, -(-len(rows) // columns) * height + head), "white")
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        for place, picture in enumerate(row):
            x, y = index % columns * width + place * (wide + gap), index // columns * height + head
            sheet.paste(picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST), (x, y))
            if index < columns:
                draw.text((x + 2, 2), titles[place], fill="black")
    return sheet
