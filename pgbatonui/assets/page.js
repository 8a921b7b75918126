"use strict";
(() => {
  const byID = (id) => document.getElementById(id);
  const live = byID("live"), find = byID("find"), dialog = byID("free");

  // The database's clock, carried on by this browser's monotonic one.
  let now = Number(document.body.dataset.now), asOf = performance.now(), heard = 0;
  const clock = () => now + performance.now() - asOf;

  const age = (ms) => {
    const s = Math.max(0, Math.floor(ms / 1000)), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
    const and = (n, unit) => (n > 0 ? ` ${n}${unit}` : "");
    if (d > 0) return `${d}d${and(h % 24, "h")}`;
    if (h > 0) return `${h}h${and(m % 60, "m")}`;
    if (m > 0) return `${m}m${and(s % 60, "s")}`;
    return `${s}s`;
  };
  const text = (node, value) => { if (node.textContent !== value) node.textContent = value; };
  const tell = () => {
    if (!now) return;
    for (const t of document.querySelectorAll("time")) {
      const at = Date.parse(t.dateTime), ms = clock() - at;
      if (!t.title) t.title = new Date(at).toLocaleString();
      if ("age" in t.dataset) text(t, age(ms));
      else text(t, ms < 0 ? `in ${age(-ms)}` : `${age(ms)} ago`);
    }
  };

  const narrow = () => {
    const words = find.value.toLowerCase().trim();
    for (const row of document.querySelectorAll("main [data-find]")) {
      row.hidden = words !== "" && !row.textContent.toLowerCase().includes(words) && !row.parentElement.closest("[data-find]");
    }
  };

  // A part is replaced as a whole: what the viewer has opened or stands on is found again.
  const replace = (name, html) => {
    const part = byID(name);
    if (!part) return;
    const open = [...part.querySelectorAll("details[open]")].map((d) => d.dataset.keep);
    const on = part.contains(document.activeElement) ? document.activeElement : null;
    const places = on ? [...part.querySelectorAll("button, summary")] : [];
    const place = places.indexOf(on), held = on && on.dataset.held, kept = on && on.parentElement.dataset.keep;
    part.innerHTML = html;
    for (const d of part.querySelectorAll("details")) d.open = open.includes(d.dataset.keep);
    if (on) {
      const again = [...part.querySelectorAll("button, summary")];
      const same = again.find((b) => (held && b.dataset.held === held) || (kept && b.parentElement.dataset.keep === kept));
      const next = same || again[Math.min(place, again.length - 1)];
      if (next) next.focus({ preventScroll: true });
    }
  };

  const state = (word, says) => { if (live.dataset.state !== word) { live.dataset.state = word; live.textContent = says; } };
  const events = new EventSource("events");
  events.onmessage = (message) => {
    const event = JSON.parse(message.data);
    now = event.now; asOf = performance.now(); heard = asOf;
    for (const [name, html] of Object.entries(event.sections)) replace(name, html);
    state("on", "live");
    tell();
    narrow();
  };
  events.onerror = () => state("off", "not live: connecting");
  setInterval(() => {
    tell();
    if (live.dataset.state === "on" && performance.now() - heard > 10000) state("late", "no news");
  }, 1000);
  tell();

  find.addEventListener("input", narrow);
  document.addEventListener("keydown", (e) => {
    const typing = e.target.closest("input, textarea, dialog");
    if (e.key === "/" && !typing && !e.ctrlKey && !e.metaKey && !e.altKey) { e.preventDefault(); find.focus(); find.select(); }
    if (e.key === "Escape" && e.target === find) { find.value = ""; narrow(); find.blur(); }
  });

  if (!dialog) return;
  const form = byID("free-form"), said = byID("free-said"), end = byID("free-end"), submit = form.querySelector("[type=submit]");
  let from = "";
  document.addEventListener("click", (e) => {
    const b = e.target.closest("button.free");
    if (!b) return;
    from = b.dataset.held;
    form.held.value = from; form.reason.value = ""; form.end.checked = false; end.hidden = true;
    byID("free-what").textContent = b.dataset.what;
    byID("free-who").textContent = `held by ${b.dataset.who}`;
    said.textContent = ""; submit.disabled = false; submit.hidden = false; byID("free-cancel").textContent = "Cancel";
    dialog.showModal();
    (form.token.value ? form.reason : form.token).focus();
  });
  byID("free-cancel").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    const back = document.querySelector(`button.free[data-held="${CSS.escape(from)}"]`);
    (back || find).focus({ preventScroll: true });
  });
  form.addEventListener("submit", async (e) => {
    e.preventDefault();
    submit.disabled = true;
    said.textContent = "The holder is asked…";
    try {
      const answer = await fetch("free", { method: "POST", body: new URLSearchParams(new FormData(form)) });
      said.textContent = (await answer.text()).trim();
      submit.hidden = answer.ok;
      if (answer.ok) { byID("free-cancel").textContent = "Close"; byID("free-cancel").focus(); }
      if (answer.status === 409) end.hidden = false;
      if (answer.status === 403) { form.token.value = ""; form.token.focus(); }
    } catch {
      said.textContent = "There was no answer. It may have been freed or not.";
    }
    submit.disabled = false;
  });
})();
