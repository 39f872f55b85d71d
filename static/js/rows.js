// Rows of the dataset as the model reads them: what it learns from is tinted and underlined, special tokens stand in frames.
// <div data-run-rows> with a tab and a panel for each name; the newest event of a name replaces the one before.
import { make } from "./dom.js";
import { count, figure } from "./format.js";

// <|im_start|>, <s>, </s>, <bos>, <start_of_turn>, [INST], [/INST] and their like; a row may well hold such words itself, and they look the same
const SPECIAL = /(<\|[^|<>\s]{1,40}\|>|<\/?(?:s|unk|pad|bos|eos|mask|think|start_of_turn|end_of_turn)>|\[\/?(?:INST|SYS|AVAILABLE_TOOLS|TOOL_CALLS)\])/;
const MOST_PIECES = 400;

export class Rows {
  constructor(box) {
    this.box = box;
  }

  append(events) {
    if (!this.box) return;
    for (const event of events) if (event.type === "rows") this.show(event);
  }

  show({ name, step, rows }) {
    const panel = [...this.box.querySelectorAll("[data-rows]")].find((each) => each.dataset.rows === name);
    if (!panel || !Array.isArray(rows)) return;
    this.box.hidden = false;
    const words = name === "first_batch" ? "Rows of the first batch." : `Of the validation rows, at step ${count(step)}.`;
    panel.replaceChildren(make("p", "help", words), ...rows.map(row));
  }
}

function row({ pieces, loss }) {
  const box = make("article", "shown-row");
  if (Number.isFinite(loss)) {
    const told = make("p", "row-loss", "Loss ");
    const value = make("b", "", figure(loss));
    value.title = loss;
    told.append(value);
    box.append(told);
  }
  const text = make("div", "tokens");
  for (const piece of (Array.isArray(pieces) ? pieces : []).slice(0, MOST_PIECES)) text.append(...drawn(piece));
  box.append(text);
  return box;
}

function* drawn(piece) {
  if (!Array.isArray(piece)) return;
  const [words, learnt] = piece;
  const box = make(learnt ? "mark" : "span", learnt ? "tok-trained" : "tok-masked");
  if (learnt) box.append(make("span", "visually-hidden", "Learnt: "));
  for (const part of String(words).split(SPECIAL)) {
    if (SPECIAL.test(part)) box.append(make("span", "tok-special", part));
    else if (part) box.append(part);
  }
  if (learnt) box.append(make("span", "visually-hidden", " End of what is learnt. "));
  yield box;
}
