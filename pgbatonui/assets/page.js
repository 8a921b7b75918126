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

  // A browser connects again by itself when a stream breaks, but not when the answer is no stream: an error of the service, or of a proxy before it.
  const silence = 10000, dead = 90000, first = 2000, longest = 30000;
  let events, failures = 0;
  const state = (word, says) => { live.dataset.state = word; text(live, says); };
  const connect = () => {
    heard = performance.now();
    events = new EventSource("events");
    events.onmessage = (message) => {
      const event = JSON.parse(message.data);
      now = event.now; asOf = performance.now(); heard = asOf; failures = 0;
      for (const [name, html] of Object.entries(event.sections)) replace(name, html);
      state("on", "live");
      tell();
      narrow();
    };
    events.onerror = () => {
      if (events.readyState !== EventSource.CLOSED) { state("off", "not live: connecting"); return; }
      const most = Math.min(longest, first * 2 ** failures++);
      state("off", `not live: refused, the next try is within ${most / 1000}s`);
      setTimeout(() => { state("off", "not live: connecting"); connect(); }, most * (0.5 + Math.random() / 2));
    };
  };
  connect();
  setInterval(() => {
    tell();
    const silent = performance.now() - heard;
    if (live.dataset.state === "on" && silent > silence) state("late", "no news");
    if (live.dataset.state === "late" && silent > dead) { // a network that drops everything tells nobody
      events.close();
      state("off", "not live: connecting");
      connect();
    }
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
    said.textContent = ""; said.className = ""; submit.disabled = false; submit.hidden = false; byID("free-cancel").textContent = "Cancel";
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
    said.className = "";
    try {
      const answer = await fetch("free", { method: "POST", body: new URLSearchParams(new FormData(form)) });
      const own = !answer.redirected && (answer.headers.get("Content-Type") || "").startsWith("text/plain"); // not a login's, or a proxy's
      const ok = own && answer.ok;
      said.textContent = own ? (await answer.text()).trim() : `The answer was not this page's (${answer.status}). It may have been freed or not.`;
      said.className = ok ? "" : "bad";
      submit.hidden = ok;
      if (ok) { byID("free-cancel").textContent = "Close"; byID("free-cancel").focus(); }
      end.hidden = !own || answer.status !== 409; // only a holder that was asked, and does not answer
      if (end.hidden) form.end.checked = false;
      if (own && answer.status === 403) { form.token.value = ""; form.token.focus(); }
    } catch {
      said.textContent = "There was no answer. It may have been freed or not.";
      said.className = "bad";
    }
    submit.disabled = false;
  });
})();
