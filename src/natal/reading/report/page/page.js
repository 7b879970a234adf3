"use strict";
// Fills the charts with what a reader has chosen, sorts and copies tables, opens a cell. It computes no number: all of
// them are in the page's data, as natal.reading.stats made them.
(() => {
  const page = JSON.parse(document.getElementById("page").textContent);
  const root = document.documentElement, form = document.getElementById("choose");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const strategies = page.data.strategies.rows.map((row) => row[0]);
  const settings = objects(page.data.settings);
  const chosen = { task: "", network: "", level: "", axis: "sparsity", theme: "", off: new Set() };

  function objects(table) {
    return table.rows.map((row) => Object.fromEntries(table.columns.map((name, i) => [name, row[i]])));
  }

  // -- data ----------------------------------------------------------------------------------------------------

  const cells = objects(page.data.cells).map((c, i) => ({
    ...c, cell: i, place: c.setting, setting: settings[c.setting].words, strategy: strategies[c.strategy] }));
  const ranking = objects(page.data.ranking).map((r) => ({
    ...r, place: r.setting, setting: settings[r.setting].words, strategy: strategies[r.strategy] }));
  const of = (name) => {
    const grouped = new Map();
    page.data[name].rows.forEach((row) => {
      if (!grouped.has(row[0])) grouped.set(row[0], []);
      grouped.get(row[0]).push(row);
    });
    return (i) => grouped.get(i) || [];
  };
  const layersOf = of("layers"), barriersOf = of("barriers"), findingsOf = of("findings"), curveOf = of("curves"),
    picturesOf = of("pictures");
  const runsOf = (() => {
    const grouped = new Map();
    page.data.runs.rows.forEach((row, i) => {
      if (!grouped.has(row[0])) grouped.set(row[0], []);
      grouped.get(row[0]).push({ ...Object.fromEntries(page.data.runs.columns.map((n, k) => [n, row[k]])), run: i });
    });
    return (i) => grouped.get(i) || [];
  })();

  const on = (strategy) => !chosen.off.has(strategy);
  const inColour = () => {
    const few = page.priority.filter(on).slice(0, page.colours.length);
    return strategies.filter((s) => few.includes(s));
  };

  function withLayers(c) {
    return layersOf(c.cell).map(([, layer, density, effective]) => ({
      cell: c.cell, setting: c.setting, strategy: c.strategy, sparsity: c.sparsity, density: c.density,
      colour: c.colour, layer, layer_density: density, layer_effective: effective }));
  }

  // a picture's blocks, as natal.pruning.pictures wrote them
  function blocks([, layer, shows, many, most, levels], order) {
    const columns = levels.length / many;
    return [...levels].map((letter, i) => {
      const level = parseInt(letter, 36) / 35;
      return { layer, shows, order, panel: `${layer}, ${shows}`, row: Math.floor(i / columns), column: i % columns,
        level, share: level * most };
    });
  }

  // of each strategy, the first layer of one run's mask at one level
  function patterns(these, level) {
    const at = level === null ? Math.max(...these.map((c) => c.sparsity)) : level;
    return these.filter((c) => c.sparsity === at).flatMap((c) => {
      const run = runsOf(c.cell).find((r) => picturesOf(r.run).length);
      const of = run ? picturesOf(run.run) : [];
      const one = of.find((p) => p[2] === "pixels") || of.find((p) => p[2] === "all");
      return one ? blocks(one, 0).map((b) => ({ ...b, cell: c.cell, strategy: c.strategy, sparsity: c.sparsity, seed: run.seed })) : [];
    });
  }

  // the rows of each of a chart's data, for what is chosen
  function rows(name, place, chart) {
    const coloured = inColour();
    const mark = (c) => ({ ...c, colour: coloured.includes(c.strategy) });
    const here = cells.filter((c) => c.place === place && on(c.strategy)).map(mark);
    const level = chosen.level === "" ? null : Number(chosen.level);
    const at = here.filter((c) => level === null || c.sparsity === level);
    const one = chart === "work" || chart === "seconds" ? at : here;
    switch (name) {
      case "lines": return objects(page.data.lines).filter((line) => line.setting === place);
      case "cells": return one;
      case "runs": return one.flatMap((c) => runsOf(c.cell).map((r) => ({ ...c, ...r, setting: c.setting })));
      case "ranking": return level === null
        ? ranking.filter((r) => r.place === place && on(r.strategy)).map(mark) : at;
      case "barriers": return here.flatMap((c) => barriersOf(c.cell).map(([, clock, barrier, low, high, n]) => ({
        ...c, clock, barrier, barrier_low: low, barrier_high: high, lines: n })));
      case "layers": return here.flatMap(withLayers);
      case "patterns": return patterns(here.filter((c) => c.colour), level);
      default: throw new Error(`a chart asks for the data ${name}`);
    }
  }

  // -- charts --------------------------------------------------------------------------------------------------

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // a declared chart with its data, and what depends on the reader, put in
  function filled(node, known) {
    if (Array.isArray(node)) return node.map((entry) => filled(entry, known));
    if (node === null || typeof node !== "object") return node;
    if ("$" in node) return known[node.$];
    const fill = (name, entry) => {
      if (name !== "data" || "values" in entry) return filled(entry, known);
      return { name: entry.name, values: known.rows(entry.name) };
    };
    return Object.fromEntries(Object.entries(node).map(([name, entry]) => [name, fill(name, entry)]));
  }

  function config() {
    const ink = css("--ink"), soft = css("--soft"), line = css("--line");
    return {
      background: css("--paper"), font: "system-ui, sans-serif", view: { stroke: null },
      axis: { labelColor: ink, titleColor: ink, domainColor: soft, tickColor: soft, gridColor: line, gridOpacity: 0.6,
        labelFontSize: 11, titleFontSize: 12, titleFontWeight: 500 },
      legend: { labelColor: ink, titleColor: ink, labelFontSize: 12, labelLimit: 220, symbolStrokeWidth: 2 },
      header: { labelColor: ink, labelFontSize: 12, labelFontWeight: 600 },
    };
  }

  const memory = new Map(); // data that several parts of one chart share are made once

  async function draw(figure, given) {
    const chart = page.charts[Number(figure.dataset.chart)];
    const place = figure.dataset.setting === undefined ? null : Number(figure.dataset.setting);
    const target = figure.querySelector(".plot"), width = target.clientWidth;
    memory.clear();
    const take = given || ((name) => {
      if (!memory.has(name)) memory.set(name, rows(name, place, chart.name));
      return memory.get(name);
    });
    const columns = width < 480 ? 1 : width < 760 ? 2 : 3;
    const known = {
      soft: css("--soft"), paper: css("--paper"), ink: css("--ink"), faint: css("--line"), label: Math.max(110, Math.floor(width * 0.45)),
      depth: isDark() ? { name: "viridis", extent: [0.3, 1] } : { name: "viridis", extent: [0, 0.85] },
      x: page.axes[chosen.axis], strategies: inColour(), rows: take, columns,
      panel: Math.max(120, Math.floor((width - 14) / columns - 62)),
      tiles: Math.max(1, Math.floor(width / 136)), pairs: Math.max(1, 2 * Math.floor(width / 290)),
      legend: { orient: "bottom", title: null, columns: Math.max(1, Math.floor(width / 190)), symbolOpacity: 1 },
    };
    const spec = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", description: `${chart.title}. ${chart.says}`,
      ...filled(chart.spec, known) };
    if (!spec.facet) spec.width = "container";
    if (spec.height?.step) { // a height that counts lines does not go with a width that fits
      const { y } = [spec, ...(spec.layer || [])].find((layer) => layer.encoding?.y?.field).encoding;
      spec.height = spec.height.step * new Set(spec.data.values.map((row) => row[y.field])).size;
    }
    if (!spec.facet) spec.autosize = { type: "fit-x", contains: "padding" };
    const marks = Math.max(0, ...["runs", "cells", "layers"].map((name) => (memory.get(name) || []).length));
    figure._view?.finalize();
    const shown = await vegaEmbed(target, spec, {
      renderer: marks > 4000 ? "canvas" : "svg", config: config(), tooltip: { theme: isDark() ? "dark" : "light" },
      actions: { export: { svg: true, png: true }, source: true, compiled: false, editor: false },
      logLevel: 1, downloadFileName: `${page.file}-${chart.name}`, scaleFactor: { png: 3 },
    });
    figure._view = shown;
    const menu = target.querySelector("summary");
    if (menu) menu.setAttribute("aria-label", `Save chart: ${chart.title}`);
    shown.view.addEventListener("click", (_, item) => {
      const datum = item?.datum;
      if (datum && datum.cell !== undefined && !figure.closest("dialog")) open(datum.cell, datum.run);
      else if (datum && datum.rank) open(hardest(datum), undefined);
    });
    figure.dataset.drawn = String(Number(figure.dataset.drawn || 0) + 1);
  }

  const hardest = (r) => cells.filter((c) => c.place === r.place && c.strategy === r.strategy)
    .reduce((a, b) => (a.sparsity > b.sparsity ? a : b)).cell;

  const figures = all("main .chart"), stale = new Set(figures), near = new Set();
  let working = false;

  async function work() {
    if (working) return;
    working = true;
    delete root.dataset.ready;
    for (;;) {
      const visible = [...stale].filter((f) => !f.hidden);
      const next = visible.find((f) => near.has(f)) || (figures.length <= page.many ? visible[0] : undefined);
      if (!next) break;
      stale.delete(next);
      try { await draw(next); } catch (error) { console.error(error); }
      await new Promise((resolve) => setTimeout(resolve)); // the page stays alive between two charts
    }
    working = false;
    root.dataset.ready = "yes";
  }

  const watch = new IntersectionObserver((seen) => {
    seen.forEach((s) => (s.isIntersecting ? near.add(s.target) : near.delete(s.target)));
    work();
  }, { rootMargin: "500px" });
  figures.forEach((figure) => watch.observe(figure));

  function redraw() { figures.forEach((f) => stale.add(f)); work(); }

  // -- choosing ------------------------------------------------------------------------------------------------

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (chosen.theme || (dark.matches ? "dark" : "light")) === "dark";

  function choose() {
    for (const name of ["task", "network", "level", "axis", "theme"]) {
      if (form.elements[name]) chosen[name] = form.elements[name].value;
    }
    chosen.off = new Set(all("input[name=strategy]", form).filter((b) => !b.checked).map((b) => strategies[b.value]));
    if (chosen.theme) root.dataset.theme = chosen.theme; else delete root.dataset.theme;
    const shown = settings.map((s) => (!chosen.task || s.task === chosen.task) && (!chosen.network || s.network === chosen.network));
    all("main [data-setting]").forEach((e) => { e.hidden = !shown[e.dataset.setting]; });
    all("main tr[data-strategies], main tr[data-level]").forEach((e) => {
      const named = (e.dataset.strategies || "").split(" ").filter(Boolean);
      const wrong = chosen.level !== "" && e.dataset.level !== undefined && e.dataset.level !== chosen.level;
      e.hidden = wrong || !named.every((i) => on(strategies[i]));
    });
    const coloured = inColour();
    all("input[name=strategy]", form).forEach((box) => {
      const at = coloured.indexOf(strategies[box.value]);
      box.parentElement.querySelector(".swatch").style.background = at < 0 ? "" : page.colours[at];
    });
    document.getElementById("chosen").textContent = `(${strategies.length - chosen.off.size} of ${strategies.length})`;
    redraw();
  }

  form.addEventListener("change", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  const tick = (checked) => { all("input[name=strategy]", form).forEach((b) => { b.checked = checked; }); choose(); };
  document.getElementById("every").addEventListener("click", () => tick(true));
  document.getElementById("none").addEventListener("click", () => tick(false));
  dark.addEventListener("change", redraw);
  document.addEventListener("click", (event) => {
    all(".menu[open]").forEach((menu) => { if (!menu.contains(event.target)) menu.open = false; });
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    all(".menu[open]").forEach((menu) => { menu.open = false; menu.querySelector("summary").focus(); });
  });
  if (innerWidth < 640) form.querySelector("details").open = false;
  let wide = innerWidth, waiting;
  addEventListener("resize", () => {
    if (innerWidth === wide) return;
    wide = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 150);
  });

  // -- tables --------------------------------------------------------------------------------------------------

  const say = (words) => { document.getElementById("said").textContent = words; };

  async function copy(words, button) {
    try { await navigator.clipboard.writeText(words); } catch {
      const area = document.body.appendChild(document.createElement("textarea"));
      area.value = words;
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const before = button.textContent;
    button.textContent = "Copied";
    say("Copied");
    setTimeout(() => { button.textContent = before; }, 1500);
  }

  const value = (td) => {
    const number = td.dataset.v === undefined ? parseFloat(td.textContent) : Number(td.dataset.v);
    return Number.isNaN(number) ? null : number;
  };

  function sort(head) {
    const table = head.closest("table"), at = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    all("thead th", table).forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const words = head.classList.contains("left");
    for (const body of table.tBodies) {
      const lines = all("tr:not(.part):not(.notes)", body), notes = body.querySelector(".notes");
      lines.map((tr) => [tr, words ? tr.cells[at].textContent : value(tr.cells[at])])
        .sort(([, a], [, b]) => (a === null) - (b === null) ||
          (down ? -1 : 1) * (words ? String(a).localeCompare(b, undefined, { numeric: true }) : a - b))
        .forEach(([tr]) => body.insertBefore(tr, notes));
    }
    say(`Sorted by ${head.textContent}, ${head.getAttribute("aria-sort")}`);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    if (!button) return;
    if (button.matches(".sort")) sort(button.parentElement);
    if (button.matches(".open")) open(Number(button.dataset.cell));
    if (button.matches(".copy")) {
      const lines = all("tr", button.closest(".table")).filter((tr) => !tr.hidden && !tr.parentElement.hidden);
      copy(lines.map((tr) => [...tr.cells].map((td) => td.textContent.trim()).join("\t")).join("\n"), button);
    }
  });

  // -- a cell --------------------------------------------------------------------------------------------------

  const closer = document.getElementById("closer"), part = (name) => document.getElementById(`closer-${name}`);
  const element = (tag, words, name) => {
    const made = document.createElement(tag);
    if (words !== undefined) made.textContent = words;
    if (name) made.className = name;
    return made;
  };
  const digits = (x, many = 4) => (x === null || x === undefined ? "n/a" : String(Number(x.toPrecision(many))));
  const percent = (x) => (x === null || x === undefined ? "n/a" : `${Number((100 * x).toPrecision(5))}%`);
  let current;

  function options(select, entries, picked) {
    select.replaceChildren(...entries.map(([words, cell]) => {
      const made = element("option", words);
      made.value = cell;
      made.selected = cell === picked;
      return made;
    }));
  }

  function open(cell, run) {
    const c = cells[cell], its = runsOf(cell), metric = settings[c.place].metric;
    current = { cell, run };
    part("title").textContent = `${c.strategy} at ${percent(c.sparsity)} on ${c.setting}`;
    options(part("strategy"), cells.filter((o) => o.place === c.place && o.sparsity === c.sparsity).map((o) => [o.strategy, o.cell]), cell);
    options(part("level"), cells.filter((o) => o.place === c.place && o.strategy === c.strategy)
      .sort((a, b) => a.sparsity - b.sparsity).map((o) => [percent(o.sparsity), o.cell]), cell);
    const facts = [[`mean test ${metric}`, digits(c.mean)],
      ["95% CI", c.low === null ? "n/a" : `[${digits(c.low)}, ${digits(c.high)}]`],
      ["runs", c.diverged ? `${c.n}, and ${c.diverged} diverged` : c.n], ["epochs trained", digits(c.epochs)],
      ["weights kept", percent(c.density)], ["effective sparsity", percent(c.effective)],
      [page.work[c.place], digits(c.work, 6)], ["seconds of training", digits(c.seconds, 3)]];
    part("facts").replaceChildren(...facts.flatMap(([name, fact]) => [element("dt", name), element("dd", fact)]));
    const heads = ["", "seed", `test ${metric}`, "validation", "train", "epochs", "best", "seconds", "rate"];
    const head = element("tr");
    head.append(...heads.map((words) => element("th", words)));
    const lines = its.map((r) => {
      const tr = element("tr", undefined, r.run === run ? "picked" : "");
      const pick = element("button", r.run === run ? "picked" : "pick", "open");
      pick.type = "button";
      pick.removeAttribute("data-cell");
      pick.setAttribute("aria-label", `Pick the run of seed ${r.seed}`);
      pick.addEventListener("click", (event) => {
        event.stopPropagation();
        open(cell, r.run === current.run ? undefined : r.run);
        all("button", part("runs"))[its.indexOf(r)]?.focus();
      });
      const first = element("td");
      first.append(pick);
      tr.append(first, ...[r.seed, r.metric === null ? "diverged" : digits(r.metric), digits(r.val), digits(r.train),
        digits(r.epochs), digits(r.best), digits(r.seconds, 3), digits(r.rate)].map((words) => element("td", words)));
      return tr;
    });
    const thead = element("thead"), tbody = element("tbody");
    thead.append(head);
    tbody.append(...lines);
    part("runs").replaceChildren(thead, tbody);
    const found = findingsOf(cell);
    part("findings").replaceChildren(...(found.length ? found : [[cell, "", c.sparsity === 0 ? "Nothing was pruned." : "Nothing."]])
      .map(([, severity, words]) => element("li", severity ? `${severity}: ${words}` : words, severity)));
    const curves = curveRows(its.filter((r) => run === undefined || r.run === run));
    const seen = its.filter((r) => picturesOf(r.run).length).find((r) => run === undefined || r.run === run);
    const drawn = seen ? picturesOf(seen.run).map((p, i) => [p, blocks(p, i)]) : [];
    const ofUnits = ([p]) => p[2] !== "all" && p[2] !== "corner";
    const pictured = { fields: drawn.filter(ofUnits).flatMap((d) => d[1]),
      blocks: drawn.filter((d) => !ofUnits(d)).flatMap((d) => d[1]) };
    const unseen = seen ? (its.length > 1 ? `The mask is pictured of seed ${seen.seed}. ` : "")
      : c.sparsity ? "No picture of this mask is on this page; `Results.mask` gives it. " : "";
    const missing = its.length < c.n + c.diverged ? `${its.length} of ${c.n + c.diverged} runs are on this page; all are in runs.csv. ` : "";
    part("sample").textContent = missing + unseen + (curves.loss.length ? "" : "Their learning curves are not on this page; `Results.curves` has them.");
    const seeds = run === undefined ? its.map((r) => r.seed) : its.filter((r) => r.run === run).map((r) => r.seed);
    part("what").textContent = run === undefined ? "these runs" : "this run";
    part("command").textContent = ["natal run study.toml --out again", ...page.command[c.place],
      page.recipes[strategies.indexOf(c.strategy)], `--set 'sparsities=[${decimal(c.sparsity)}]'`,
      `--seeds ${seeds.join(",")}`].join(" \\\n    ");
    if (!closer.open) { closer.showModal(); closer.scrollTop = 0; part("title").focus?.(); }
    all(".chart", closer).forEach((figure) => {
      const chart = page.charts[Number(figure.dataset.chart)];
      const data = { loss: curves.loss, metric: curves.metric, layers: withLayers(c), ...pictured }[chart.spec.data.name];
      figure.hidden = !data.length;
      if (data.length) draw(figure, () => data).catch((error) => console.error(error));
    });
  }

  const decimal = (x) => (Number.isInteger(x) ? `${x}.0` : String(x));

  function curveRows(its) {
    const made = { loss: [], metric: [] };
    for (const r of its) {
      for (const [, epoch, ...numbers] of curveOf(r.run)) {
        [["loss", "training"], ["loss", "validation"], ["metric", "validation"], ["metric", "test"]].forEach(([what, of], k) => {
          numbers[k].forEach((x, i) => {
            if (x !== null && (what === "metric" || x > 0)) made[what].push({ seed: r.seed, rows: of, epoch: epoch[i], value: x });
          });
        });
      }
    }
    return made;
  }

  part("strategy").addEventListener("change", (event) => open(Number(event.target.value)));
  part("level").addEventListener("change", (event) => open(Number(event.target.value)));
  document.getElementById("close").addEventListener("click", () => closer.close());
  part("copy").addEventListener("click", (event) => copy(part("command").textContent, event.target));
  closer.addEventListener("click", (event) => { if (event.target === closer) closer.close(); });

  choose();
})();
