// One column of the playground: its conversation, and the answer that streams into it as JSON lines.
import { icon, make } from "./dom.js";

const STATES = {
  "preparing the model": "Preparing the model. The first answer takes longest.",
  "waiting for a turn": "Waiting for its turn: others are being answered.",
  "adding the adapter": "Putting the adapter on.",
  answering: "Reading the question.",
};

export class Column {
  /** `page` has url, and settings() of what else is sent with a question. */
  constructor(box, page) {
    this.box = box;
    this.page = page;
    this.chat = box.querySelector("[data-chat]");
    this.stop = box.querySelector("[data-stop-one]");
    this.stop?.addEventListener("click", () => this.running?.abort());
    this.clear();
  }

  get target() { return this.box.dataset.target; }
  get title() { return this.box.querySelector("h2").textContent; }

  clear() {
    this.running?.abort();
    this.messages = [];
    this.chat.replaceChildren();
  }

  /** What came of one question, once it has ended: `{text, tokens, seconds, first, error}`. */
  async ask(question, signal) {
    this.running = new AbortController();
    if (this.stop) this.stop.hidden = false;
    const told = { text: "", error: "" };
    const messages = this.messages;
    const shown = this.show(question);
    shown.answer.dataset.streaming = "";
    messages.push({ role: "user", content: question });
    try {
      const response = await fetch(this.page.url, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-CSRFToken": csrf() },
        body: JSON.stringify({ target: this.target, messages, ...this.page.settings() }),
        signal: AbortSignal.any([signal, this.running.signal]),
      });
      if (!response.ok) throw new Error(await refusal(response));
      for await (const line of lines(response.body)) this.take(line, told, shown);
    } catch (error) {
      told.error = error.name === "AbortError" ? "Stopped." : error.message;
      if (error.name === "AbortError") shown.words.textContent = "Stopped.";
      else fail(shown.answer, error.message);
    }
    if (this.stop) this.stop.hidden = true;
    delete shown.answer.dataset.streaming;
    this.finish(told, shown, messages);
    return told;
  }

  /** A turn that was there before, as it was. */
  restore(question, told) {
    const shown = this.show(question);
    if (!told) {
      shown.words.textContent = "Not asked then.";
      return;
    }
    this.messages.push({ role: "user", content: question });
    shown.answer.append(told.text);
    if (told.tokens != null) shown.words.textContent = speed(told);
    if (told.error) shown.words.textContent = told.error;
    this.finish(told, shown, this.messages);
  }

  show(question) {
    this.add("bubble user", question);
    const answer = this.add("bubble assistant", "");
    const figures = this.add("bubble-figures", "");
    const words = make("span");
    figures.append(words);
    return { answer, figures, words };
  }

  /** `messages` are those of the conversation that was asked. */
  finish(told, shown, messages) {
    told.shown = shown;
    if (messages !== this.messages) return; // somebody started over meanwhile
    if (!told.text) {
      messages.pop(); // without an answer the question is not part of the conversation
      return;
    }
    messages.push({ role: "assistant", content: told.text });
    const tools = make("span", "bubble-tools");
    tools.append(copyButton(told.text));
    shown.figures.append(tools);
    this.page.offer?.(this, tools, structuredClone(messages));
  }

  take(line, told, { answer, words }) {
    const atEnd = this.chat.scrollHeight - this.chat.scrollTop - this.chat.clientHeight < 60;
    if (line.state) words.textContent = STATES[line.state] ?? sentence(line.state);
    if (line.delta) {
      words.textContent = "";
      told.text += line.delta;
      answer.append(line.delta);
    }
    if (line.done) {
      Object.assign(told, { tokens: line.tokens, seconds: line.seconds, first: line.first });
      words.textContent = speed(line);
    }
    if (line.error) {
      told.error = line.error;
      fail(answer, line.error);
    }
    if (atEnd) this.chat.scrollTop = this.chat.scrollHeight;
  }

  add(className, text) {
    const box = make("div", className, text);
    this.chat.append(box);
    this.chat.scrollTop = this.chat.scrollHeight;
    return box;
  }
}

export const csrf = () => document.querySelector('meta[name="csrf-token"]').content;

export function toast(text, level) {
  document.dispatchEvent(new CustomEvent("toast", { detail: { text, level } }));
}

/** Sends a form and says what came of it: the JSON of the answer, or null where it was refused and said so. */
export async function post(url, fields) {
  try {
    const response = await fetch(url, { method: "POST", headers: { "X-CSRFToken": csrf() }, body: new URLSearchParams(fields) });
    if (response.ok) return await response.json();
    toast(await refusal(response), "error");
  } catch {
    toast("The server does not answer. It is tried again when you act.", "error");
  }
  return null;
}

/** JSON objects, one a line, as they arrive. */
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part.trim()) yield JSON.parse(part);
  }
  if (rest.trim()) yield JSON.parse(rest);
}

async function refusal(response) {
  const said = await response.json().catch(() => null);
  return said?.error?.message ?? said?.error ?? `The server could not answer (${response.status}).`;
}

function fail(answer, text) {
  answer.classList.add("failed");
  answer.append(make("p", "", text));
}

function copyButton(text) {
  const button = make("button", "icon-button");
  button.type = "button";
  button.dataset.copy = text;
  button.setAttribute("aria-label", "Copy the answer");
  button.append(icon("copy"));
  return button;
}

function speed({ tokens, seconds, first, waited, cut }) {
  const rate = seconds > 0 ? tokens / seconds : 0;
  const told = [`${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`];
  if (first != null) told.push(`first after ${Number(first).toFixed(2)} s`);
  if (waited > 0.5) told.push(`${Number(waited).toFixed(1)} s of it waiting`);
  told.push(`${tokens} tokens${cut ? ", cut there" : ""}`);
  return told.join(" · ");
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
