// <time data-relative datetime="…"> reads "3 min ago"; the absolute time is its title. Also words for spans.
const words = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const UNITS = [["day", 86_400], ["hour", 3600], ["minute", 60]];

export function tellTimes() {
  for (const each of document.querySelectorAll("time[data-relative]")) {
    const at = new Date(each.dateTime);
    each.title ||= at.toLocaleString();
    each.textContent = relative((at - Date.now()) / 1000, at);
  }
}

function relative(seconds, at) {
  if (Math.abs(seconds) < 45) return "just now";
  if (Math.abs(seconds) > 30 * 86_400) return at.toLocaleDateString("en", { day: "numeric", month: "short", year: "numeric" });
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? ["minute", 60];
  return words.format(Math.round(seconds / size), unit).replace(".", "");
}

/** 42 s, 11 min, 2 h 5 min. */
export function span(seconds) {
  if (seconds < 1) return "under 1 s";
  if (seconds < 90) return `${Math.round(seconds)}\u00a0s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)}\u00a0min`;
  const minutes = Math.round(seconds / 60);
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
}
