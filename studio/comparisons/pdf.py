"""A report as a PDF: text, tables and charts as vectors, in the interface's own face. What it says is report's."""

import base64
import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from fpdf import FPDF
from fpdf.enums import XPos, YPos
from fpdf.fonts import FontFace, TTFFont

from studio.comparisons.report import Report
from studio.comparisons.verdict_charts import Plot
from studio.comparisons.verdict_table import Column, Row

FONTS = Path(__file__).parent / "fonts"
OTHERS = (
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/TTF/DejaVuSans.ttf",
)
"""For letters that the interface's face lacks, such as Cyrillic, where the machine has this one."""
LACKING = "?"
"""Instead of a letter that no face here has, such as Chinese or an emoji; the page of the report shows those."""
INK, SOFT, FAINT, LINE = (28, 30, 38), (78, 82, 94), (112, 117, 130), (222, 225, 231)
ACCENT = (79, 70, 200)
HUES = {
    1: (84, 72, 214),
    2: (224, 118, 38),
    3: (18, 140, 140),
    4: (200, 50, 140),
    5: (50, 140, 200),
    6: (160, 130, 20),
    7: (30, 110, 70),
}
GREY = (125, 130, 140)
"""On paper, as studio.css draws them in the light theme: a PDF reads no stylesheet."""
MARGIN, WIDTH = 18.0, 174.0
"""Millimetres."""
LONGEST_RECIPE = 20_000


def pdf_of(report: Report) -> bytes:
    sheet = Sheet(report)
    sheet.head()
    sheet.verdict()
    sheet.pieces("Results", report.columns, report.rows)
    sheet.charts()
    sheet.pairs("How it was found out", report.method)
    sheet.further()
    sheet.pairs("What the words mean", report.glossary)
    sheet.recipe()
    return bytes(sheet.output())


