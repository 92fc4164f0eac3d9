// Keeps a page fresh without moving it under somebody's hands, and completes searches.
// Everything works without it.
(() => {
  "use strict";
  const button = document.getElementById("live");
  const { base, stream } = document.body.dataset;
  const main = () => document.getElementById("main");
  // What the database takes long for is asked less often: an answer rests for so many times as long.
  const SOONEST = 2000, AT_LATEST = 15000, POLL = 5000, RESTS = 30;
  let on = true, last = Date.now(), wanted = false, busy = false, polling = stream !== "yes";
  let source = null, failed = false, took = 0;

  const holdsStill = () =>
    document.hidden ||
    main().dataset.still === "yes" ||
    main().querySelector("input:checked, details[open]") ||
    (document.activeElement && main().contains(document.activeElement) &&
      document.activeElement.matches("input:not([type=checkbox]), textarea, select"));

  const show = () => {
    const still = on && holdsStill();
    button.hidden = main().dataset.still === "yes";
    button.setAttribute("aria-pressed", String(on));
    button.classList.toggle("waits", Boolean(still));
    button.classList.toggle("failed", on && failed);
    button.querySelector(".words").textContent =
      !on ? "Paused" : failed ? "Not reached" : still ? "Waits" : "Live";
  };

  const refresh = async () => {
    busy = true;
    wanted = false;
    last = Date.now();
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      const text = await answer.text();
      took = Date.now() - last;
      const page = new DOMParser().parseFromString(text, "text/html");
      const fresh = page.body.dataset.base === base && page.getElementById("main");
      // What is gone is told by a page of ours; a login, a proxy or an outage answers otherwise.
      failed = !fresh || answer.redirected || !(answer.ok || answer.status === 404);
      if (failed || holdsStill() || !on) return;
      await htmx.swap({ target: main(), text: fresh.innerHTML, swap: "innerMorph" });
    } catch {
      failed = true;
    } finally {
      busy = false;
      count();
      show();
    }
  };

  const tick = () => {
    show();
    const age = Date.now() - last;
    if (!on || busy || holdsStill()) return;
    const due = wanted ? SOONEST : polling || failed ? POLL : AT_LATEST;
    if (age >= Math.min(Math.max(due, RESTS * took), AT_LATEST)) refresh();
  };

  const listen = () => {
    if (polling || !window.EventSource) return;
    source = new EventSource(`${base}/events`);
    source.addEventListener("changed", () => { wanted = true; tick(); });
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) polling = true;
    };
  };

  const listens = () => {
    const should = on && !document.hidden && main().dataset.still !== "yes";
    if (should && !source) listen();
    if (!should && source) { source.close(); source = null; }
    tick();
  };

  // ---- selection ------------------------------------------------------------------------------
  const count = () => {
    for (const form of document.querySelectorAll("form.list")) {
      const words = form.querySelector(".selected");
      if (!words) continue;
      const number = form.querySelectorAll("input[name=id]:checked").length;
      words.textContent = number ? `${number} selected` : "With the selected jobs";
      for (const one of form.querySelectorAll(".bulk button")) one.disabled = !number;
    }
  };
  let before = null;
  document.addEventListener("click", (event) => {
    const box = event.target;
    if (!(box instanceof HTMLInputElement) || box.name !== "id" || box.type !== "checkbox") return;
    const all = [...document.querySelectorAll("input[name=id][type=checkbox]")];
    const here = all.indexOf(box);
    if (event.shiftKey && before !== null) {
      for (const one of all.slice(Math.min(here, before), Math.max(here, before) + 1)) one.checked = box.checked;
    }
    before = here;
    count();
    show();
  });

  // ---- search ---------------------------------------------------------------------------------
  document.addEventListener("input", (event) => {
    const box = event.target;
    if (!(box instanceof HTMLInputElement) || box.id !== "q") return;
    const words = document.getElementById("words");
    const [, start, name, value] = /^(.*?)(?:-?([a-z]+):)?([^\s:",]*)$/s.exec(box.value) || [];
    if (start === undefined) return;
    const list = (name ? words.dataset[name] : words.dataset.fields) || "";
    const head = box.value.slice(0, box.value.length - value.length);
    words.replaceChildren(...list.split(" ").filter((one) => one && one.startsWith(value)).slice(0, 20).map((one) => {
      const option = document.createElement("option");
      option.value = head + one + (name ? "" : one === "arg" ? "." : ":");
      return option;
    }));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.matches("input, textarea")) return;
    const box = document.getElementById("q");
    if (box) { event.preventDefault(); box.focus(); }
  });

  button.addEventListener("click", () => { on = !on; last = 0; listens(); });
  document.addEventListener("visibilitychange", listens);
  document.addEventListener("toggle", show, true);
  // On a narrow screen the pages' names are a row that scrolls.
  document.querySelector(".top [aria-current]")?.scrollIntoView({ block: "nearest" });
  setInterval(tick, 1000);
  count();
  listens();
})();
