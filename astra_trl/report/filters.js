// Filters and order of the exchanges.

const FILTERS = $("filters");
const lower = []; // texts in lower case, made when first searched

function matchingTexts(wanted) {
  if (!lower.length) for (const content of TEXTS) lower.push(content.toLowerCase());
  return Uint8Array.from(lower, (content) => content.includes(wanted));
}

const ORDERS = {
  "as in the files": null,
  "highest score first": (scores) => (row) => -scores[row],
  "lowest score first": (scores) => (row) => scores[row],
  "likeliest probe first": () => (row) => -LOGPROB[row],
  "highest reward first": () => (row) => -REWARD[row],
};

// The values of the form.
function readQuery() {
  const value = (name) => FILTERS.elements[name].value;
  const bound = (name, none) => (value(name) === "" || Number.isNaN(Number(value(name))) ? none : Number(value(name)));
  const source = value("source");
  return {
    sources: Uint8Array.from(SOURCES, (_, i) => source === "" || Number(source) === i),
    state: value("state") === "" ? -1 : Number(value("state")),
    score: value("score"),
    low: bound("low", -Infinity),
    high: bound("high", Infinity),
    depth: Number(value("depth")),
    first: bound("first", -Infinity),
    last: bound("last", Infinity),
    text: value("text").toLowerCase(),
    order: value("order"),
  };
}

// The measured rows that match a query, in one pass.
function matchingRows(query) {
  const scores = SCORES.get(query.score) ?? HARM;
  const texts = query.text ? matchingTexts(query.text) : null;
  const ranged = query.low > -Infinity || query.high < Infinity;
  const rounded = query.first > -Infinity || query.last < Infinity;
  const kept = new Int32Array(MEASURED);
  let count = 0;
  for (let row = 0; row < MEASURED; row++) {
    if (!query.sources[SOURCE_OF[row]]) continue;
    if (query.state >= 0 && STATE[row] !== query.state) continue;
    if (query.depth && ROWS.depth[row] !== query.depth) continue;
    // A missing score is in no range.
    if (ranged && !(scores[row] >= Math.max(0, query.low) && scores[row] <= query.high)) continue;
    if (rounded) {
      const round = TREES.round[TREE_OF[row]];
      if (!round || round < query.first || round > query.last) continue;
    }
    if (texts && !texts[ROWS.probe[row]] && !texts[ROWS.response[row]]) continue;
    kept[count++] = row;
  }
  const result = kept.subarray(0, count);
  const by = ORDERS[query.order]?.(scores);
  if (!by) return result;
  // Rows without a measurement come last.
  const keys = new Float64Array(MEASURED);
  for (const row of result) {
    const key = by(row);
    keys[row] = Number.isNaN(key) || (scores[row] < 0 && query.order.includes("score")) ? Infinity : key;
  }
  return result.sort((a, b) => keys[a] - keys[b] || a - b);
}

const exact = (_, value) => (typeof value === "number" ? String(value) : value); // JSON has no Infinity

function options(select, choices) {
  select.replaceChildren(...choices.map(([value, name]) => el("option", { value }, name)));
}

// Calls change(rows, query) whenever the form is changed.
function watchFilters(change) {
  const { elements } = FILTERS;
  options(elements.source, [["", "all"], ...SOURCES.map((source, i) => [i, source.name])]);
  const states = [...new Set(STATE.subarray(0, MEASURED))].sort();
  options(elements.state, [["", "all"], ...states.map((state) => [state, STATES[state]])]);
  options(elements.score, SCORES.size ? [...SCORES.keys()].map((name) => [name, name]) : [["", "none"]]);
  if (SOURCES.length && SCORES.has(SOURCES[0].harm)) elements.score.value = SOURCES[0].harm;
  for (const option of elements.score.options) option.defaultSelected = option.selected;
  const depths = [...new Set(ROWS.depth.slice(0, MEASURED))].sort((a, b) => a - b);
  options(elements.depth, [[0, "all"], ...depths.map((depth) => [depth, depth])]);
  options(
    elements.order,
    Object.keys(ORDERS).map((name) => [name, name]),
  );
  if (!TREES.round.some(Boolean)) FILTERS.querySelector(".rounds").hidden = true;
  let waiting = 0;
  let last = "";
  const now = () => {
    clearTimeout(waiting);
    const query = readQuery();
    // A field that loses the focus reports its change again; the element that is being clicked must not move then.
    if (JSON.stringify(query, exact) === last) return;
    last = JSON.stringify(query, exact);
    const start = performance.now();
    change(matchingRows(query), query);
    FILTERS.dataset.milliseconds = (performance.now() - start).toFixed(1);
  };
  FILTERS.addEventListener("submit", (event) => event.preventDefault());
  FILTERS.addEventListener("change", now);
  FILTERS.addEventListener("reset", () => setTimeout(now));
  FILTERS.addEventListener("input", (event) => {
    if (event.target.type !== "search" && event.target.type !== "number") return;
    clearTimeout(waiting);
    waiting = setTimeout(now, 120); // wait until the user stops typing
  });
  now();
}