class Sheet(FPDF):
    def __init__(self, report: Report):
        super().__init__("portrait", "mm", "A4")
        self.report = report
        self.set_margins(MARGIN, MARGIN)
        self.set_auto_page_break(True, 20)
        self.add_font("inter", "", FONTS / "inter-regular.ttf")
        self.add_font("inter", "B", FONTS / "inter-semibold.ttf")
        faces = ["inter"]
        if other := next((path for path in OTHERS if Path(path).is_file()), None):
            self.add_font("other", "", other)
            self.set_fallback_fonts(["other"], exact_match=False)
            faces.append("other")
        embedded = [font for name in faces if isinstance(font := self.fonts[name], TTFFont)]
        self.letters = {letter for font in embedded for letter in font.cmap}
        self.set_title(self.said(report.comparison.name))
        self.set_creator("Adapter Studio")
        self.set_creation_date(report.at)
        self.add_page()

    def said(self, text: str) -> str:
        """The text in letters that there are. Marks that turn the direction of reading, and control characters, are left out."""
        kept = (letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
        return "".join(
            letter if letter == "\n" else " " if letter == "\t" else letter if ord(letter) in self.letters else LACKING for letter in kept
        )

    def footer(self) -> None:
        self.set_y(-14)
        self.face(8, FAINT)
        self.cell(WIDTH - 20, 5, self.said(f"{self.report.comparison.name[:80]} · {self.report.at:%d %B %Y}"))
        self.cell(20, 5, str(self.page_no()), align="R")

    def face(self, size: float, colour: tuple[int, int, int] = INK, *, bold: bool = False) -> None:
        self.set_font("inter", "B" if bold else "", size)
        self.set_text_color(*colour)

    def write_block(self, text: str, size: float, colour: tuple[int, int, int] = INK, *, bold: bool = False, after: float = 2.0) -> None:
        self.face(size, colour, bold=bold)
        self.multi_cell(WIDTH, size * 0.53, self.said(text), new_x=XPos.LMARGIN, new_y=YPos.NEXT, align="L")
        self.ln(after)

    def title_block(self, text: str, room: float = 30.0) -> None:
        """A heading that does not stand alone at the foot of a page."""
        self.ln(4)
        if self.will_page_break(room):
            self.add_page()
        self.write_block(text, 13, bold=True, after=1.5)

    def head(self) -> None:
        report = self.report
        if report.logo:
            height = min(16.0, report.logo.height * 60.0 / max(report.logo.width, 1))
            self.image(io.BytesIO(base64.b64decode(report.logo.image)), x=MARGIN, y=MARGIN, h=height)
            self.set_y(MARGIN + height + 6)
        self.write_block(f"{report.client} · {report.comparison.project.name} · {report.at:%d %B %Y}", 9, FAINT, after=1)
        self.write_block(report.comparison.name, 20, bold=True, after=1)
        self.write_block(report.question, 11, SOFT, after=4)

    def verdict(self) -> None:
        verdict = self.report.verdict
        self.write_block(verdict.sentence_shown, 14, INK if verdict.sureness == "sure" else SOFT, bold=True, after=2)
        self.write_block(verdict.sureness_words, 10, SOFT, after=2)
        for said in [*verdict.more, *([self.report.preferred] if self.report.preferred else [])]:
            self.write_block(f"– {said}", 10, SOFT, after=1)
        for said in verdict.advice:
            self.write_block(said, 10, ACCENT, after=1)

    def table_of(self, columns: Sequence[Column], rows: Sequence[Row]) -> None:
        cells = [[cell for _, cell in row.cells] for row in rows]
        lines = [["Arm", *(column.title for column in columns)]]
        lines += [
            [row.arm.name[:60], *(f"{cell.text}\n{cell.note}" if cell.note else cell.text for cell in line)]
            for row, line in zip(rows, cells, strict=True)
        ]
        best = {(number + 1, place + 1) for number, line in enumerate(cells) for place, cell in enumerate(line) if cell.is_best}
        self.drawn(lines, (34.0, *[(WIDTH - 34.0) / len(columns)] * len(columns)), frozenset(best))

    def further(self, each: int = 4) -> None:
        """A figure in each line with what it means, and an arm in each column; more arms stand in further tables."""
        further, arms = self.report.further, self.report.verdict.measured
        if not further:
            return
        self.title_block("Everything else that was measured", 40)
        for begin in range(0, len(arms), each):
            shown = slice(begin, begin + each)
            room = WIDTH - 78.0
            lines = [["Figure", *(arm.name[:60] for arm in arms[shown])]]
            lines += [
                [f"{row.column.title}: {row.column.hint}", *(" ".join([cell.text, cell.note]).strip() for _, cell in row.cells[shown])]
                for row in further
            ]
            self.drawn(lines, (78.0, *[room / (len(lines[0]) - 1)] * (len(lines[0]) - 1)))
            self.ln(4)

    def drawn(self, lines: Sequence[Sequence[str]], widths: tuple[float, ...], best: frozenset[tuple[int, int]] = frozenset()) -> None:
        """A table whose first line is its head; `best` has (line, column) of what is set bold."""
        self.face(8.5)
        self.set_draw_color(*LINE)
        self.set_fill_color(255, 255, 255)
        head = FontFace(emphasis="BOLD", color=SOFT, size_pt=8)
        bold = FontFace(emphasis="BOLD", color=INK)
        with self.table(
            width=WIDTH,
            col_widths=widths,
            line_height=4.4,
            borders_layout="HORIZONTAL_LINES",
            headings_style=head,
            text_align=("LEFT", *["RIGHT"] * (len(widths) - 1)),
            padding=1.2,
        ) as table:
            for number, line in enumerate(lines):
                row = table.row()
                for place, text in enumerate(line):
                    row.cell(self.said(text), style=bold if (number, place) in best else None)

    def pieces(self, title: str, columns: Sequence[Column], rows: Sequence[Row], each: int = 8) -> None:
        """A table on paper that is as wide as it is: further columns stand in further tables."""
        if not columns:
            return
        self.title_block(title, 40)
        for begin in range(0, len(columns), each):
            place = slice(begin, begin + each)
            self.table_of(columns[place], [Row(row.arm, row.cells[place]) for row in rows])
            self.ln(4)

    def charts(self) -> None:
        if not self.report.charts:
            return
        size = (WIDTH - 8) / 2
        scale = size / self.report.charts[0].width
        height = self.report.charts[0].height * scale
        self.title_block("Pictures", height + 30)
        top = self.get_y()
        for place, chart in enumerate(self.report.charts):
            self.chart(chart, MARGIN + place * (size + 8), top, scale)
        self.set_xy(MARGIN, top + height + 8)
        chart = self.report.charts[0]
        self.write_block("; ".join(f"{spot.letter}: {spot.name}" for spot in chart.spots), 8.5, SOFT, after=0)
        self.write_block(f"{chart.y_title}: {chart.y_better} is better. The lines reach to the ends of the 95 % intervals.", 8.5, FAINT)

    def chart(self, chart: Plot, left: float, top: float, scale: float) -> None:
        def across(x: float) -> float:
            return left + x * scale

        def down(y: float) -> float:
            return top + 5 + y * scale

        self.face(9, bold=True)
        self.text(left, top + 3, self.said(chart.title))
        self.set_line_width(0.2)
        self.set_draw_color(*LINE)
        self.face(6.5, FAINT)
        for tick in chart.ys:
            self.line(across(chart.edge_left), down(tick.at), across(chart.edge_right), down(tick.at))
            self.text(across(chart.edge_left) - 1.5 - self.get_string_width(tick.text), down(tick.at) + 0.8, tick.text)
        for tick in chart.xs:
            self.text(across(tick.at) - self.get_string_width(tick.text) / 2, down(chart.edge_bottom) + 4, tick.text)
        title = self.said(chart.x_title)
        self.text(across(chart.edge_right) - self.get_string_width(title), down(chart.edge_bottom) + 8, title)
        for spot in chart.spots:
            hue = HUES.get(spot.dot, GREY)
            self.set_draw_color(*hue)
            self.set_fill_color(*hue)
            self.set_line_width(0.5)
            self.line(across(spot.left), down(spot.y), across(spot.right), down(spot.y))
            self.line(across(spot.x), down(spot.top), across(spot.x), down(spot.bottom))
            self.circle(across(spot.x), down(spot.y), 0.9, style="F")
            self.face(7.5, bold=True)
            self.text(across(spot.x) + 1.8, down(spot.y) - 1.6, spot.letter)

    def pairs(self, title: str, told: Sequence[tuple[str, str]]) -> None:
        self.title_block(title)
        for what, how in told:
            if self.will_page_break(12):
                self.add_page()
            top = self.get_y()
            self.face(9, SOFT, bold=True)
            self.multi_cell(40, 4.8, self.said(what), new_x=XPos.LMARGIN, new_y=YPos.NEXT, align="L")
            below = self.get_y()
            self.set_xy(MARGIN + 42, top)
            self.face(9)
            self.multi_cell(WIDTH - 42, 4.8, self.said(how), new_x=XPos.LMARGIN, new_y=YPos.NEXT, align="L")
            self.set_y(max(self.get_y(), below) + 1)

    def recipe(self) -> None:
        self.title_block("How to do it again")
        self.write_block("This recipe starts the same comparison again in Adapter Studio.", 9, SOFT)
        self.face(7.5, SOFT)
        self.multi_cell(WIDTH, 3.6, self.said(self.report.recipe[:LONGEST_RECIPE]), new_x=XPos.LMARGIN, new_y=YPos.NEXT, align="L")
