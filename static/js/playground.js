// The playground: one question to each column, answers streaming beside each other. Of its parts a page has what its form has:
// <form data-playground data-url> with [data-answers data-target] columns; beside it, for members, settings, a picker, votes and sharing.
import { Column, post, toast } from "./answers.js";
import { mark } from "./differences.js";
import { make } from "./dom.js";
import { picker } from "./picker.js";
import { Sampling, says } from "./sampling.js";
import { Voting } from "./voting.js";

const form = document.querySelector("[data-playground]");
const MOST = 512; // tokens of one answer, where nobody can set it

class Playground {
  constructor() {
    this.prompt = form.querySelector('textarea[name="prompt"]');
    this.send = form.querySelector('button[type="submit"]');
    this.stop = form.querySelector("[data-stop]");
    this.box = form.querySelector(".answers");
    this.sampling = null;
    this.differences = document.querySelector("[data-differences]");
    this.shareButton = document.querySelector("[data-share]");
    this.columns = [...this.box.querySelectorAll("[data-answers]")].map((box) => new Column(box, this));
    this.turns = []; // [{prompt, answers: Map of column to what it told}]
    this.running = null;
    this.round = form.dataset.round ?? "";
    this.composer();
    const settings = document.querySelector("[data-sampling]");
    if (settings) this.sampling = new Sampling(settings, { key: form.dataset.client ?? "", said: (names) => this.tell(names) });
    this.unanswered = form.querySelector("[data-unanswered]"); // what a blind round says where it cannot be voted on
    const bar = form.querySelector("[data-vote]");
    if (bar) this.voting = new Voting(bar, { url: bar.dataset.vote, send: (best) => this.vote(best), done: (told) => this.voted(told) });
    this.tools();
    this.restore();
    this.arrange();
    this.send.disabled = false; // before this script the form would be sent as a page of its own, and the question lost
  }

  get url() { return form.dataset.url; }

  /** What is sent with a question besides the conversation. */
  settings() {
    if (!this.sampling) return { max_tokens: MOST };
    return { settings: this.sampling.chosen(), client: form.dataset.client ?? "", round: this.round };
  }

  composer() {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const question = this.prompt.value.trim();
      if (question && !this.running && (this.sampling?.isValid() ?? true)) this.ask(question);
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    this.stop.addEventListener("click", () => this.running?.abort());
    form.querySelector("[data-clear]")?.addEventListener("click", () => this.clear());
  }

  async ask(question) {
    this.prompt.value = "";
    this.running = new AbortController();
    const turn = { prompt: question, answers: new Map() };
    this.turns.push(turn);
    this.withdraw();
    this.busy(true);
    const asked = this.columns.map(async (column) => turn.answers.set(column, await column.ask(question, this.running.signal)));
    await Promise.all(asked);
    this.running = null;
    this.busy(false);
    this.compare();
    if (this.turns.at(-1) === turn) this.ended(turn);
  }

  busy(on) {
    this.send.hidden = on;
    this.stop.hidden = !on;
    for (const button of this.box.querySelectorAll("[data-move], [data-remove]")) button.disabled = on;
    this.arrange();
  }

  /** Every column has ended: what was said can be voted on and shared. */
  ended(turn) {
    const answers = this.columns.map((column) => turn.answers.get(column));
    const whole = answers.every((told) => told?.text && !told.error);
    if (this.unanswered) this.unanswered.hidden = whole || !this.round;
    if (this.voting && answers.length > 1 && whole && form.dataset.voted !== "yes") {
      this.voting.offer(this.columns.map((column) => column.title));
      if (this.round) {
        form.querySelector("[data-vote]").focus();
        return;
      }
    }
    this.prompt.focus();
  }

  clear() {
    this.running?.abort();
    this.turns = [];
    for (const column of this.columns) column.clear();
    this.withdraw();
    this.arrange();
    this.prompt.focus();
  }

