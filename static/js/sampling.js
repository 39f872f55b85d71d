// The system prompt and settings that somebody sets for every column. Kept in this browser, for each client apart.
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed", "frequency_penalty"];
const WORDS = {
  system: "system prompt", temperature: "temperature", top_p: "top p", max_tokens: "longest answer", stop: "stop texts",
  seed: "seed", frequency_penalty: "repetition",
};

export class Sampling {
  /** `box` has fields named as the settings; `said` is told whenever they change. */
  constructor(box, { key, said }) {
    this.box = box;
    this.key = `playground ${key}`;
    this.summary = box.querySelector("[data-sampling-told]");
    const kept = JSON.parse(box.dataset.sampling || "null") ?? stored(this.key);
    this.fill(kept);
    box.addEventListener("input", () => {
      localStorage.setItem(this.key, JSON.stringify(this.chosen()));
      this.tell(said);
    });
    box.querySelector("[data-forget]").addEventListener("click", () => {
      this.fill({});
      localStorage.removeItem(this.key);
      this.tell(said);
    });
    this.tell(said);
  }

  field(name) { return this.box.querySelector(`[name="${name}"]`); }

  fill(settings) {
    for (const name of [...NUMBERS, "system"]) this.field(name).value = settings[name] ?? "";
    this.field("stop").value = (settings.stop ?? []).join("\n");
  }

  /** What is set, without what was left open. */
  chosen() {
    const found = {};
    if (this.field("system").value.trim()) found.system = this.field("system").value;
    for (const name of NUMBERS) if (this.field(name).value !== "") found[name] = Number(this.field(name).value);
    const stop = this.field("stop").value.split("\n").filter((line) => line.trim());
    if (stop.length) found.stop = stop;
    return found;
  }

  /** False where a value cannot be; then the fields say why. */
  isValid() {
    const wrong = [...this.box.querySelectorAll("input, textarea")].find((field) => !field.checkValidity());
    if (!wrong) return true;
    this.box.open = true;
    wrong.reportValidity();
    return false;
  }

  tell(said) {
    const names = Object.keys(this.chosen());
    this.summary.textContent = names.length ? `You set the ${list(names)}` : "Each column answers with its own";
    said(names);
  }
}

/** What a column answers with, as it says itself: `own` are the settings of a release, `set` those that somebody set here. */
export function says(own, set) {
  const over = own.filter((name) => set.includes(name));
  const left = own.filter((name) => !set.includes(name));
  if (!own.length) return "";
  if (!over.length) return `Answers with its own ${list(own)}.`;
  return `Answers with your ${list(over)} instead of its own.${left.length ? ` Its ${list(left)} ${left.length > 1 ? "stay" : "stays"}.` : ""}`;
}

function list(names) {
  const words = names.map((name) => WORDS[name] ?? name);
  return words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words.at(-1)}` : words[0];
}

function stored(key) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? {};
  } catch {
    return {};
  }
}
