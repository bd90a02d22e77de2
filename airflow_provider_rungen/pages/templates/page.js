// Moves the progress of a task, and shows a picture larger. Every page can be read without it.
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
      text.textContent = "This file was removed, or could not be read.";
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

  // Takes the jobs of the page as it is now, unless somebody is looking closely or has opened something.
  async function replaceContent() {
    const content = document.getElementById("content");
    if (!content || document.querySelector("dialog[open], .clipped[open]")) return false;
    const answer = await fetch(location.href, { credentials: "same-origin" });
    if (!answer.ok) return false;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("content");
    if (fresh) content.replaceWith(document.adoptNode(fresh));
    return Boolean(fresh);
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

  // --- a picture, larger ---

  if (typeof HTMLDialogElement === "undefined") return;
  let dialog = null;
  let current = null;

  function show(link) {
    current = link;
    if (!dialog) {
      dialog = document.createElement("dialog");
      dialog.append(document.createElement("img"), document.createElement("p"));
      dialog.addEventListener("click", () => dialog.close());
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
    caption.textContent = small.alt;
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
