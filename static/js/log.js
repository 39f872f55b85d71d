// The log of a run: asks for what came after the last byte, while it is in view and the run lives.
const PAUSE = 2000; // ms
const KEPT = 2_000_000; // characters; the rest is in the file
const ANSI = /\u001b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|.)/g;
const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/g;

export function followLog(log, isLive) {
  if (!log) return;
  const words = log.parentElement.querySelector("[data-log-words]");
  let after = 0;
  let asking = false;
  const say = (text) => { if (words) words.textContent = text; };

  const ask = async () => {
    if (asking || !log.checkVisibility() || document.hidden) return;
    asking = true;
    try {
      let piece;
      do {
        const response = await fetch(`${log.dataset.logUrl}?after=${after}`);
        if (!response.ok) return say("The log cannot be read now.");
        piece = await response.json();
        if (piece.text) append(log, piece.text);
        if (piece.next === after) break;
        after = piece.next;
      } while (piece.text);
      if (after === 0) say(piece.live ? "Nothing has been written yet." : "Nothing was written.");
      else say(piece.live ? "Follows the run." : "");
    } catch {
      say("The server does not answer; it is asked again.");
    } finally {
      asking = false;
    }
  };
  ask();
  document.addEventListener("studio:shown", ask);
  setInterval(() => { if (isLive()) ask(); }, PAUSE);
}

function append(log, text) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const clean = text.replace(ANSI, "").replace(/\r+\n/g, "\n").replace(/[^\n]*\r(?=[^\n])/g, "").replace(HIDDEN, (hidden) => `\\u${hidden.charCodeAt(0).toString(16).padStart(4, "0")}`);
  log.append(clean);
  if (log.textContent.length > KEPT) log.textContent = log.textContent.slice(-KEPT / 2);
  if (atEnd) log.scrollTop = log.scrollHeight;
}
