"""Where `mix_grid` draws the cells of its rows."""

from adautomix.pictures.image_grid import GridLayout
from adautomix.pictures.mix_rows import MixColumns, stack_height


class MixPositions:
    """Pixel positions in a picture of `rows` mixes of at most `ways` sources."""

    def __init__(self, ways: int, rows: int) -> None:
        self.columns = MixColumns(ways)
        self.height = stack_height(self.columns, rows)
        self.layout = GridLayout(self.columns.widths, self.height * (1,))
        stacks = -(-rows // self.height)
        self.size = (stacks * self.layout.size[0], self.layout.size[1])

    def x(self, column: int, row: int = 0) -> int:
        """Return the left edge of a column in the stack of a row."""
        return row // self.height * self.layout.size[0] + self.layout.left(column)

    def y(self, row: int) -> int:
        """Return the top edge of a row."""
        return self.layout.top(row % self.height)
