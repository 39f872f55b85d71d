// Sends the file of <form data-upload data-pieces> in pieces (tus), so that it goes on after a break, a reload or a closed laptop.
import { bytes } from "./format.js";

const PIECE = 8 * 2 ** 20;
const DELAYS = [0, 1000, 3000, 5000, 10_000, 20_000];
const BACK_SOON = 15_000; // until a connection that is away is tried again
const WINDOW = 15_000; // over which the speed is told
const AWAY = "The connection is away. It goes on by itself when it is back.";

export function uploads() {
  document.addEventListener("change", (event) => {
    if (event.target.matches?.('[data-drop] input[type="file"]')) choose(event.target);
  });
  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(name, (event) => event.target.closest?.("[data-drop]")?.toggleAttribute("data-over", over));
  }
}

function choose(input) {
  const file = input.files[0];
  const form = input.form;
  const title = form.querySelector("[data-drop-title]");
  title.dataset.before ??= title.textContent;
  title.textContent = file ? `${file.name} · ${bytes(file.size)}` : title.dataset.before;
  fail(form, "");
  if (file && form.dataset.pieces) new Sending(form, file).begin();
}

/** One file on its way. */
class Sending {
  constructor(form, file) {
    this.form = form;
    this.file = file;
    this.box = form.querySelector("[data-upload-progress]");
    this.bar = this.box.querySelector("progress");
    this.words = this.box.querySelector("[data-upload-words]");
    this.pause = this.box.querySelector("[data-upload-pause]");
    this.cancel = this.box.querySelector("[data-upload-cancel]");
    this.speed = new Speed();
    this.going = false;
  }

  async begin() {
    if (!window.tus?.isSupported) return fail(this.form, "This browser cannot send files in pieces. Use another one.");
    this.upload = new window.tus.Upload(this.file, {
      endpoint: this.form.dataset.pieces,
      chunkSize: PIECE,
      retryDelays: DELAYS,
      metadata: { filename: this.file.name },
      headers: { "X-CSRFToken": document.querySelector('meta[name="csrf-token"]').content },
      removeFingerprintOnSuccess: true,
      onShouldRetry: (error) => this.triesAgain(error),
      onProgress: (sent, total) => this.tell(sent, total),
      onSuccess: () => this.arrived(),
      onError: (error) => this.failed(error),
    });
    this.pause.onclick = () => (this.going ? this.rest() : this.goOn());
    this.cancel.onclick = () => this.askToEnd();
    window.addEventListener("online", () => this.waits && this.goOn());
    this.busy(true);
    const [earlier] = await this.upload.findPreviousUploads();
    if (earlier) this.upload.resumeFromPreviousUpload(earlier);
    this.resumed = Boolean(earlier);
    this.goOn();
  }

  goOn() {
    clearTimeout(this.timer);
    this.waits = false;
    this.going = true;
    this.speed = new Speed();
    this.pause.textContent = "Pause";
    fail(this.form, "");
    this.upload.start();
  }

  rest() {
    this.going = false;
    this.upload.abort();
    this.pause.textContent = "Go on";
    this.words.textContent = `${percent(this.bar.value)} is here. It goes on when you like, also another day: choose the same file again.`;
  }

  /** The first click asks, the second does it. */
  async askToEnd() {
    if (!this.cancel.dataset.asked && this.sent > PIECE) {
      this.cancel.dataset.asked = "1";
      this.cancel.textContent = `Throw away ${bytes(this.sent)}`;
      setTimeout(() => this.unask(), 5000);
      return;
    }
    this.going = false;
    clearTimeout(this.timer);
    this.busy(false);
    await this.upload.abort(true).catch(() => {}); // what cannot be reached expires by itself
    this.form.reset();
    this.form.querySelector("[data-drop-title]").textContent = this.form.querySelector("[data-drop-title]").dataset.before;
  }

  unask() {
    delete this.cancel.dataset.asked;
    this.cancel.textContent = "Cancel";
  }

  tell(sent, total) {
    if (!this.going) return;
    if (this.resumed) {
      this.resumed = false;
      if (sent > 0) this.greeting = `Goes on with ${this.file.name}: ${percent(sent / total)} was here. `;
    }
    this.sent = sent;
    this.bar.value = sent / total;
    this.speed.note(sent);
    this.words.textContent = (this.greeting ?? "") + (sent < total ? this.speed.words(sent, total) : "Sent. The server checks it.");
  }

  /** Says so at the first failure: until all of DELAYS have passed is two thirds of a minute. */
  triesAgain(error) {
    const again = mayPass(statusOf(error));
    if (again) this.words.textContent = AWAY;
    return again;
  }

  arrived() {
    const place = new URL(this.upload.url, location.href);
    if (this.form.dataset.dataset) place.searchParams.set("dataset", this.form.dataset.dataset);
    location.assign(place);
  }

  failed(error) {
    this.going = false;
    const status = statusOf(error);
    if (mayPass(status)) {
      this.waits = true;
      this.pause.textContent = "Go on";
      this.words.textContent = AWAY;
      this.timer = setTimeout(() => this.waits && this.goOn(), BACK_SOON);
      return;
    }
    this.busy(false);
    this.form.reset();
    const said = error.originalResponse?.getBody() ?? "";
    const gone = status < 400 || status === 403;
    fail(this.form, gone ? "Your session has ended. Sign in again and choose the same file: it goes on where it stopped." : plain(said, status));
  }

  busy(yes) {
    this.box.hidden = !yes;
    this.form.querySelector("[data-drop]").toggleAttribute("data-busy", yes);
    this.form.querySelector('input[type="file"]').disabled = yes;
    if (!yes) this.unask();
  }
}

/** Bytes a second over the last moments. */
class Speed {
  constructor() {
    this.seen = [];
  }

  note(sent) {
    const now = performance.now();
    this.seen.push([now, sent]);
    while (this.seen.length > 2 && now - this.seen[0][0] > WINDOW) this.seen.shift();
  }

  words(sent, total) {
    const [[since, from], [now, upto]] = [this.seen[0], this.seen.at(-1)];
    const amount = `${bytes(sent)} of ${bytes(total)}`;
    if (now - since < 1000) return amount;
    const rate = ((upto - from) * 1000) / (now - since);
    return rate > 0 ? `${amount} · ${bytes(rate)} a second · ${left((total - sent) / rate)} left` : amount;
  }
}

const statusOf = (error) => error.originalResponse?.getStatus() ?? 0;
/** Whether the same request may succeed later: no answer at all, a server that is starting, a piece that is just being written. */
const mayPass = (status) => status === 0 || status >= 500 || [408, 409, 423, 429, 460].includes(status);
const percent = (share) => `${Math.floor(share * 100)} %`;
const plain = (text, status) => (text && !text.trimStart().startsWith("<") ? text : `The server refused the file (${status}).`);

function left(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function fail(form, text) {
  const place = form.querySelector("[data-upload-error]");
  place.hidden = !text;
  place.querySelector("span").textContent = text;
}
