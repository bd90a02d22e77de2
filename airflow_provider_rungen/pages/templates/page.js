// Moves the progress of a task, and shows pictures larger and texts at a glance. Every page can be read without it.
"use strict";

(() => {
  const SECONDS = 1000;
  const body = document.body;

  // In a tab of Airflow, whose frame is sandboxed, a link cannot leave it. It is the page that is open already.
  if (window.self !== window.top) {
    const outside = document.querySelector('[data-part="airflow"]');
    if (outside) outside.hidden = true;
    for (const link of document.querySelectorAll("[data-leaves]")) link.removeAttribute("href");
  }

  // A file that was removed since the page was made.
  document.addEventListener(
    "error",
    (event) => {
      const picture = event.target.closest && event.target.closest(".picture");
      if (!picture) return;
      const text = document.createElement("p");
      text.className = "gone";
      text.textContent = "This file was removed, or is damaged.";
      picture.replaceWith(text);
    },
    true,
  );

  // --- progress ---

  function setProgress(shown) {
    const headline = document.querySelector('[data-part="headline"]');
    if (headline && headline.textContent !== shown.headline) headline.textContent = shown.headline;
    for (const part of shown.parts) {
      const bar = document.querySelector(`[data-bar="${part.name}"]`);
      const count = document.querySelector(`[data-count="${part.name}"]`);
      if (!bar || !count) continue;
      bar.setAttribute("x", part.x);
      bar.setAttribute("width", part.width);
      count.hidden = !part.count;
      count.querySelector("b").textContent = part.count.toLocaleString("en");
    }
  }

  // Takes the jobs of the page as it is now, unless somebody is looking closely, or has opened or begun something.
  async function replaceContent() {
    const content = document.getElementById("content");
    const inUse = "dialog[open], .clipped[open], .list-form :focus";
    if (!content || document.querySelector(inUse)) return false;
    const answer = await fetch(location.href, { credentials: "same-origin" });
    if (!answer.ok) return false;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("content");
    if (!fresh) return false;
    content.replaceWith(document.adoptNode(fresh));
    dress(fresh);
    return true;
  }

  async function follow(href) {
    let shownDone = null;
    let replacedAt = Date.now();
    let pause = 3 * SECONDS;
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, pause));
      if (document.hidden) continue;
      try {
        const answer = await fetch(href, { credentials: "same-origin", headers: { Accept: "application/json" } });
        if (!answer.ok) throw new Error(String(answer.status));
        const progress = await answer.json();
        setProgress(progress);
        if (!progress.is_moving) {
          location.reload();
          return;
        }
        if (shownDone === null) shownDone = progress.done;
        if (progress.done !== shownDone && Date.now() - replacedAt > 10 * SECONDS && (await replaceContent())) {
          shownDone = progress.done;
          replacedAt = Date.now();
        }
        pause = 3 * SECONDS;
      } catch (error) {
        pause = Math.min(pause * 2, 60 * SECONDS);
      }
    }
  }

  if (body.dataset.refresh) follow(body.dataset.refresh);
  if (body.dataset.reload) {
    setTimeout(() => document.querySelector("dialog[open]") || location.reload(), Number(body.dataset.reload) * SECONDS);
  }

  // --- the keyboard: pages, and the jobs of the list that led here ---

  const LIST = "rungen-jobs";

  function stored(name, value) {
    try {
      if (value) sessionStorage.setItem(name, JSON.stringify(value));
      return JSON.parse(sessionStorage.getItem(name)) || [];
    } catch {
      return []; // a sandboxed frame has no storage
    }
  }

  const jobs = [...document.querySelectorAll(".list-form .line > :first-child a[href]")].map((link) => link.href);
  // beyond the first and the last, the pages of the list
  const page = (rel) => document.querySelector(`.pager a[rel=${rel}]`)?.href || "";
  if (jobs.length) stored(LIST, [page("prev"), ...jobs, page("next")]);
  for (const item of document.querySelectorAll("[data-neighbor]")) {
    const list = stored(LIST);
    const here = list.findIndex((href) => href.split("?")[0] === location.href.split("?")[0]);
    const href = here < 0 ? null : list[here + (item.dataset.neighbor === "next" ? 1 : -1)];
    if (!href || new URL(href, location).origin !== location.origin) continue;
    item.firstElementChild.href = href;
    item.hidden = false;
  }
  document.addEventListener("keydown", (event) => {
    const rel = { ArrowRight: "next", ArrowLeft: "prev" }[event.key];
    if (!rel || event.metaKey || event.ctrlKey || event.altKey || event.shiftKey) return;
    if (document.querySelector("dialog[open]") || event.target.closest("input:not([type=checkbox]), select, video, audio, pre, .markdown")) return;
    const link = document.querySelector(`a[rel=${rel}][href]`);
    if (link) link.click();
  });

  // --- the list: what is checked on any of its pages is compared ---

  const CHECKED = `rungen-checked ${location.pathname}`;
  let checked = new Set(stored(CHECKED));
  let isComparison = false;

  function showChecked() {
    for (const box of document.querySelectorAll(".list-form [name=jobs]")) box.checked = checked.has(box.value);
    const button = document.querySelector("[data-compare]");
    if (button) button.textContent = checked.size ? `Compare checked (${checked.size})` : "Compare checked";
  }

  document.addEventListener("change", ({ target }) => {
    if (!target.closest(".list-form")) return;
    if (target.matches("select")) target.form.requestSubmit();
    if (!target.matches("[name=jobs]")) return;
    if (target.checked) checked.add(target.value);
    else checked.delete(target.value);
    stored(CHECKED, [...checked]);
    showChecked();
  });
  document.addEventListener("submit", (event) => {
    isComparison = Boolean(event.submitter && event.submitter.matches("[data-compare]"));
  });
  // an address without what is not asked for
  document.addEventListener("formdata", (event) => {
    event.formData.delete("jobs");
    if (isComparison) for (const job of checked) event.formData.append("jobs", job);
    for (const name of ["text", "status", "sort", "page"]) if (!event.formData.get(name)) event.formData.delete(name);
  });
  // on the way back, the browser has filled in what was checked before
  addEventListener("pageshow", (event) => {
    if (event.persisted) checked = new Set(stored(CHECKED));
    showChecked();
  });

  // --- texts at a glance ---

  // JSON as its fields, without nested ones.
  function summarize(box, text) {
    let value = null;
    try {
      value = JSON.parse(text);
    } catch {
      // another text, or only its beginning
    }
    if (value && typeof value === "object" && !Array.isArray(value)) {
      const lines = Object.entries(value).map(([name, each]) => {
        const size = each && typeof each === "object" ? Object.keys(each).length : null;
        if (Array.isArray(each)) return `${name}: ${each.every((one) => typeof one !== "object") ? each.join(", ") : `${size} ${size === 1 ? "item" : "items"}`}`;
        return `${name}: ${size === null ? each : `${size} ${size === 1 ? "field" : "fields"}`}`;
      });
      text = lines.join("\n");
    }
    box.textContent = text;
    box.hidden = false;
  }

  async function excerpt(box) {
    const headers = { Range: "bytes=0-1999" };
    const answer = await fetch(box.dataset.excerpt, { credentials: "same-origin", headers });
    if (answer.ok) summarize(box, await answer.text());
  }

  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      excerpt(target.querySelector("[data-excerpt]")).catch(() => {});
    }
  });

  function dress(part) {
    for (const box of part.querySelectorAll("[data-json]")) summarize(box, box.textContent);
    for (const box of part.querySelectorAll("[data-excerpt]")) seen.observe(box.parentElement);
    showChecked();
  }

  dress(document);

  // --- the size of a picture ---

  function measure(picture) {
    const card = picture.closest(".job, figure");
    const item = card && card.querySelector("[data-pixels]");
    if (!item || !picture.naturalWidth || card.querySelector(".picture img") !== picture) return;
    item.textContent = `${picture.naturalWidth} x ${picture.naturalHeight} px`;
    item.hidden = false;
    const asked = card.querySelector("[data-asked]");
    if (asked) asked.hidden = `${asked.textContent} px` === item.textContent;
  }

  document.addEventListener("load", (event) => event.target.localName === "img" && measure(event.target), true);
  for (const picture of document.images) if (picture.complete) measure(picture);

  // --- a picture, larger ---

  if (typeof HTMLDialogElement === "undefined") return;
  let dialog = null;
  let current = null;

  function show(link) {
    current = link;
    if (!dialog) {
      dialog = document.createElement("dialog");
      dialog.append(document.createElement("img"), document.createElement("p"));
      // a picture that does not fit has its own size with one more click
      dialog.addEventListener("click", (event) => {
        const large = dialog.firstChild;
        const fits = large.naturalWidth <= large.clientWidth && !dialog.classList.contains("own-size");
        if (event.target !== large || fits) dialog.close();
        else dialog.classList.toggle("own-size");
      });
      dialog.addEventListener("close", () => dialog.classList.remove("own-size"));
      dialog.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) move(step);
      });
      body.append(dialog);
    }
    const small = link.querySelector("img");
    const [large, caption] = dialog.children;
    large.src = link.href;
    large.alt = small.alt;
    const size = small.naturalWidth ? ` · ${small.naturalWidth} x ${small.naturalHeight} px` : "";
    caption.textContent = small.alt + size;
    if (!dialog.open) dialog.showModal();
  }

  function move(step) {
    const links = [...document.querySelectorAll("a[data-zoom]")];
    const next = links[links.indexOf(current) + step];
    if (next) show(next);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[data-zoom]");
    if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    show(link);
  });
})();
