// Sends <form data-upload> with a progress bar, goes where the server leads, and puts its refusal beside the field.
import { bytes } from "./format.js";

export function uploads() {
  document.addEventListener("change", (event) => {
    if (event.target.matches?.('[data-drop] input[type="file"]')) showFile(event.target);
  });
  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(name, (event) => event.target.closest?.("[data-drop]")?.toggleAttribute("data-over", over));
  }
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!form.matches("form[data-upload]") || !form.querySelector('input[type="file"]')?.files.length) return;
    event.preventDefault();
    send(form, event.submitter);
  });
}

function showFile(input) {
  const file = input.files[0];
  const title = input.closest("[data-drop]").querySelector("[data-drop-title]");
  title.dataset.before ??= title.textContent;
  title.textContent = file ? `${file.name} · ${bytes(file.size)}` : title.dataset.before;
  fail(input.form, "");
}

function send(form, submitter) {
  const request = new XMLHttpRequest();
  const box = form.querySelector("[data-upload-progress]");
  const bar = box.querySelector("progress");
  const words = box.querySelector("[data-upload-words]");
  const busy = (yes) => {
    box.hidden = !yes;
    form.querySelector("[data-drop]").toggleAttribute("data-busy", yes);
    if (submitter) submitter.disabled = yes;
  };
  busy(true);
  fail(form, "");
  request.upload.addEventListener("progress", ({ loaded, total }) => {
    bar.value = loaded / total;
    words.textContent = loaded < total ? `${bytes(loaded)} of ${bytes(total)}` : "Sent. The server reads it.";
  });
  request.addEventListener("load", () => {
    busy(false);
    answer(form, request);
  });
  request.addEventListener("abort", () => busy(false));
  request.addEventListener("error", () => {
    busy(false);
    fail(form, "The connection broke off before the file had arrived. Send it again.");
  });
  box.querySelector("[data-upload-cancel]").onclick = () => request.abort();
  request.open("POST", form.action);
  request.setRequestHeader("X-Requested-With", "XMLHttpRequest");
  request.send(new FormData(form, submitter));
}

function answer(form, request) {
  const page = new DOMParser().parseFromString(request.responseText, "text/html");
  if (request.status < 300) return location.assign(request.responseURL);
  const again = form.id && page.getElementById(form.id);
  if (again) {
    const files = form.querySelector('input[type="file"]').files;
    form.replaceWith(again);
    again.querySelector('input[type="file"]').files = files; // the choice survives the refusal
    showChosen(again);
    window.htmx?.process(again);
    return again.querySelector(".field-error:not([hidden])")?.scrollIntoView({ block: "center" });
  }
  const said = page.querySelector("[data-error-text], .notice.error div");
  fail(form, said?.textContent.trim() || `The server refused the file (${request.status}).`);
}

function showChosen(form) {
  const input = form.querySelector('input[type="file"]');
  const error = form.querySelector("[data-upload-error]");
  const text = error?.hidden ? "" : error?.textContent.trim();
  if (input.files.length) showFile(input);
  if (text) fail(form, text);
}

function fail(form, text) {
  const place = form.querySelector("[data-upload-error]");
  place.hidden = !text;
  place.querySelector("span").textContent = text;
}
