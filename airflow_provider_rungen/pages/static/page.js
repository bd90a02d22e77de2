// The page of a task, a contact sheet (whose data is in the page), and the overview of apps.
// All texts come from prompts, results and services: they become text nodes and attributes, never HTML.
"use strict";

(() => {
  const REFRESH_MS = 4000;
  const PAUSE_MS = 300;
  // Rows of an answer, and of a contact sheet.
  const PAGE_ROWS = 100;
  const SHEET_ROWS = 1000;
  const FILTERS = { "": "All", completed: "Completed", failed: "Failed", new: "New", reused: "Reused", skipped: "Skipped" };
  const PARTS = ["completed", "failed", "skipped", "running", "queued"];
  const part = (id) => document.getElementById(id);
  const root = document.documentElement.dataset.root;
  const inlined = part("data");
  const path = inlined ? "" : location.pathname.slice(root.length);
  const query = new URLSearchParams(location.search);
  const dialog = part("dialog");
  const isSheet = query.has("sheet");
  const view = { data: null, rows: [], next: null, status: "", words: "", drawn: "", timer: 0 };
  if (!inlined) {
    view.status = Object.hasOwn(FILTERS, query.get("status")) ? query.get("status") : "";
    view.words = query.get("q") || "";
  }

  function el(name, properties, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(properties || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (typeof value === "function") node[key] = value;
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((each) => each || each === 0));
    return node;
  }
  const count = (number) => number.toLocaleString("en");
  const facts = (pairs, name) =>
    pairs.length ? el("dl", { class: name }, pairs.map(([key, value]) => [el("dt", null, key), el("dd", null, value)])) : null;
  const button = (text, action, more) => el("button", { type: "button", onclick: action, ...more }, text);

  function money(cost, currency) {
    if (cost === null || cost === undefined) return "";
    const isTiny = cost > 0 && cost < 0.0001;
    const digits = isTiny ? "< 0.0001" : cost.toFixed(cost === 0 || cost >= 0.1 ? 2 : 4);
    return `${digits} ${currency || ""}`.trim();
  }
  function time(seconds) {
    if (!seconds || seconds < 0.05) return "";
    const whole = Math.round(seconds);
    if (whole < 60) return `${Number(seconds.toFixed(1))} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  }
  const tone = (state) =>
    ({ success: "good", completed: "good", skipped: "", unknown: "" })[state] ??
    (/fail|refused|rejected|invalid|cancel|given/.test(state) ? "bad" : "busy");
  const pill = (state) => el("span", { class: `pill ${tone(state)}` }, state.replaceAll("_", " "));

  async function ask(address) {
    const answer = await fetch(address, { credentials: "same-origin", headers: { accept: "application/json" } });
    if (!answer.ok) throw new Error((await answer.text()).trim().slice(0, 500) || `status ${answer.status}`);
    return answer.json();
  }
  function address(kind, more) {
    const given = new URLSearchParams({ map_index: query.get("map_index") || "-1", ...more });
    return `${root}/api/${kind}${path.replace(/^\/task/, "")}?${given}`;
  }
  // a reload and a link show the same rows
  function link(more) {
    const given = new URLSearchParams(query);
    given.delete("rungen_login");
    for (const [name, value] of Object.entries({ ...filter(), ...more })) value ? given.set(name, value) : given.delete(name);
    return `${location.pathname}${String(given) && `?${given}`}`;
  }
  const filter = () => ({ status: view.status, q: view.words });

  function copy(name, text, label) {
    const write = async ({ target }) => {
      try {
        await navigator.clipboard.writeText(text());
      } catch {
        // a page without TLS has no clipboard
        const field = el("textarea", null, text());
        target.after(field);
        field.select();
        document.execCommand("copy");
        field.remove();
      }
      target.textContent = "Copied";
    };
    return button(name, write, { "aria-label": label });
  }

  // --- what the task is, why it failed, how far it is ---

  function drawHeader({ about, state }) {
    const run = `${root.replace(/\/rungen$/, "")}/dags/${encodeURIComponent(about.dag)}/runs/${encodeURIComponent(about.run)}`;
    const mapped = about.map_index >= 0 ? `/mapped/${about.map_index}` : "";
    // in a tab of Airflow, the task is open already
    const isLinked = !inlined && window.self === window.top;
    const task = isLinked ? el("a", { href: `${run}/tasks/${encodeURIComponent(about.task)}${mapped}` }, "Task in Airflow") : null;
    document.title = `${about.task} · ${about.dag}`;
    part("header").replaceChildren(
      el("p", { class: "crumbs" }, [about.dag, about.run].map((each) => el("span", null, each)), task,
        inlined ? null : copy("Copy link", () => `${location.origin}${link()}`)),
      el("h1", null, about.task, about.map_index >= 0 ? ` [${about.map_index}]` : "", " ", state ? pill(state) : null),
    );
  }

  function drawFailed({ failed, is_moving: isMoving }) {
    if (!failed) return null;
    const rows = [["App", failed.app], ["Connection", failed.connection], ["Bought so far", failed.cost], ["What to do", failed.do]];
    return el(
      "section",
      { class: "box failed", "aria-label": "What failed" },
      el("h2", null, isMoving ? `Attempt ${failed.attempt} failed. Another one follows` : "Failed"),
      el("p", { class: "why" }, failed.why),
      facts(rows.filter(([, value]) => value), "facts"),
    );
  }

  function drawProgress({ progress, usage, hint, at, duration, is_moving: isMoving }) {
    const parts = progress ? PARTS.filter((name) => progress[name]) : [];
    const named = progress ? [...parts, ...["waiting", "reused"].filter((name) => progress[name])] : [];
    const ended = progress ? `${count(progress.ended)} of ${count(progress.total)} ended` : isMoving ? "Running" : "";
    if (!ended && !usage.text) return null;
    const bar = progress && el(
      "div",
      { class: "bar", role: "progressbar", "aria-label": "Ended", "aria-valuemax": progress.total, "aria-valuenow": progress.ended },
      parts.map((name) => {
        const piece = el("i", { class: name });
        piece.style.width = `${(100 * progress[name]) / progress.total}%`;
        return piece;
      }),
    );
    const cost = money(usage.cost, usage.currency);
    const passed = time(duration);
    const more = [
      usage.text && `Bought: ${usage.text}`,
      passed && `${isMoving ? "Running for" : "Took"} ${passed}`,
      at && `As of ${new Date(1000 * at).toLocaleTimeString("en-GB")}`,
    ].filter(Boolean);
    return el(
      "section",
      { class: "box", "aria-label": "Progress" },
      el("p", { class: "figures" }, el("b", null, ended || (cost ? "Cost" : "")), cost ? el("b", { title: "Cost of what this run bought" }, cost) : null),
      bar,
      el("ul", { class: "counts" }, named.map((name) => el("li", null, el("b", null, count(progress[name])), ` ${name}`))),
      hint ? el("p", { class: "notice" }, hint) : null,
      more.length ? el("p", { class: "faint" }, more.join(" · ")) : null,
    );
  }

  function drawPlaces({ about }) {
    const download = about.has_results ? el("a", { href: address("results"), download: true }, "Download") : null;
    const open = inlined ? null : el("a", { href: link({ sheet: 1 }), target: "_blank" }, "Open");
    const places = [["Results", about.results, download], ["Contact sheet", about.sheet, open], ["Folder", about.destination]];
    const shown = places.filter(([, uri]) => uri)
      .map(([name, uri, more]) => [name, [el("code", { title: uri }, uri), copy("Copy", () => uri, `Copy ${uri}`), more]]);
    return shown.length ? el("section", { class: "box places", "aria-label": "Files" }, facts(shown, "facts")) : null;
  }

  function drawAbout(data) {
    drawHeader(data);
    part("about").replaceChildren(
      ...[!isSheet && drawFailed(data), drawProgress(data), !isSheet && drawPlaces(data), ...data.notices.map((text) => el("p", { class: "notice" }, text))].filter(Boolean),
    );
  }

  // --- rows ---

  const isPicture = (file) => file.kind === "image" && file.url;
  // a contact sheet has no server that filters its rows. A short word is part of many job ids
  const has = (row, word) =>
    (word.length > 6 && row.job_id.toLowerCase().includes(word)) ||
    [row.key, row.prompt, row.text, row.error, row.status, ...Object.values(row.columns), ...Object.values(row.input)].join("\n").toLowerCase().includes(word);

  function isShown(row) {
    if (!inlined) return true;
    const isFailed = !["completed", "skipped", ""].includes(row.status);
    const fits = { "": true, new: row.job_id && !row.reused, reused: row.reused, failed: isFailed }[view.status] ?? row.status === view.status;
    return fits && view.words.toLowerCase().split(/\s+/).every((word) => has(row, word));
  }

  function image(file, alt, more) {
    const gone = (event) => event.target.replaceWith(el("span", { class: "empty" }, "This file was removed, or is damaged."));
    return el("img", { src: file.url, alt, onerror: gone, ...more });
  }

  function drawFile(row, file) {
    const alt = row.prompt || row.key || file.name;
    if (isPicture(file)) {
      const open = () => openPicture(row, file);
      return button(image(file, alt, { loading: "lazy", decoding: "async" }), open, { class: "picture", "aria-label": `Open: ${alt.slice(0, 100)}` });
    }
    if (!file.url) return el("p", { class: "faint" }, file.name);
    if (file.kind === "video") return el("video", { src: file.url, controls: true, preload: "metadata" });
    if (file.kind === "audio") return el("audio", { src: file.url, controls: true, preload: "none" });
    return el("p", null, el("a", { href: file.url, download: file.kind === "download" }, file.name));
  }

  function describe(row) {
    const job = row.job_id && (inlined ? el("code", null, row.job_id) : el("a", { href: `#job=${encodeURIComponent(row.job_id)}` }, `Job ${row.job_id.slice(0, 8)}`));
    const cost = money(row.cost, view.data && view.data.usage.currency);
    const inputs = Object.entries(row.input);
    const name = row.key || (row.index === null || row.index === undefined || row.index === "" ? "" : `Row ${row.index}`);
    return [
      el("p", { class: "line wide" }, name ? el("b", null, name) : null, row.status === "completed" ? null : row.status && pill(row.status),
        [row.reused && "reused", time(row.seconds), cost].filter(Boolean).map((each) => el("span", null, each)), job),
      row.error ? el("p", { class: "error wide" }, row.error) : null,
      row.prompt ? el("p", { class: "prompt" }, row.prompt) : null,
      row.text ? el("p", { class: "answer" }, row.text) : null,
      facts(Object.entries(row.columns), "columns wide"),
      inputs.length ? el("details", { class: "wide" }, el("summary", null, "Input"), facts(inputs, "columns")) : null,
    ].filter(Boolean);
  }

  function card(row) {
    const [first, ...others] = row.outputs.filter(isPicture);
    const rest = row.outputs.filter((file) => !isPicture(file));
    return el(
      "article",
      { class: row.error ? "card is-bad" : "card" },
      first ? drawFile(row, first) : null,
      others.length ? el("div", { class: "strip" }, others.map((file) => drawFile(row, file))) : null,
      el("div", { class: "caption" }, rest.map((file) => drawFile(row, file)), describe(row)),
    );
  }

  function drawRows() {
    const rows = view.rows.filter(isShown);
    const hasPictures = rows.some((row) => row.outputs.some(isPicture));
    part("rows").className = hasPictures ? "rows" : "rows texts";
    part("rows").replaceChildren(...rows.map(card));
    part("size").hidden = !hasPictures;
    const loaded = view.rows.length;
    const isFiltered = view.status || view.words;
    const total = isFiltered || !view.data.progress ? 0 : view.data.progress.total;
    const words = view.words ? ` ${rows.length === 1 ? "has" : "have"} “${view.words}”` : "";
    const so = view.next !== null && isFiltered ? " so far" : "";
    part("found").textContent = `${count(rows.length)} ${rows.length === 1 ? "row" : "rows"}${total > loaded ? ` of ${count(total)}` : ""}${words}${so}`;
    const download = part("download");
    download.hidden = inlined || !isFiltered || !rows.length || !view.data.about.has_results;
    download.href = address("results", filter());
    const more = view.next === null ? null : button("Load more rows", () => load(true));
    const none = rows.length || view.next !== null ? "" : isFiltered ? "There is no such row." : view.data.is_moving ? "No row has ended yet." : "";
    part("more").replaceChildren(...[more, none].filter(Boolean));
  }

  function drawTools() {
    const tools = part("tools");
    if (!tools.childElementCount) {
      const filters = Object.entries(FILTERS).map(([status, name]) =>
        button(name, () => { view.status = status; find(); }, { "data-status": status }));
      const search = el("input", { type: "search", placeholder: "Search rows", "aria-label": "Search rows", value: view.words, maxlength: 200 });
      search.oninput = () => {
        view.words = search.value.trim();
        clearTimeout(view.timer);
        view.timer = setTimeout(find, inlined ? 0 : PAUSE_MS);
      };
      const size = el("input", { type: "range", min: 8, max: 45, value: 15 });
      size.oninput = () => part("rows").style.setProperty("--size", `${size.value}rem`);
      tools.append(...filters, search, el("label", { id: "size" }, "Size", size),
        el("p", { class: "found faint" }, el("span", { id: "found", role: "status" }), " ", el("a", { id: "download", download: true }, "Download these rows")));
    }
    for (const each of tools.querySelectorAll("[data-status]")) {
      const { status } = each.dataset;
      const { progress } = view.data;
      const number = progress && status !== "new" ? progress[status || "ended"] : "";
      each.setAttribute("aria-pressed", status === view.status);
      each.textContent = `${FILTERS[status]} ${number && count(number)}`;
      // all rows are new if none is reused
      const isEmpty = number === 0 || (status === "new" && !(progress && progress.reused));
      each.hidden = Boolean(status && status !== view.status && isEmpty);
    }
    tools.hidden = view.data.rows.length < 2 && !view.status && !view.words;
  }

  function find() {
    drawTools();
    if (inlined) return drawRows();
    history.replaceState(null, "", link() + location.hash);
    part("found").textContent = "Searching…";
    view.drawn = "";
    load();
  }

  // --- a picture, and a job ---

  function pictures() {
    return view.rows.filter(isShown).flatMap((row) => row.outputs.filter(isPicture).map((file) => ({ row, file })));
  }
  function show(name, ...children) {
    dialog.className = name;
    dialog.replaceChildren(...children.filter(Boolean));
    if (!dialog.open) dialog.showModal();
    // what had the focus was replaced
    (dialog.querySelector("[autofocus]") || dialog).focus();
  }
  const close = () => button("Close", () => dialog.close(), { class: "close" });

  function openPicture(row, file, step = 1) {
    const all = pictures();
    const at = all.findIndex((each) => each.file === file);
    const go = (by) => { const to = all[(at + by + all.length) % all.length]; openPicture(to.row, to.file, by); };
    const arrows = [[-1, "←", "Previous picture"], [1, "→", "Next picture"]].map(([by, sign, name]) =>
      button(sign, () => go(by), { "aria-label": name, autofocus: by === step }));
    dialog.onkeydown = (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); go(by); }
    };
    dialog.setAttribute("aria-label", row.prompt || row.key || file.name);
    show(
      "viewer",
      el("div", { class: "bar-of-buttons" }, arrows,
        el("span", { class: "faint", role: "status" }, `${at + 1} of ${all.length}`), el("a", { href: file.url, target: "_blank" }, "Open the file"), close()),
      image(file, row.prompt || file.name),
      el("div", { class: "caption" }, describe(row)),
    );
  }

  async function openJob() {
    const id = new URLSearchParams(location.hash.slice(1)).get("job");
    if (!id || inlined) return;
    dialog.onkeydown = null;
    dialog.setAttribute("aria-label", `Job ${id}`);
    const head = () => el("div", { class: "bar-of-buttons" }, el("h2", null, `Job ${id}`), close());
    show("job", head(), el("p", { class: "faint", role: "status" }, "Asking RunGen…"));
    let found;
    try {
      const job = await ask(address("job", { job_id: id }));
      const times = [["Status", pill(job.status)], ["Created", job.created_at], ["Ran", time(job.seconds)]].filter(([, value]) => value);
      found = [facts(times, "facts"), job.error && el("p", { class: "error" }, job.error), job.prompt && el("p", { class: "prompt" }, job.prompt),
        facts(Object.entries(job.input), "columns"), job.result && el("h2", null, "Result"), job.result && el("pre", null, job.result)];
    } catch (error) {
      found = [el("p", { class: "notice" }, error.message)];
    }
    show("job", head(), ...found);
  }

  // --- loading ---

  async function load(isMore) {
    clearTimeout(view.timer);
    const { status, words, next } = view;
    try {
      const data = await ask(address("task", { ...filter(), cursor: isMore ? next : 0 }));
      // another filter, or the same rows, may have come in between
      if (status === view.status && words === view.words && (!isMore || next === view.next)) take(data, isMore);
    } catch (error) {
      part("more").replaceChildren(el("span", { class: "notice", role: "alert" }, error.message), " ", button("Try again", () => load(isMore)));
      if (!view.data) part("header").replaceChildren(el("h1", null, "RunGen"));
    }
  }

  function take(answer, isMore) {
    // only the first answer has looked for a contact sheet
    const data = isMore ? { ...answer, about: view.data.about } : answer;
    view.data = data;
    view.rows = isMore ? [...view.rows, ...data.rows] : data.rows;
    view.next = data.next;
    drawAbout(data);
    drawTools();
    const drawn = JSON.stringify([view.rows, view.status, view.words, view.next, data.is_moving]);
    if (drawn !== view.drawn) {
      view.drawn = drawn;
      drawRows();
    }
    // a search stops after a second, whatever it has found
    if (view.next !== null && view.rows.length < (isSheet ? SHEET_ROWS : PAGE_ROWS)) load(true);
    else if (data.is_moving) view.timer = setTimeout(refresh, REFRESH_MS);
  }
  function refresh() {
    // nothing moves while somebody looks closely, or elsewhere
    if (document.hidden || dialog.open) view.timer = setTimeout(refresh, REFRESH_MS);
    else load();
  }

  // --- the overview of apps ---

  function appCard(app) {
    const workers = Object.entries(app.workers).filter(([, number]) => number).map(([name, number]) => `${number} ${name}`).join(", ");
    const jobs = Object.entries(app.jobs).map(([name, number]) => `${count(number)} ${name}`).join(", ");
    const rate = app.per_hour ? `${money(app.per_hour.amount, app.per_hour.currency)} an hour` : app.is_billed ? "yes" : "no";
    const rows = [["Id", el("code", null, app.id)], ["Billed now", rate], ["Workers", `${app.active_workers ?? "?"} wanted${workers ? `: ${workers}` : ""}`],
      ["Jobs", jobs || "none"], ["GPU", app.gpu], ["Connection", app.connections.join(", ")]];
    return el("article", { class: "card", id: app.id }, el("div", { class: "caption" },
      el("h2", null, app.name, " ", el("span", { class: app.is_billed ? "pill busy" : "pill" }, app.status || "unknown")), facts(rows.filter(([, value]) => value), "columns")));
  }

  async function showApps() {
    document.title = "RunGen apps";
    try {
      const { apps, silent, connections } = await ask(`${root}/api/apps`);
      const sums = {};
      for (const { per_hour: rate } of apps) if (rate) sums[rate.currency] = (sums[rate.currency] || 0) + rate.amount;
      const billed = apps.filter((app) => app.is_billed).length;
      const rate = Object.entries(sums).map(([currency, amount]) => `${money(amount, currency)} an hour`).join(", ");
      part("header").replaceChildren(el("h1", null, "RunGen apps"), el("p", { class: "faint" }, `${billed} of ${apps.length} billed now${rate ? `: ${rate}` : ""}`));
      const notices = Object.entries(silent).map(([connection, why]) => el("p", { class: "notice" }, `Connection ${connection}: ${why} What its apps cost is unknown.`));
      part("about").replaceChildren(...notices);
      part("rows").className = "rows apps";
      part("rows").replaceChildren(...apps.map(appCard));
      const none = connections.length ? "" : "There is no connection to RunGen that you may read.";
      part("more").textContent = apps.length || notices.length ? "" : none || "There are no apps.";
      const chosen = part(decodeURIComponent(location.hash.slice(1)));
      if (chosen) { chosen.classList.add("chosen"); chosen.scrollIntoView(); }
    } catch (error) {
      part("header").replaceChildren(el("h1", null, "RunGen apps"));
      part("more").replaceChildren(el("span", { class: "notice", role: "alert" }, error.message));
    }
  }

  dialog.addEventListener("close", () => { if (location.hash.startsWith("#job=")) history.replaceState(null, "", location.pathname + location.search); });
  dialog.addEventListener("click", ({ clientX: x, clientY: y, detail }) => {
    const box = dialog.getBoundingClientRect();
    // a click of the keyboard is at no place
    if (detail && (x < box.left || x > box.right || y < box.top || y > box.bottom)) dialog.close();
  });
  window.addEventListener("hashchange", openJob);
  if (inlined) take(JSON.parse(inlined.textContent));
  else if (path.startsWith("/task/")) load().then(openJob);
  else showApps();
})();
