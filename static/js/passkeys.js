// Passkeys: forms with data-passkey="add" or "sign-in" ask the browser for a credential, then send it in their hidden field.
// Their options stand in the page as JSON (#passkey-options), or are fetched from data-options-url.

const WORDS = {
  NotAllowedError: "The passkey was not used in time, or you closed its window. Try again.",
  InvalidStateError: "This device has a passkey for your account already.",
  SecurityError: "Passkeys do not work at this address.",
};

async function optionsOf(form) {
  if (!form.dataset.optionsUrl) return JSON.parse(document.getElementById("passkey-options").textContent);
  const answer = await fetch(form.dataset.optionsUrl, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error("The server did not answer. Reload the page, then try again.");
  return (await answer.json()).request_options;
}

async function credentialFor(form) {
  const { publicKey } = await optionsOf(form).then((options) => options.creation_options ?? options.request_options ?? options);
  if (form.dataset.passkey === "add") {
    return navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(publicKey) });
  }
  return navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(publicKey) });
}

function tell(form, text) {
  const place = form.querySelector("[data-passkey-error]");
  place.textContent = text;
  place.hidden = !text;
}

function listen(form) {
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    const field = form.elements.credential;
    if (field.value) return;
    event.preventDefault();
    tell(form, "");
    try {
      field.value = JSON.stringify((await credentialFor(form)).toJSON());
    } catch (error) {
      tell(form, WORDS[error.name] ?? error.message);
      return;
    }
    form.requestSubmit();
  });
}

const known = globalThis.PublicKeyCredential?.parseRequestOptionsFromJSON;
for (const form of document.querySelectorAll("form[data-passkey]")) {
  if (known) listen(form);
  else {
    form.addEventListener("submit", (event) => event.preventDefault());
    tell(form, "This browser cannot use passkeys.");
  }
}
