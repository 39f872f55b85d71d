"""What a browser test looks at on every page: a picture, what axe-core finds, and that nothing went wrong unseen."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Page, Response

AXE = (Path(__file__).parent / "browser" / "axe.min.js").read_text()
IS_THERE = "() => typeof axe === 'object'"
# Its preload would add a style element, which the page's policy reports; and of what is in order nothing is written down.
FIND = """
tags => axe.run(document, {runOnly: {type: 'tag', values: tags}, preload: false, resultTypes: ['violations']}).then(
  found => found.violations.map(({id, help, nodes}) => ({id, help, nodes: nodes.map(node => node.target[0])}))
)
"""
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PICTURES = Path(__file__).resolve().parents[1] / "build" / "screenshots"
DESK, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


class Visit:
    """One person's way through the pages. `look` at each page; `mistakes` has every barrier, and all that the browser complained about."""

    def __init__(self, page: Page, *, name: str):
        self.page = page
        self.folder = PICTURES / name
        self.pictures = 0
        self.mistakes: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*.png"):
            old.unlink()
        page.set_viewport_size(DESK)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.mistakes.append(f"{page.url}: {error}"))
        page.on("response", self._judge)

    def look(self, name: str, *, everywhere: bool = False, whole: bool = True) -> None:
        """Takes a picture, of the `whole` page or of one screen, and lets axe look for barriers.

        `everywhere` does so in the dark and on a phone, too.
        """
        self._look(name, whole=whole)
        if not everywhere:
            return
        with self._dark():
            self._look(f"{name}-dark")
        self.page.set_viewport_size(PHONE)
        self._look(f"{name}-phone")
        if self._scrolls_sideways():
            self.mistakes.append(f"{name} is wider than a phone")
        with self._dark():
            self._look(f"{name}-phone-dark")
        self.page.set_viewport_size(DESK)

    def _look(self, name: str, *, whole: bool = True) -> None:
        self.pictures += 1
        self.page.wait_for_timeout(200)  # colours fade over 150 ms, and axe would measure one half way
        self.page.evaluate("scrollTo(0, 0)")  # what sticks to the top would else stand in the middle of the picture
        self.page.screenshot(path=self.folder / f"{self.pictures:02}-{name}.png", full_page=whole)
        self.mistakes += [f"{name}: {barrier}" for barrier in barriers(self.page)]

    @contextmanager
    def _dark(self) -> Iterator[None]:
        self.page.emulate_media(color_scheme="dark")
        yield
        self.page.emulate_media(color_scheme="light")

    def _scrolls_sideways(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def _hear(self, message: ConsoleMessage) -> None:
        """Reports against the content security policy come this way, too."""
        if message.type in ("error", "warning"):
            self.mistakes.append(f"{self.page.url}: {message.text}")

    def _judge(self, response: Response) -> None:
        if response.status >= 400:
            self.mistakes.append(f"{response.status} for {response.url}")


def barriers(page: Page) -> list[str]:
    """What axe-core finds on the page as it stands: the rule, and where."""
    if not page.evaluate(IS_THERE):
        page.evaluate(AXE)
    return [f"{rule['id']}: {rule['nodes']} {rule['help']}" for rule in page.evaluate(FIND, TAGS)]
