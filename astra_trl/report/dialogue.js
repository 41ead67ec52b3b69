// The conversation up to the selected exchange, with the measurements of each.

const DIALOGUE = $("dialogue");

function turn(speaker, content, extra = []) {
  return el(
    "li",
    { class: `turn ${["tester", "target"].includes(speaker) ? speaker : "before"}` },
    el("span", { class: "speaker" }, bdi(speaker)),
    el("p", { dir: "auto" }, content === "" ? el("i", {}, "says nothing") : content),
    ...extra,
  );
}

// One measurement, or the note that there is none.
function measure(name, value) {
  const content = value === "nan" || Number.isNaN(value) ? "not scored" : formatNumber(value);
  return el(
    "div",
    {},
    el("dt", {}, bdi(name)),
    el("dd", { class: content === "not scored" ? "missing" : "" }, content),
  );
}

function measuresOf(row) {
  if (STATE[row] === UNMEASURED)
    return el("p", { class: "note" }, "Context of the exchange below: this run’s files hold its text, no scores.");
  if (STATE[row] === FAILED) return el("p", { class: "failure" }, "Failed: ", bdi(TEXTS[ROWS.error[row]]));
  const numbersOf = DATA.numbers;
  const groups = [
    ["Scores", Object.entries(DATA.scores).map(([name, column]) => [name, column[row]])],
    ["Reward terms", Object.entries(DATA.terms).map(([name, column]) => [name, column[row]])],
    [
      "",
      [
        ["reward", numbersOf.reward[row]],
        ["credit", numbersOf.credit[row] === numbersOf.reward[row] ? null : numbersOf.credit[row]],
        ["nats per token", numbersOf.probe_logprob_per_token[row]],
        ["nats per token, baseline", numbersOf.baseline_logprob_per_token[row]],
      ],
    ],
  ].map(([name, measures]) => [name, measures.filter(([, value]) => value !== null)]);
  const parts = groups
    .filter(([, measures]) => measures.length)
    .map(([name, measures]) =>
      el(
        "div",
        { class: "group" },
        name ? el("span", { class: "group-name" }, name) : null,
        el("dl", {}, ...measures.map(([n, v]) => measure(n, v))),
      ),
    );
  if (STATE[row] === EMPTY)
    parts.unshift(el("p", { class: "failure" }, "An empty response: in no figure of harm, and without a reward."));
  if (STATE[row] === UNSCORED)
    parts.unshift(el("p", { class: "failure" }, bdi(sourceOf(row).harm), " could not score this exchange."));
  return el("div", { class: "measures" }, ...parts);
}

const PLACES = new Map(); // the same opening in other arms

function elsewhere(row, choose) {
  if (!PLACES.size) {
    TREES.first.forEach((_, tree) => {
      const { folder, target, arm } = SOURCES[TREES.source[tree]];
      if (arm === null) return;
      const key = JSON.stringify([folder, target, TREES.number[tree]]);
      PLACES.set(key, [...(PLACES.get(key) ?? []), tree]);
    });
  }
  const { folder, target, arm } = sourceOf(row);
  if (arm === null) return null;
  const others = (PLACES.get(JSON.stringify([folder, target, TREES.number[TREE_OF[row]]])) ?? []).filter(
    (tree) => tree !== TREE_OF[row],
  );
  if (!others.length) return null;
  return el(
    "p",
    { class: "elsewhere" },
    "The same opening: ",
    ...others.map((tree) => {
      const members = Array.from({ length: TREES.count[tree] }, (_, i) => TREES.first[tree] + i);
      const deep = members.findLast((at) => ROWS.depth[at] <= ROWS.depth[row]) ?? members[0];
      return el(
        "button",
        { type: "button", onclick: () => choose(deep, "elsewhere") },
        bdi(SOURCES[TREES.source[tree]].name),
      );
    }),
  );
}

function showDialogue(row, choose) {
  const path = pathTo(row);
  const opening = DATA.openings[TREES.opening[TREE_OF[row]]].map(([speaker, place]) => turn(speaker, TEXTS[place]));
  const turns = path.flatMap((at) => [
    turn(isOpening(at) ? "opening" : "tester", probeOf(at)),
    turn("target", responseOf(at), [measuresOf(at)]),
  ]);
  if (turns.length) turns.slice(-2).forEach((item) => item.classList.add("chosen"));
  DIALOGUE.replaceChildren(
    el("p", { class: "where" }, scoreBadge(row), " ", bdi(sourceOf(row).name), ` · ${placeOf(row)}`),
    el("ol", { class: "turns" }, ...opening, ...turns),
    ...[elsewhere(row, choose)].filter(Boolean),
  );
}
