// The playground: one question to each column, answers streaming beside each other as JSON lines.
// <form data-playground data-url> with [data-answers data-target] columns, [data-stop] and [data-clear].
const form = document.querySelector("[data-playground]");
const MOST = 512; // tokens of one answer
const STATES = {
  "loading the model": "Loading the model.", answering: "Reading the question.",
  "preparing the model": "Preparing the model. The first answer takes longest.",
};

class Column {
  constructor(box) {
    this.target = box.dataset.target;
    this.chat = box.querySelector("[data-chat]");
    this.messages = [];
  }

  clear() {
    this.messages = [];
    this.chat.replaceChildren();
  }

  async ask(question, { url, token, signal }) {
    this.messages.push({ role: "user", content: question });
    this.add("bubble user", question);
    const answer = this.add("bubble assistant", "");
    const figures = this.add("bubble-figures", "");
    answer.dataset.streaming = "";
    const told = { text: "" };
    try {
      const response = await fetch(url, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-CSRFToken": token },
        body: JSON.stringify({ target: this.target, messages: this.messages, max_tokens: MOST }),
        signal,
      });
      if (!response.ok) throw new Error(await refusal(response));
      for await (const line of lines(response.body)) this.take(line, { told, answer, figures });
    } catch (error) {
      if (error.name !== "AbortError") fail(answer, error.message);
      else figures.textContent = "Stopped.";
    }
    delete answer.dataset.streaming;
    if (told.text) {
      this.messages.push({ role: "assistant", content: told.text });
      this.offerToKeep(figures, structuredClone(this.messages), token);
    } else this.messages.pop(); // without an answer the question is not part of the conversation
  }

  /** A button beside the figures: the conversation up to here becomes a row that is added to a dataset's draft. */
  offerToKeep(figures, messages, token) {
    const choice = form.querySelector("[data-keep]");
    if (!choice) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button compact quiet";
    button.textContent = "Good: keep it";
    button.addEventListener("click", async () => {
      button.disabled = true;
      const body = new URLSearchParams({ dataset: choice.value, target: this.target, messages: JSON.stringify(messages) });
      const response = await fetch(form.dataset.keepUrl, { method: "POST", headers: { "X-CSRFToken": token }, body });
      const said = await response.json().catch(() => ({}));
      if (response.ok) button.textContent = "Kept";
      else button.disabled = false;
      const text = said.kept ?? said.error ?? `It could not be kept (${response.status}).`;
      document.dispatchEvent(new CustomEvent("toast", { detail: { text, level: response.ok ? "success" : "error" } }));
    });
    figures.append(" ", button);
  }

  take(line, { told, answer, figures }) {
    const atEnd = this.chat.scrollHeight - this.chat.scrollTop - this.chat.clientHeight < 60;
    if (line.state) figures.textContent = STATES[line.state] ?? line.state;
    if (line.delta) {
      figures.textContent = "";
      told.text += line.delta;
      answer.append(line.delta);
    }
    if (line.done) figures.textContent = speed(line);
    if (line.error) fail(answer, line.error);
    if (atEnd) this.chat.scrollTop = this.chat.scrollHeight;
  }

  add(className, text) {
    const box = document.createElement("div");
    box.className = className;
    box.textContent = text;
    this.chat.append(box);
    this.chat.scrollTop = this.chat.scrollHeight;
    return box;
  }
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
  const words = document.createElement("p");
  words.textContent = text;
  answer.append(words);
}

function speed({ tokens, seconds, first }) {
  const rate = seconds > 0 ? tokens / seconds : 0;
  return `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s · first after ${Number(first).toFixed(2)} s · ${tokens} tokens${tokens >= MOST ? ", cut there" : ""}`;
}

function start() {
  const columns = [...form.querySelectorAll("[data-answers]")].map((box) => new Column(box));
  const prompt = form.querySelector("textarea");
  const send = form.querySelector('button[type="submit"]');
  const stop = form.querySelector("[data-stop]");
  let running = null;

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const question = prompt.value.trim();
    if (!question || running) return;
    prompt.value = "";
    running = new AbortController();
    send.hidden = true;
    stop.hidden = false;
    const token = document.querySelector('meta[name="csrf-token"]').content;
    await Promise.all(columns.map((column) => column.ask(question, { url: form.dataset.url, token, signal: running.signal })));
    running = null;
    send.hidden = false;
    stop.hidden = true;
    prompt.focus();
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  stop.addEventListener("click", () => running?.abort());
  send.disabled = false; // before this script the form would be sent as a page of its own, and the question lost
  form.querySelector("[data-clear]")?.addEventListener("click", () => {
    running?.abort();
    for (const column of columns) column.clear();
    prompt.focus();
  });
}

if (form) start();
