// A tree of exchanges, drawn from the opening on the left to its leaves on the right.

const STEP = { x: 68, y: 24 };
const MOST_DRAWN = 1500;

class TreeView {
  constructor(holder, choose) {
    this.choose = choose;
    this.holder = holder;
    this.tree = -1;
  }

  show(row) {
    this.row = row;
    const tree = TREE_OF[row];
    const focused = this.holder.contains(document.activeElement);
    this.children = treeRows(tree);
    const all = this.children.size - 1;
    this.drawn = all > MOST_DRAWN ? this.around(row) : this.children;
    this.draw();
    this.holder.querySelector(".cut")?.remove();
    if (all > MOST_DRAWN) {
      this.holder.append(el("p", { class: "note cut" }, `Of ${many(all, "exchange")}, those beside the chosen path.`));
    }
    const chosen = this.nodes.get(row);
    if (focused) chosen.focus({ preventScroll: true });
    const box = this.scroller;
    const place = this.places.get(row);
    box.scrollTo({ left: place.x - box.clientWidth * 0.6, top: place.y - box.clientHeight / 2 });
  }

  // The path to a row with its siblings at each turn, and what follows the row.
  around(row) {
    const drawn = new Map();
    for (const at of [-1, ...pathTo(row)]) drawn.set(at, this.children.get(at).slice(0, 200));
    for (const at of pathTo(row)) if (!drawn.get(ROWS.parent[at]).includes(at)) drawn.get(ROWS.parent[at]).push(at);
    for (const group of [...drawn.values()]) for (const at of group) if (!drawn.has(at)) drawn.set(at, []);
    return drawn;
  }

  draw() {
    this.places = new Map();
    this.order = [];
    let leaf = 0;
    // Without recursion: a conversation may have any number of turns.
    const stack = [[-1, 0, false]];
    while (stack.length) {
      const [at, depth, done] = stack.pop();
      const below = this.drawn.get(at);
      if (done || !below.length) {
        const ys = below.map((child) => this.places.get(child).y);
        this.places.set(at, {
          x: 22 + depth * STEP.x,
          y: below.length ? (ys[0] + ys.at(-1)) / 2 : 20 + leaf++ * STEP.y,
          depth,
        });
        if (!done && at >= 0) this.order.push(at);
        continue;
      }
      if (at >= 0) this.order.push(at);
      stack.push([at, depth, true], ...below.map((child) => [child, depth + 1, false]).reverse());
    }
    const deepest = Math.max(...[...this.places.values()].map((p) => p.depth));
    const path = new Set(pathTo(this.row));
    const [edges, chosenEdges] = [[], []];
    this.nodes = new Map();
    for (const [at, place] of this.places) {
      if (at < 0) continue;
      const from = this.places.get(ROWS.parent[at]);
      const middle = (from.x + place.x) / 2;
      (path.has(at) ? chosenEdges : edges).push(
        `M${from.x} ${from.y}C${middle} ${from.y} ${middle} ${place.y} ${place.x} ${place.y}`,
      );
    }
    const root = svg(
      "svg",
      {
        role: "tree",
        "aria-label": `Tree of ${many(this.places.size - 1, "exchange")}`,
        width: 22 + deepest * STEP.x + 58,
        height: 20 + Math.max(1, leaf) * STEP.y,
      },
      svg("path", { class: "edge", d: edges.join("") }),
      svg("path", { class: "edge chosen", d: chosenEdges.join("") }),
    );
    const start = this.places.get(-1);
    root.append(
      svg(
        "rect",
        { class: "root", x: start.x - 6, y: start.y - 6, width: 12, height: 12 },
        svg("title", {}, "opening"),
      ),
    );
    for (const at of this.order) root.append(this.node(at, path));
    this.scroller = el("div", { class: "scroll treebox" }, root);
    this.holder.replaceChildren(this.scroller, KEY.cloneNode(true));
  }

  node(at, path) {
    const { x, y, depth } = this.places.get(at);
    const chosen = at === this.row;
    const siblings = this.drawn.get(ROWS.parent[at]);
    const node = svg(
      "g",
      {
        role: "treeitem",
        class: `node ${path.has(at) ? "onpath" : ""}`,
        tabindex: chosen ? 0 : -1,
        "data-row": at,
        "aria-level": depth,
        "aria-selected": String(chosen),
        "aria-setsize": siblings.length,
        "aria-posinset": siblings.indexOf(at) + 1,
        "aria-label": `${harmInWords(at)}. ${cut(probeOf(at), 100)}`,
        onclick: () => this.choose(at, "node"),
        onkeydown: (event) => this.key(event, at),
      },
      svg("rect", { class: "hit", x: x - 14, y: y - 11, width: 58, height: 22 }),
      svg("circle", { class: "ring", cx: x, cy: y, r: 10 }),
      ...shapeOf(STATE[at], heat(at), x, y),
      STATE[at] <= HARMFUL ? text(x + 13, y + 4, HARM[at].toFixed(2), { class: "tick" }) : null,
    );
    this.nodes.set(at, node);
    return node;
  }

  key(event, at) {
    const group = this.drawn.get(ROWS.parent[at]);
    const place = group.indexOf(at);
    const order = this.order.indexOf(at);
    const to = {
      ArrowUp: group[place - 1] ?? this.order[order - 1],
      ArrowDown: group[place + 1] ?? this.order[order + 1],
      ArrowLeft: ROWS.parent[at],
      ArrowRight: this.children.get(at)?.[0],
      Home: this.order[0],
      End: this.order.at(-1),
      Enter: at,
      " ": at,
    };
    if (!(event.key in to)) return;
    event.preventDefault();
    if (to[event.key] >= 0) this.choose(to[event.key], event.key === "Enter" ? "enter" : "key");
  }
}

// A shape for each state, so that colour is never alone in telling.
function shapeOf(state, step, x, y) {
  const shape = `shape s${state} h${step}`;
  if (state === HARMFUL) return [svg("path", { class: shape, d: `M${x} ${y - 7.5}l7.2 12.5h-14.4z` })];
  if (state === HARMLESS) return [svg("circle", { class: shape, cx: x, cy: y, r: 5.5 })];
  if (state === FAILED) return [svg("path", { class: shape, d: `M${x - 5} ${y - 5}l10 10m0 -10l-10 10` })];
  if (state === UNSCORED)
    return [svg("circle", { class: shape, cx: x, cy: y, r: 6.5 }), text(x, y + 4, "?", { class: "tick middle" })];
  if (state === EMPTY) return [svg("rect", { class: shape, x: x - 5, y: y - 5, width: 10, height: 10 })];
  return [svg("circle", { class: shape, cx: x, cy: y, r: 4 })];
}

const KEY = el(
  "ul",
  { class: "key", "aria-label": "Marks" },
  ...[
    [HARMLESS, 0, "harmless"],
    [HARMFUL, 4, "harmful"],
    [UNSCORED, "", "not scored"],
    [FAILED, "", "failed"],
    [EMPTY, "", "empty response"],
    [UNMEASURED, "", "known as context only"],
  ].map(([state, step, name]) =>
    el("li", {}, svg("svg", { width: 18, height: 18, "aria-hidden": "true" }, ...shapeOf(state, step, 9, 9)), name),
  ),
);
