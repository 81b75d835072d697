"use strict";
// Everything works without this script except switching, filtering, ordering and enlarging.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const cards = $$(".card"), rows = $$("#rows tr"), figures = $$(".thumbnails figure");
  const zoom = $("#zoom"), filter = $("#filter"), order = $("#order"), root = document.documentElement;
  let current = null;

  const byRank = new Map();
  for (const element of $$("#rows tr, .card, .box, .tag")) {
    const rank = element.dataset.rank;
    if (!byRank.has(rank)) byRank.set(rank, []);
    byRank.get(rank).push(element);
  }
  const mark = (rank, name, on) => (byRank.get(rank) || []).forEach((element) => element.classList.toggle(name, on));
  const visible = () => $$(".card").filter((card) => !card.hidden);

  function setView(name) {
    if (!$(`.switch [data-view="${name}"]`)) return;
    document.body.dataset.view = name;
    $$(".switch button").forEach((button) => button.setAttribute("aria-pressed", button.dataset.view === name));
  }

  function setCurrent(rank, scroll) {
    if (current !== null) mark(current, "current", false);
    current = rank;
    mark(rank, "current", true);
    const row = rows.find((element) => element.dataset.rank === rank);
    const list = $("aside");
    if (row && scroll && list.scrollHeight > list.clientHeight) {
      list.scrollTop = row.offsetTop - list.clientHeight / 2;
    }
    const card = document.getElementById(`region-${rank}`);
    if (card && scroll) {
      card.scrollIntoView({ block: "center" });
      card.focus({ preventScroll: true });
    }
    if (zoom.open && card) showZoom(card);
  }

  function move(by) {
    const shown = visible();
    if (!shown.length) return;
    const at = shown.findIndex((card) => card.dataset.rank === current);
    const next = at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + by));
    setCurrent(shown[next].dataset.rank, true);
  }

  function showZoom(card) {
    const panes = $("#zoom-panes"), picture = $(".pane img", card);
    panes.replaceChildren(...$$(".pane", card).map((pane) => pane.cloneNode(true)));
    panes.style.setProperty("--number", picture.getAttribute("width") / picture.getAttribute("height"));
    panes.style.setProperty("--ratio", `${picture.getAttribute("width")} / ${picture.getAttribute("height")}`);
    $("#zoom-title").textContent = `Rank ${card.dataset.rank}: ${$("h3", card).textContent}, ${$("header p", card).textContent}`;
    if (!zoom.open) {
      zoom.showModal();
      $('[data-move="1"]', zoom).focus();
    }
  }

  function applyFilter() {
    const wanted = filter.value;
    for (const element of [...cards, ...rows, ...figures]) {
      element.hidden = wanted !== "" && element.dataset.image !== wanted;
    }
    $$(".only").forEach((button) => button.setAttribute("aria-pressed", button.dataset.image === wanted));
    $("#status").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} regions`;
  }

  function applyOrder() {
    const keys = {
      rank: (e) => [+e.dataset.rank],
      score: (e) => [-e.dataset.score, +e.dataset.rank],
      "-score": (e) => [+e.dataset.score, +e.dataset.rank],
      image: (e) => [+e.dataset.image, +e.dataset.rank],
    };
    const key = keys[order.value];
    const compare = (a, b) => { const p = key(a), q = key(b); return p[0] - q[0] || (p[1] || 0) - (q[1] || 0); };
    $("#cards").append(...[...cards].sort(compare));
    $("#rows").append(...[...rows].sort(compare));
  }

  function oneImageOrAll() {
    const row = rows.find((element) => element.dataset.rank === current);
    if (filter.value === "" && !row) return;
    filter.value = filter.value === "" ? row.dataset.image : "";
    applyFilter();
    if (row) setCurrent(current, true);
  }

  function nextOrder() {
    order.selectedIndex = (order.selectedIndex + 1) % order.length;
    applyOrder();
    if (current !== null) setCurrent(current, true);
  }

  function setTheme(name) {
    root.dataset.theme = name;
    try { localStorage.setItem("kwtl-theme", name); } catch { /* a page opened from a file may have no storage */ }
  }
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);

  $$(".switch button").forEach((button) => button.addEventListener("click", () => setView(button.dataset.view)));
  filter.addEventListener("change", applyFilter);
  order.addEventListener("change", applyOrder);
  for (const select of [filter, order]) { // chosen with the mouse, it gives the keys back to the page
    let mouse = false;
    select.addEventListener("pointerdown", () => { mouse = true; });
    select.addEventListener("keydown", () => { mouse = false; });
    select.addEventListener("change", () => { if (mouse) select.blur(); });
  }
  $("#theme").addEventListener("click", () => setTheme(dark() ? "light" : "dark"));
  $$(".only").forEach((button) => button.addEventListener("click", () => {
    filter.value = filter.value === button.dataset.image ? "" : button.dataset.image;
    applyFilter();
  }));
  for (const [rank, elements] of byRank) {
    for (const element of elements) {
      element.addEventListener("mouseenter", () => mark(rank, "hot", true));
      element.addEventListener("mouseleave", () => mark(rank, "hot", false));
    }
  }
  rows.forEach((row) => row.addEventListener("click", (event) => { event.preventDefault(); setCurrent(row.dataset.rank, true); }));
  $$(".box").forEach((box) => box.addEventListener("click", (event) => { event.preventDefault(); setCurrent(box.dataset.rank, true); }));
  cards.forEach((card) => $(".panes", card).addEventListener("click", () => { setCurrent(card.dataset.rank, false); showZoom(card); }));
  $$("[data-move]", zoom).forEach((button) => button.addEventListener("click", () => move(+button.dataset.move)));
  $("[data-close]", zoom).addEventListener("click", () => zoom.close());
  zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
  zoom.addEventListener("close", () => { if (current !== null) setCurrent(current, true); });

  const keys = {
    ArrowLeft: () => move(-1), ArrowRight: () => move(1), k: () => move(-1), j: () => move(1),
    1: () => setView("image"), 2: () => setView("prediction"), 3: () => setView("disagreement"), 4: () => setView("both"),
    i: oneImageOrAll, o: nextOrder, t: () => setTheme(dark() ? "light" : "dark"),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input, textarea")) return;
    if (event.key === "Enter" && document.activeElement.classList.contains("card")) {
      event.preventDefault();
      showZoom(document.activeElement);
    } else if (Object.hasOwn(keys, event.key)) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  let opened = [];
  addEventListener("beforeprint", () => {
    $$("img[loading]").forEach((image) => { image.loading = "eager"; });
    opened = $$("details").filter((details) => !details.open);
    opened.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));

  try {
    const kept = localStorage.getItem("kwtl-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* no storage */ }
  setView(document.body.dataset.view);
  const start = /^#region-(\d+)$/.exec(location.hash);
  if (start && byRank.has(start[1])) setCurrent(start[1], true);
})();
