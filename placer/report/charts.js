// The charts of the page: lines over time, events, heat maps and the frontier, each with its table.
const COLOURS = ["#1f9d6b", "#4a90c9", "#c9884a", "#9a6fc2"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const CHARTS = [
  { name: "Balance", note: "Mean load of a rank over the largest, mean of the layers; 1 is even.", metrics: { balancedness: "balancedness" }, more: { range: [0, 1.05] } },
  { name: "Requests in time", note: "Share that keeps to the pool's TTFT and TPOT.", metrics: { in_time: "in time" }, more: { tickformat: ".0%", range: [0, 1.05] } },
  { name: "Queue", note: "Requests.", metrics: { waiting: "waiting", running: "running" }, more: { rangemode: "tozero" } },
  { name: "Width", note: "GPUs that the pool's engines have.", metrics: { gpus: "GPUs" }, more: { rangemode: "tozero" } },
  { name: "Fan-out", note: "GPUs that serve a token's experts, mean of the layers.", metrics: { fanout: "GPUs a token" } },
];

const inHours = () => runs().length > 1 || state.page.source === "simulation";
const onAxis = (run, s) => (inHours() ? s / 3600 : 1000 * (run.begins_s + s));
const axis = () => (inHours() ? { title: { text: "hours" } } : { type: "date" });

// The library of the charts takes a while to be read: tables are seen before it.
const plot = (...what) => window.Plotly && draw(...what);
function readLibrary() {
  if (window.Plotly) return;
  document.head.append(el("script", {}, at("plotly").textContent));
  if (state.page) for (const part of [showLines, showEvents, showPlans]) part();
}

// A table that is made when it is opened.
function asTable(details, columns, rows) {
  const fresh = () => {
    while (details.children.length > 1) details.lastChild.remove();
    if (!details.open) return;
    const region = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The chart as a table" });
    region.append(fill(el("table"), columns, rows()));
    details.append(region);
  };
  details.ontoggle = fresh;
  fresh();
}

// A place for a chart, made once, so that what is open stays open.
function figure(parent, id, label) {
  if (!at(id)) {
    const details = el("details", { id: `${id}-table` }, el("summary", {}, "As a table"));
    parent.append(el("figure", {}, el("div", { id, role: "img" }), details));
  }
  at(id).setAttribute("aria-label", label);
  return at(`${id}-table`);
}

function showLines() {
  at("clock").textContent = inHours() ? "Hours since the beginning." : "Times are UTC.";
  CHARTS.forEach((chart, c) => {
    const id = `line-${c}`;
    if (!at(`${id}-part`)) at("lines").append(el("div", { id: `${id}-part` }, el("h3", {}, chart.name), el("p", { class: "soft", id: `${id}-note` })));
    const found = runs().flatMap((run, r) => Object.entries(chart.metrics).map(([metric, name], m) => {
      const line = run.lines[state.pool]?.[metric];
      return line?.values.length ? { run, line, name: runs().length > 1 ? `${run.name}, ${name}` : name, colour: COLOURS[(runs().length > 1 ? r : m) % COLOURS.length], dash: DASHES[runs().length > 1 ? m : 0] } : null;
    })).filter(Boolean);
    const why = Object.keys(chart.metrics).map((metric) => runs()[0].missing[metric]).find(Boolean) ?? "nothing was recorded";
    at(`${id}-note`).textContent = found.length ? chart.note : `Not known: ${why}.`;
    const details = figure(at(`${id}-part`), id, `${chart.name} over time. ${chart.note}`);
    details.parentNode.hidden = !found.length;
    if (!found.length) return;
    plot(id, found.map(({ run, line, name, colour, dash }) => ({
      name, x: line.at_s.map((s) => onAxis(run, s)), y: line.values, mode: line.values.length > 60 ? "lines" : "lines+markers",
      line: { color: colour, dash, width: 1.5 }, showlegend: found.length > 1,
      ...(chart.metrics.gpus ? { line: { color: colour, dash, width: 1.5, shape: "hv" } } : {}),
    })), { height: 230, xaxis: axis(), yaxis: chart.more ?? {} });
    asTable(details, [["time"], ["line"], ["value", "n"]], () => found.flatMap(({ run, line, name }) => line.values.map((value, i) => [moment(run, line.at_s[i]), name, value])));
  });
}

function showEvents() {
  const found = events();
  const lanes = ["hold", "infeasible", "wait", "propose", "act", "plan", "operation"].filter((lane) => found.some((one) => one.lane === lane));
  const groups = runs().flatMap((run, r) => lanes.map((lane) => ({ run, r, lane, them: found.filter((one) => one.r === r && one.lane === lane) }))).filter((group) => group.them.length);
  at("events").hidden = !found.length;
  at("events").setAttribute("aria-label", `${found.length} events on a time line; the table below has them all`);
  if (found.length) {
    plot("events", groups.map(({ run, r, lane, them }) => ({
      name: runs().length > 1 ? `${run.name}, ${lane}` : lane, type: "scatter", mode: "markers", showlegend: false,
      x: them.map((one) => onAxis(run, one.at_s)), y: them.map(() => lane), text: them.map((one) => `${plain(one.id)}, ${plain(one.state)}<br>${wrapped(one.reason)}`),
      hovertemplate: runs().length > 1 ? `${plain(run.name)}: %{text}<extra></extra>` : "%{text}<extra></extra>",
      marker: { size: 9, symbol: ["circle", "diamond", "square", "x"][r % 4], color: runs().length > 1 ? COLOURS[r % 4] : COLOURS[lanes.indexOf(lane) % 4] },
    })), { height: 110 + 32 * lanes.length, margin: { l: 85, r: 10, t: 10, b: 45 }, xaxis: axis(), yaxis: { type: "category", categoryorder: "array", categoryarray: [...lanes].reverse() } });
  }
}

function showHeat(plan) {
  const heat = plan?.heat;
  at("heat").hidden = !heat;
  at("heat-note").textContent = heat ? "1 is the layer's mean, on the traffic that the plan was made from; the others wait for the strongest colour of a row."
    : plan ? "Not known of this plan: loads are kept for plans that the controller made itself, and shown for the newest." : "No plan yet.";
  if (!heat) return;
  for (const name of ["before", "after"]) {
    const rows = matrix({ dtype: "u1", shape: `${heat.layers}, ${heat.ranks}`, bdata: heat[name] }).map((row) => row.map((step) => step * heat.peak / 255));
    const details = figure(at("heat"), `heat-${name}`, `Load of each rank by layer ${name} ${plan.id}; the highest is ${Math.max(...rows.flat()).toFixed(2)} times its layer's mean`);
    plot(`heat-${name}`, [heatmap(rows, heat)], { title: { text: name, x: 0.02 }, height: 340, xaxis: { title: { text: "rank" }, dtick: Math.ceil(heat.ranks / 16) }, yaxis: { title: { text: "layer" }, dtick: Math.ceil(heat.layers / 16), autorange: "reversed" } });
    const columns = [["layer", "n"], ...rows[0].map((_, rank) => [`rank ${rank}`, "n"])];
    asTable(details, columns, () => rows.map((row, layer) => [layer, ...row.map((load) => load.toFixed(2))]));
  }
}

const heatmap = (rows, { peak }) => heat(rows, "layer %{y}, rank %{x}: %{z:.2f}x the mean", { zmin: 0, zmax: peak, colorbar: { thickness: 12 } });

// Of the chosen plan's first moves, and of all plans.
function showFrontier(plans, chosen) {
  const others = plans.filter(({ plan }) => plan.gain !== null).map(({ plan }) => ({ name: plan.id, moved: plan.moved, gain: plan.gain }));
  const own = (chosen?.frontier ?? []).map((one) => ({ name: `first moves of ${chosen.id}`, ...one }));
  const all = [...own, ...others];
  const isKnown = own.length > 1 || others.length > 0;
  at("frontier").parentNode.hidden = !isKnown;
  at("frontier-note").textContent = isKnown ? "Share of the MoE layers' time that is saved, by the slots that move: the best that few moves of the plan come to, and all plans."
    : "Not known: no plan says what its moves win.";
  if (!isKnown) return;
  const traces = [
    { name: chosen ? `first moves of ${chosen.id}` : "", x: own.map((one) => one.moved), y: own.map((one) => one.gain), mode: "lines+markers", line: { color: COLOURS[0] } },
    { name: "plans", x: others.map((one) => one.moved), y: others.map((one) => one.gain), text: others.map((one) => plain(one.name)), mode: "markers", hovertemplate: "%{text}: %{x} slots, %{y:.1%}<extra></extra>", marker: { color: COLOURS[2], size: 10, symbol: "diamond" } },
  ];
  plot("frontier", traces.filter((one) => one.x.length), { height: 260, showlegend: true, xaxis: { title: { text: "slots moved" }, rangemode: "tozero" }, yaxis: { tickformat: ".1%", rangemode: "tozero" } });
  asTable(at("frontier-table"), [["plan"], ["slots moved", "n"], ["less time", "n"]], () => all.map((one) => [one.name, one.moved, percent(one.gain)]));
}