  /** What was said last is not voted on any more. */
  withdraw() {
    this.voting?.withdraw();
    if (this.unanswered) this.unanswered.hidden = true;
  }

  /** Words that the first column does not have are marked in the others. */
  compare() {
    const on = this.differences?.getAttribute("aria-pressed") === "true";
    if (!this.differences) return;
    for (const { answers } of this.turns) {
      const shown = this.columns.map((column) => answers.get(column)).filter((told) => told?.shown);
      if (answers.get(this.columns[0])?.shown) mark(shown.map(({ shown: { answer }, text }) => ({ box: answer, text })), on);
    }
  }

  // ── Columns ──

  tools() {
    this.differences?.addEventListener("click", () => {
      const on = this.differences.getAttribute("aria-pressed") !== "true";
      this.differences.setAttribute("aria-pressed", on);
      this.compare();
    });
    this.shareButton?.addEventListener("click", () => this.share());
    document.querySelector("[data-blind]")?.addEventListener("click", () => {
      const address = new URL(location.href);
      if (this.round || address.searchParams.has("blind")) address.searchParams.delete("blind");
      else address.searchParams.set("blind", "1");
      location.assign(address);
    });
    for (const button of form.querySelectorAll("[data-again]")) button.addEventListener("click", () => location.reload());
    const dialog = document.querySelector("[data-picker]");
    if (dialog) picker(dialog, { taken: () => this.columns.map((column) => column.target), choose: (target) => this.add(target) });
    this.box.addEventListener("click", (event) => {
      const column = this.columns.find(({ box }) => box.contains(event.target));
      const move = event.target.closest("[data-move]");
      if (move) this.move(column, Number(move.dataset.move));
      if (event.target.closest("[data-remove]")) this.remove(column);
    });
  }

  async add(target) {
    const response = await fetch(`${form.dataset.columnUrl}?${new URLSearchParams({ column: target, client: form.dataset.client })}`);
    if (!response.ok) return toast("It could not be added. Load the page again.", "error");
    const box = document.createRange().createContextualFragment(await response.text()).querySelector("[data-answers]");
    this.box.append(box);
    this.columns.push(new Column(box, this));
    this.changed();
    box.querySelector("[data-remove]").focus();
  }

  remove(column) {
    column.running?.abort();
    const at = this.columns.indexOf(column);
    this.columns.splice(at, 1);
    column.box.remove();
    this.changed();
    this.columns[Math.min(at, this.columns.length - 1)].box.querySelector("[data-remove]").focus();
  }

  move(column, by) {
    const at = this.columns.indexOf(column);
    const other = this.columns[at + by];
    if (!other) return;
    this.columns[at] = other;
    this.columns[at + by] = column;
    if (by < 0) other.box.before(column.box);
    else other.box.after(column.box);
    this.changed();
    const again = column.box.querySelector(`[data-move="${by}"]`);
    (again.disabled ? column.box.querySelector(`[data-move="${-by}"]`) : again).focus();
  }

  changed() {
    this.withdraw();
    this.remember();
    this.arrange();
    this.compare();
    this.tell(this.sampling ? Object.keys(this.sampling.chosen()) : []);
  }

  /** The columns stand in the address, so that a reload and a link keep them. */
  remember() {
    history.replaceState(null, "", `?${this.query()}`);
  }

  query() {
    const query = new URLSearchParams({ client: form.dataset.client });
    for (const column of this.columns) query.append("column", column.target);
    return query.toString().replaceAll("%3A", ":");
  }

