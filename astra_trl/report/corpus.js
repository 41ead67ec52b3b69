// The embedded exchanges, as columns with numbers ready to be filtered.

const DATA = JSON.parse($("data").textContent);
const { rows: ROWS, trees: TREES, sources: SOURCES, texts: TEXTS } = DATA;

const MEASURED = ROWS.error.length; // the rows after these are exchanges of which only the text is known
const NOT_ASKED = -1; // in a column of scores; NaN is what could not be scored

const numbers = (column) => Float64Array.from(column, (value) => (typeof value === "number" ? value : NaN));

const SCORES = new Map(
  Object.entries(DATA.scores).map(([name, column]) => [
    name,
    Float64Array.from(column, (v) => (v === null ? NOT_ASKED : v === "nan" ? NaN : v)),
  ]),
);
const LOGPROB = numbers(DATA.numbers.probe_logprob_per_token);
const REWARD = numbers(DATA.numbers.reward);

// The tree of each row: rows of a tree follow each other.
const TREE_OF = new Int32Array(ROWS.parent.length);
for (let tree = 0; tree < TREES.first.length; tree++) {
  TREE_OF.fill(tree, TREES.first[tree], TREES.first[tree] + TREES.count[tree]);
  TREE_OF.fill(tree, TREES.first_unmeasured[tree], TREES.first_unmeasured[tree] + TREES.count_unmeasured[tree]);
}
const SOURCE_OF = Int32Array.from(TREE_OF, (tree) => TREES.source[tree]);

// The score that a row's source counts by, and the state of the row.
const [HARMLESS, HARMFUL, UNSCORED, FAILED, UNMEASURED, EMPTY] = [0, 1, 2, 3, 4, 5];
const HARM = new Float64Array(ROWS.parent.length).fill(NaN);
const STATE = new Uint8Array(ROWS.parent.length).fill(UNMEASURED);
for (let row = 0; row < MEASURED; row++) {
  const { harm, threshold } = SOURCES[SOURCE_OF[row]];
  const score = SCORES.has(harm) ? SCORES.get(harm)[row] : NaN;
  if (ROWS.error[row] !== null) STATE[row] = FAILED;
  else if (!TEXTS[ROWS.response[row]].trim()) STATE[row] = EMPTY;
  else if (!(score >= 0)) STATE[row] = UNSCORED;
  else {
    HARM[row] = score;
    STATE[row] = score >= threshold ? HARMFUL : HARMLESS;
  }
}
const STATES = ["harmless", "harmful", "not scored", "failed", "text only", "empty response"];

const probeOf = (row) => TEXTS[ROWS.probe[row]];
const responseOf = (row) => TEXTS[ROWS.response[row]];
const sourceOf = (row) => SOURCES[SOURCE_OF[row]];
const isOpening = (row) => sourceOf(row).arm === "openings"; // its probe is the opening itself

// The rows from the opening to this one.
function pathTo(row) {
  const path = [];
  for (let at = row; at >= 0; at = ROWS.parent[at]) path.push(at);
  return path.reverse();
}

// All rows of a tree, parents before children, each with those that follow it.
function treeRows(tree) {
  const span = (first, count) => Array.from({ length: count }, (_, i) => first + i);
  const rows = [
    ...span(TREES.first[tree], TREES.count[tree]),
    ...span(TREES.first_unmeasured[tree], TREES.count_unmeasured[tree]),
  ];
  const children = new Map([[-1, []], ...rows.map((row) => [row, []])]);
  for (const row of rows) children.get(ROWS.parent[row]).push(row);
  for (const group of children.values()) group.sort((a, b) => ROWS.branch[a] - ROWS.branch[b] || a - b);
  return children;
}

// The harm of a row in words; a number only if there is a score.
function harmInWords(row) {
  return STATE[row] <= HARMFUL ? `${SOURCES[SOURCE_OF[row]].harm} ${HARM[row].toFixed(2)}` : STATES[STATE[row]];
}

// "round 3, tree 5, turn 2"
function placeOf(row) {
  const tree = TREE_OF[row];
  const round = TREES.round[tree] ? `round ${TREES.round[tree]}, tree` : "opening";
  return `${round} ${TREES.number[tree]}, turn ${ROWS.depth[row]}`;
}
