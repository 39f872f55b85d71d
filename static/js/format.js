// Figures as people read them: 1.48, 0.0002, 98 MB, 1,200, 11 min. The exact value stays in titles and tables.
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (value) => (value == null ? "–" : whole.format(value));

export function figure(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return whole.format(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.01) return value.toFixed(size < 1 ? 3 : 2);
  return size >= 1e-5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

export function bytes(value) {
  if (value == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const step = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, value)) / 3));
  const scaled = value / 1000 ** step;
  return `${step && scaled < 10 ? scaled.toFixed(1) : Math.round(scaled)} ${units[step]}`;
}

/** Figures for the ticks of an axis: as few digits as say each of them exactly. */
export function distinct(values) {
  const most = Math.max(...values.map(Math.abs));
  for (let digits = 0; digits < 5; digits += 1) {
    const texts = values.map((value) => (value === 0 ? "0" : most < 0.01 ? value.toExponential(digits) : value.toFixed(digits)));
    if (texts.every((text, at) => Math.abs(Number(text) - values[at]) < most * 1e-6)) return texts;
  }
  return values.map(figure);
}

/** 0.953 as 95 %. */
export function share(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  const percent = value * 100;
  return `${percent !== 0 && Math.abs(percent) < 1 ? percent.toFixed(1) : Math.round(percent)} %`;
}
