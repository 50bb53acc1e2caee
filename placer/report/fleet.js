// The page of a control loop: what it is given, or what the controller that served it answers.
const POLL_MS = 5000;
const state = { page: null, pool: "", plan: "", text: "" };
const at = (id) => document.getElementById(id);

// An element; text is never markup.
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.map((one) => (one instanceof Node ? one : String(one))));
  return made;
}

const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;"); // Plotly reads tags
const wrapped = (text) => plain(text.length > 600 ? text.slice(0, 600) + " ..." : text).replace(/(.{60}\S*)\s/g, "$1<br>");
const known = (value, digits) => (value === null ? "-" : value.toFixed(digits));
const percent = (share) => (share === null ? "-" : `${(100 * share).toFixed(1)}%`);
const bytes = (size) => (size >= 1e9 ? `${(size / 1e9).toFixed(1)} GB` : size >= 1e6 ? `${(size / 1e6).toFixed(1)} MB` : `${size} bytes`);
const unique = (values) => [...new Set(values)];
const isWaiting = (plan) => ["proposed", "approved"].includes(plan.state);
const runs = () => state.page.runs;

function moment(run, s) {
  if (!inHours()) return new Date(1000 * (run.begins_s + s)).toISOString().slice(0, 19).replace("T", " ");
  const minutes = Math.floor(s / 60);
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")} h`;
}

// Columns are [name, class]; "n" is for numbers, "less" for what a phone has no room for.
function fill(table, columns, rows) {
  const cell = (tag, value, kind) => el(tag, kind ? { class: kind } : {}, value);
  const head = el("tr", {}, ...columns.map(([name, kind]) => cell("th", name, kind)));
  head.childNodes.forEach((one) => one.setAttribute("scope", "col"));
  const lines = rows.map((row) => el("tr", {}, ...row.map((value, c) => cell("td", value, columns[c][1]))));
  table.replaceChildren(el("thead", {}, head), el("tbody", {}, ...lines));
  return table;
}

function showFleet() {
  const several = runs().length > 1;
  const rows = runs().flatMap((run) => run.pools.map((pool) => {
    const button = el("button", { id: `choose-${run.name}-${pool.name}`, "aria-pressed": String(pool.name === state.pool) }, pool.name);
    button.onclick = () => choose(pool.name);
    const trouble = pool.conditions.length ? el("span", { class: "bad" }, pool.conditions.join("; ")) : "-";
    return [button, ...(several ? [run.name] : []), pool.model || "-", pool.mode || "-", pool.engines || "-", pool.gpus || "-",
      known(pool.balancedness, 3), pool.outcome || "-", pool.waits || "-", pool.applied || "-", trouble];
  }));
  const columns = [["pool"], ...(several ? [["run"]] : []), ["model", "less"], ["mode", "less"], ["engines", "n"], ["GPUs", "n"],
    ["balance", "n"], ["decision"], ["waits"], ["applied", "less"], ["condition", "less"]];
  fill(at("fleet"), columns, rows);
  const names = unique(runs().flatMap((run) => run.pools.map((pool) => pool.name)));
  at("pool").replaceChildren(...names.map((name) => new Option(name, name, false, name === state.pool)));
}

function showFacts() {
  const parts = runs().flatMap((run) => {
    const pool = run.pools.find((one) => one.name === state.pool);
    if (!pool) return [];
    const width = pool.width ? `${pool.width} ranks an engine, ${pool.slots} slots a layer. ` : "";
    const found = [el("p", {}, runs().length > 1 ? `${run.name}: ` : "", width, pool.outcome ? `Last decision: ${pool.outcome}. ` : "No decision. ", pool.reason)];
    if (pool.running) found.push(el("p", {}, `Runs: ${pool.running}`));
    if (pool.homes) found.push(el("p", {}, `Homes: ${pool.homes}`));
    if (pool.conditions.length) found.push(el("p", { class: "bad" }, pool.conditions.join("; ")));
    const waiting = run.plans.filter((plan) => plan.pool === state.pool && isWaiting(plan));
    return [...found, ...waiting.map(waits)];
  });
  at("facts").replaceChildren(...parts);
}

function waits(plan) {
  const size = `${plan.moved.toLocaleString("en")} slots${plan.moved_bytes ? ` (${bytes(plan.moved_bytes)})` : ""} move`;
  const card = el("div", { class: "waits" }, el("p", {}, el("strong", {}, plan.id), ` ${plan.state === "approved" ? "is approved and begins in its turn" : "waits for approval"}: ${size}.`), el("p", {}, plan.reason));
  if (plan.command) {
    const copy = el("button", { id: `copy-${plan.id}` }, "Copy");
    copy.onclick = () => navigator.clipboard?.writeText(plan.command);
    card.append(el("p", {}, el("code", {}, plan.command), " ", copy));
  }
  return card;
}

function showCompared() {
  at("compared").hidden = !runs().some((run) => run.figures[state.pool]);
  const labels = unique(runs().flatMap((run) => Object.keys(run.figures[state.pool] ?? {})));
  const rows = labels.map((label) => [label, ...runs().map((run) => run.figures[state.pool]?.[label] ?? "-")]);
  fill(at("figures"), [["figure"], ...runs().map((run) => [run.name, "n"])], rows);
}

const events = () => runs().flatMap((run, r) => run.events.filter((one) => one.pool === state.pool).map((one) => ({ run, r, ...one, lane: one.kind === "decision" ? one.state : one.kind })));

