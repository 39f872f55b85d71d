// <svg class="sparkline" data-points="1.9,1.6,1.5"> becomes a line; the newest value ends at the right.
export function drawSparks(root) {
  for (const svg of root.querySelectorAll("svg.sparkline[data-points]")) {
    const values = svg.dataset.points.split(",").map(Number).filter(Number.isFinite);
    if (values.length < 2) continue;
    const low = Math.min(...values);
    const height = Math.max(...values) - low || 1;
    const points = values.map((value, at) => `${(at / (values.length - 1)) * 94 + 1},${22 - ((value - low) / height) * 20}`);
    svg.setAttribute("viewBox", "0 0 96 24");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    line.setAttribute("points", points.join(" "));
    svg.replaceChildren(line);
  }
}
