// Which answer is best: a bar of buttons under the columns, and the keys 1 to 4, 0 for none, once every column has answered.
import { post, toast } from "./answers.js";
import { make } from "./dom.js";

export class Voting {
  /** `bar` stands hidden below the columns; `send(best)` gives the fields of a vote, and `done(told)` hears what came of it. */
  constructor(bar, { url, send, done }) {
    this.bar = bar;
    this.buttons = bar.querySelector("[data-vote-buttons]");
    Object.assign(this, { url, send, done });
    document.addEventListener("keydown", (event) => {
      if (this.bar.hidden || event.ctrlKey || event.metaKey || event.altKey || !/^[0-9]$/.test(event.key)) return;
      if (event.target.closest?.("input, textarea, select, dialog")) return;
      const button = this.buttons.querySelector(`[data-best="${event.key}"]`);
      if (!button || button.disabled) return;
      event.preventDefault();
      button.click();
    });
  }

  /** `names` of the columns, in their order. */
  offer(names) {
    this.buttons.replaceChildren(...names.map((name, at) => this.button(at + 1, name)), this.button(0, "None is better"));
    this.bar.hidden = false;
  }

  withdraw() {
    this.bar.hidden = true;
  }

  button(number, name) {
    const button = make("button", "button compact");
    button.type = "button";
    button.dataset.best = number;
    button.append(make("kbd", "", String(number)), make("span", "clip", name));
    button.addEventListener("click", () => this.cast(number));
    return button;
  }

  async cast(number) {
    for (const button of this.buttons.children) button.disabled = true;
    const told = await post(this.url, this.send(number ? number - 1 : null));
    for (const button of this.buttons.children) button.disabled = false;
    if (!told) return;
    this.withdraw();
    toast(told.told, "success");
    this.done(told);
  }
}