function showStory() {
  const several = runs().length > 1;
  const rows = events().sort((one, other) => other.at_s - one.at_s).map((one) => [moment(one.run, one.at_s), ...(several ? [one.run.name] : []), one.id, one.state, one.reason]);
  fill(at("story"), [[inHours() ? "after" : "UTC", "state"], ...(several ? [["run"]] : []), ["id"], ["state"], ["reason"]], rows.length ? rows : [["-", ...(several ? [""] : []), "", "", "Nothing was decided yet."]]);
}

function showPlans() {
  const plans = runs().flatMap((run, r) => run.plans.filter((one) => one.pool === state.pool).map((plan) => ({ run, key: `${r}/${plan.id}`, plan })));
  if (!plans.some((one) => one.key === state.plan)) state.plan = (plans.find(({ plan }) => isWaiting(plan)) ?? plans[0])?.key ?? "";
  const title = ({ run, plan }) => `${runs().length > 1 ? `${run.name}, ` : ""}${plan.id}, ${plan.state}${plan.gain === null ? "" : `, ${percent(plan.gain)} less time`}`;
  at("plan").replaceChildren(...plans.map((one) => new Option(title(one), one.key, false, one.key === state.plan)));
  const chosen = plans.find((one) => one.key === state.plan);
  at("plan").disabled = !plans.length;
  at("planned").replaceChildren(el("p", {}, chosen ? `${moment(chosen.run, chosen.plan.at_s)}: ${chosen.plan.state}: ${chosen.plan.reason}` : "No plan yet."));
  showHeat(chosen?.plan);
  showFrontier(plans, chosen?.plan);
  const moves = chosen?.plan.moves ?? [];
  const columns = [["layer", "n"], ["expert", "n"], ["from"], ["to"], ["why"]];
  const count = chosen ? `${chosen.plan.moved.toLocaleString("en")} slots${moves.length ? `; the first ${moves.length}:` : ", which are listed for the newest plan and those that wait."}` : "No plan yet.";
  const table = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Moves" }, fill(el("table"), columns, moves));
  at("moves").replaceChildren(el("p", { class: "soft" }, count), ...(moves.length ? [table] : []));
}

function choose(pool) {
  Object.assign(state, { pool, plan: "" });
  if (state.page.of_pool && state.page.of_pool !== pool) poll();
  else show();
}

// All of it; whoever was at a button or a list stays there.
function show() {
  const focused = document.activeElement?.id;
  const pools = runs().flatMap((run) => run.pools);
  if (!pools.some((pool) => pool.name === state.pool)) state.pool = state.page.of_pool || (pools.find((pool) => pool.waits) ?? pools[0])?.name || "";
  at("title").textContent = state.page.title;
  document.title = `placer: ${state.page.title}`;
  at("notes").replaceChildren(...unique(runs().flatMap((run) => run.notes)).map((note) => el("p", { class: note.startsWith("Condition") ? "bad" : "soft" }, note)));
  at("main").hidden = false;
  for (const part of [showFleet, showFacts, showCompared, showLines, showEvents, showStory, showPlans]) part();
  if (focused && document.activeElement?.id !== focused) at(focused)?.focus({ preventScroll: true });
  if (!window.Plotly) requestAnimationFrame(() => setTimeout(readLibrary));
}

let due = 0; // From here on: of a controller that runs.
const token = () => sessionStorage.getItem("token");
function lock() {
  Object.assign(state, { page: null, text: "", pool: "", plan: "" });
  sessionStorage.removeItem("token");
  at("main").hidden = at("leave").hidden = true;
  for (const id of ["notes", "fleet", "pool", "facts", "figures", "lines", "events", "story", "plan", "planned", "heat", "frontier", "moves"]) at(id).replaceChildren();
  at("title").textContent = "control loop";
  at("login").hidden = false;
  at("token").focus();
}

async function poll() {
  clearTimeout(due);
  const pool = state.pool;
  try {
    const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
    const answer = await fetch(`page.json?pool=${encodeURIComponent(pool)}`, { headers, credentials: "same-origin", cache: "no-store" });
    if (answer.status === 401 || answer.status === 403) {
      at("status").textContent = token() ? `The token is refused: ${await answer.text()}` : "";
      return lock();
    }
    if (answer.status === 404) state.pool = "";
    else if (answer.ok) receive(pool, await answer.text());
    else throw new Error(answer.statusText);
  } catch (error) {
    at("status").textContent = `The controller does not answer (${error.message}); what is shown is from before.`;
  }
  due = setTimeout(poll, document.hidden ? 12 * POLL_MS : POLL_MS);
}

function receive(pool, text) {
  if (pool !== state.pool) return; // another was chosen meanwhile
  at("status").textContent = `as of ${new Date().toISOString().slice(11, 19)} UTC, read-only`;
  at("login").hidden = true;
  at("leave").hidden = !token();
  if (text === state.text) return;
  Object.assign(state, { text, page: JSON.parse(text) });
  show();
}
at("pool").onchange = ({ target }) => choose(target.value);
at("plan").onchange = ({ target }) => { state.plan = target.value; showPlans(); };
at("leave").onclick = () => { clearTimeout(due); at("status").textContent = ""; lock(); };
at("login").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token").value.trim());
  at("token").value = "";
  poll();
};
dark.addEventListener("change", () => state.page && show());
if (!data) document.addEventListener("visibilitychange", () => { if (!document.hidden && state.page) poll(); });
state.page = data;
if (data) show(); else poll();