  /** What can be pressed as things stand. */
  arrange() {
    this.box.dataset.count = this.columns.length;
    const said = this.turns.some(({ answers }) => answers.size);
    this.columns.forEach(({ box }, at) => {
      const buttons = { '[data-move="-1"]': at === 0, '[data-move="1"]': at === this.columns.length - 1, "[data-remove]": this.columns.length < 2 };
      for (const [which, never] of Object.entries(buttons)) {
        const button = box.querySelector(which);
        if (button) button.disabled = never || this.running !== null;
      }
    });
    const whole = document.querySelector("[data-whole-set]");
    if (whole) whole.search = this.query();
    const more = document.querySelector("[data-add]");
    if (more) more.disabled = this.columns.length >= Number(form.dataset.most) || this.running !== null;
    const blind = document.querySelector("[data-blind]");
    if (blind) {
      blind.disabled = this.columns.length < 2;
      blind.title = blind.disabled ? "It takes two columns" : "";
    }
    if (this.shareButton) this.shareButton.disabled = !said || this.running !== null || this.round !== "";
  }

  /** Each column says with whose settings it answers. */
  tell(names) {
    for (const { box } of this.columns) {
      const words = box.querySelector("[data-says]");
      if (!words) continue;
      words.textContent = says(box.dataset.own ? box.dataset.own.split(" ") : [], names);
      words.hidden = !words.textContent;
    }
  }

  // ── What becomes of answers ──

  /** A button below an answer: the conversation up to it becomes a row that is added to a dataset's draft. */
  offer(column, tools, messages) {
    const choice = form.querySelector("[data-keep]");
    if (!choice || this.round) return;
    const button = make("button", "button compact quiet", "Good: keep it");
    button.type = "button";
    button.addEventListener("click", async () => {
      button.disabled = true;
      const told = await post(form.dataset.keepUrl, { dataset: choice.value, client: form.dataset.client ?? "", target: column.target, messages: JSON.stringify(messages) });
      button.disabled = told !== null;
      if (told) {
        button.textContent = "Kept";
        toast(told.kept, "success");
      }
    });
    tools.append(button);
  }

  vote(best) {
    const turn = this.turns.at(-1);
    const fields = [["prompt", turn.prompt], ["best", best ?? ""], ["client", form.dataset.client]];
    if (this.round) fields.push(["round", this.round]);
    else for (const column of this.columns) fields.push(["column", column.target]);
    for (const column of this.columns) fields.push(["answer", turn.answers.get(column).text]);
    return fields;
  }

  /** In a blind round the names are told now. */
  voted(told) {
    if (!this.round) return this.prompt.focus();
    this.round = "";
    form.dataset.voted = "yes";
    told.columns.forEach(({ target, title, note, method }, at) => {
      const { box } = this.columns[at];
      box.dataset.target = target;
      box.setAttribute("aria-label", title);
      box.querySelector("h2").textContent = title;
      box.querySelector("[data-note]").textContent = note;
      box.querySelector(".dot").className = `dot method-${method}`;
      if (told.best === at) box.querySelector("[data-best-mark]").hidden = false;
    });
    form.querySelector("[data-revealed]").hidden = false;
    form.querySelector("[data-revealed] [data-again]").focus();
    this.arrange();
  }

  async share() {
    const turns = this.turns.map(({ prompt, answers }) => ({
      prompt,
      answers: this.columns.map((column) => {
        const told = answers.get(column);
        if (!told) return null;
        const { text, tokens = null, seconds = null, first = null, error = "" } = told;
        return { text, tokens, seconds, first, error: error ?? "" };
      }),
    }));
    const fields = this.columns.map((column) => ["column", column.target]);
    fields.push(["client", form.dataset.client], ["turns", JSON.stringify(turns)], ["settings", JSON.stringify(this.sampling.chosen())]);
    const told = await post(this.shareButton.dataset.share, fields);
    if (told) location.assign(told.url);
  }

  /** A shared conversation that goes on. */
  restore() {
    const kept = document.getElementById("talk-data");
    if (!kept) return;
    for (const { prompt, answers } of JSON.parse(kept.textContent)) {
      const turn = { prompt, answers: new Map() };
      this.columns.forEach((column, at) => {
        column.restore(prompt, answers[at]);
        if (answers[at]) turn.answers.set(column, answers[at]);
      });
      this.turns.push(turn);
    }
    this.compare();
  }
}

if (form) new Playground();
