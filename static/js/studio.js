// What every page does: starts the small parts below, and again for what htmx swaps in.
import { copyOnClick } from "./copy.js";
import { dialogs, menus, tooltips } from "./floats.js";
import { keys } from "./keys.js";
import { palette } from "./palette.js";
import { drawer, fold, theme } from "./rail.js";
import { drawSparks } from "./sparks.js";
import { tabs } from "./tabs.js";
import { tellTimes } from "./times.js";
import { toasts } from "./toasts.js";
import { uploads } from "./upload.js";
import { setWidths } from "./widths.js";

for (const start of [theme, fold, drawer, dialogs, menus, tooltips, tabs, toasts, uploads, copyOnClick, palette, keys]) start();

function draw() {
  setWidths(document);
  drawSparks(document);
  tellTimes();
}
draw();
setInterval(tellTimes, 30_000);
document.addEventListener("htmx:after:swap", draw);
