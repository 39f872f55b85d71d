// Lengths that come from figures, set through the CSSOM because the page's policy allows no style attributes.
// data-left, data-bottom and data-width: shares from 0 to 1; data-height: an amount out of data-of; data-grow: parts of a bar, with data-limit on its box.
export function setWidths(root) {
  for (const each of root.querySelectorAll("[data-left]")) each.style.left = percent(each.dataset.left);
  for (const each of root.querySelectorAll("[data-bottom]")) each.style.bottom = percent(each.dataset.bottom);
  for (const each of root.querySelectorAll("[data-width]")) each.style.width = percent(each.dataset.width);
  for (const each of root.querySelectorAll("[data-height]")) each.style.height = percent(each.dataset.height / (each.dataset.of || 1));
  for (const box of root.querySelectorAll("[data-parts]")) setParts(box);
  for (const meter of root.querySelectorAll("[data-run-memory]")) setMeter(meter);
}

/** Bytes used (data-peak) against an estimated range (data-low to data-high). */
export function setMeter({ dataset, children }) {
  const [range, fill] = children;
  const [low, high, peak] = [dataset.low, dataset.high, dataset.peak].map((bytes) => Number(bytes || 0));
  const most = Math.max(high, peak, 1) * 1.25;
  range.style.left = percent(low / most);
  range.style.width = percent((high - low) / most);
  fill.style.width = percent(peak / most);
}

const percent = (share) => `${Math.min(1, Math.max(0, Number(share))) * 100}%`;

function setParts(box) {
  const bar = box.querySelector(".parts-bar");
  let sum = 0;
  for (const part of bar.querySelectorAll("[data-grow]")) {
    part.style.flexGrow = part.dataset.grow;
    sum += Number(part.dataset.grow);
  }
  const limit = Number(box.dataset.limit || 0);
  bar.querySelector(".part-free, .parts-limit")?.remove();
  if (!limit) return;
  const mark = document.createElement("span");
  mark.className = sum < limit ? "part part-free" : "parts-limit";
  if (sum < limit) mark.style.flexGrow = limit - sum;
  else mark.style.left = percent(limit / sum);
  bar.append(mark);
}
