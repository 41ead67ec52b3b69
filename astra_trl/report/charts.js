// Line charts with intervals, and the parts of all charts: ticks, axes, labels without overlap.

function ticks(low, high, count) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const values = [];
  for (let at = Math.ceil(low / step - 1e-9); at <= high / step + 1e-9; at++)
    values.push(Number((at * step).toPrecision(12)));
  return values;
}

const scale = (from, to, start, end) => (value) => start + ((value - from) / (to - from || 1)) * (end - start);

const text = (x, y, content, attributes = {}) => svg("text", { x, y, ...attributes }, content);

// Moves overlapping labels apart, in place.
function keepApart(labels, distance, top, bottom) {
  labels.sort((a, b) => a.y - b.y);
  labels.forEach((label, i) => {
    label.y = Math.max(label.y, i ? labels[i - 1].y + distance : top);
  });
  for (let i = labels.length - 1; i >= 0; i--) {
    labels[i].y = Math.min(labels[i].y, i === labels.length - 1 ? bottom : labels[i + 1].y - distance);
  }
  return labels;
}

// The style of an arm of a folder: by folder if there are several, else by arm; never by colour alone.
const ARM_ORDER = [
  ...new Set(["tester", "baseline", "openings", ...SOURCES.map((s) => s.arm).filter((arm) => arm !== null)]),
];
function look(folder, arm) {
  const place = arm === null ? 0 : ARM_ORDER.indexOf(arm);
  const colour = DATA.folders.length > 1 ? [0, 1, 3, 4, 5, 6, 7, 2][folder % 8] : place % 8;
  return `c${colour} d${(DATA.folders.length > 1 ? place : colour) % 4}`;
}

const MARKS = {
  d0: (x, y) => svg("circle", { cx: x, cy: y, r: 3.5 }),
  d1: (x, y) => svg("rect", { x: x - 3.2, y: y - 3.2, width: 6.4, height: 6.4 }),
  d2: (x, y) => svg("path", { d: `M${x} ${y - 4.4}l4.2 7.4h-8.4z` }),
  d3: (x, y) => svg("path", { d: `M${x} ${y - 4.6}l4.6 4.6l-4.6 4.6l-4.6 -4.6z` }),
};
const mark = (style, x, y) => {
  const shape = MARKS[style.split(" ")[1]](x, y);
  shape.setAttribute("class", `mark ${style}`);
  return shape;
};

function keyOf(series) {
  return el(
    "ul",
    { class: "key" },
    ...series.map(({ name, style }) =>
      el(
        "li",
        {},
        svg(
          "svg",
          { width: 30, height: 12, "aria-hidden": "true" },
          svg("path", { class: `line ${style}`, d: "M0 6H30" }),
          mark(style, 15, 6),
        ),
        bdi(name),
      ),
    ),
  );
}

// {title, unit, x, series: [{name, style, points: [{x, y, low, high}]}], percent, from}: a figure that redraws itself.
function lineChart(spec) {
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  const holder = el("div", {});
  const figure = el(
    "figure",
    {},
    el("figcaption", {}, el("b", {}, bdi(spec.title)), el("span", {}, spec.unit)),
    holder,
    readout,
  );
  const write = spec.percent ? percent : formatNumber;
  const xs = [...new Set(spec.series.flatMap((s) => s.points.map((p) => p.x)))].sort((a, b) => a - b);
  const all = spec.series.flatMap((s) => s.points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]));
  const lowest = Math.min(...all, spec.from ?? Infinity);
  const highest = Math.max(...all, spec.percent ? Math.min(1, 1.15 * Math.max(...all)) : -Infinity);
  const pad = (highest - lowest || Math.abs(highest) || 1) * 0.06;
  const y0 = spec.from ?? lowest - pad;
  const y1 = spec.percent ? Math.max(0.1, highest) : highest + pad;
  let current = -1;
  drawnToWidth(holder, (width) => {
    const height = spec.height ?? 210;
    const frame = { left: 46, right: width - 62, top: 10, bottom: height - 34 };
    const inset = xs.length > 1 ? 0 : 20;
    const sx = scale(xs[0], xs.at(-1), frame.left + 8 + inset, frame.right - 8);
    const sy = scale(y0, y1, frame.bottom, frame.top);
    const root = svg("svg", { width, height, role: "img", tabindex: 0, "aria-label": inWords(spec, write) });
    for (const at of ticks(y0, y1, 5)) {
      root.append(
        svg("line", { class: "grid", x1: frame.left, x2: frame.right, y1: sy(at), y2: sy(at) }),
        text(frame.left - 6, sy(at) + 4, spec.percent ? `${Math.round(at * 1000) / 10}%` : formatNumber(at), {
          class: "tick end",
        }),
      );
    }
    const steps = ticks(xs[0], xs.at(-1), Math.min(spec.whole ? xs.length : 99, width / 70)).filter(
      (at) => !spec.whole || at % 1 === 0,
    );
    for (const at of steps.length ? steps : xs) {
      root.append(
        svg("line", { class: "axis", x1: sx(at), x2: sx(at), y1: frame.bottom, y2: frame.bottom + 4 }),
        text(sx(at), frame.bottom + 16, formatNumber(at), { class: "tick middle" }),
      );
    }
    root.append(
      svg("line", { class: "axis", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }),
      text((frame.left + frame.right) / 2, height - 4, spec.x, { class: "tick middle" }),
    );
    const ends = [];
    spec.series.forEach(({ style, points }, place) => {
      // Intervals at the same place are drawn side by side.
      const shift = points.some((p) => p.low != null) ? (place - (spec.series.length - 1) / 2) * 5 : 0;
      const at = points.map((p) => [sx(p.x) + shift, sy(p.y)]);
      for (const [i, p] of points.entries()) {
        if (p.low != null && p.high != null) {
          root.append(svg("path", { class: `whisker ${style}`, d: `M${at[i][0]} ${sy(p.low)}V${sy(p.high)}` }));
        }
      }
      root.append(
        svg("path", {
          class: `line ${style}`,
          d: `M${at.map((p) => p.map((v) => v.toFixed(1)).join(" ")).join("L")}`,
        }),
      );
      if (points.length <= 40) for (const [x, y] of at) root.append(mark(style, x, y));
      const [x, y] = at.at(-1);
      // A value is written beside the last point, or above it inside the chart; that of a single point could hide others.
      if (points.length === 1 && xs.length > 1) return;
      if (points.at(-1).x < xs.at(-1))
        root.append(
          text(x, sy(points.at(-1).high ?? points.at(-1).y) - 8, write(points.at(-1).y), {
            class: `label middle ${style}`,
          }),
        );
      else ends.push({ x: x + 10, y: y + 4, style, value: points.at(-1).y });
    });
    for (const end of keepApart(ends, 13, frame.top + 6, frame.bottom)) {
      root.append(text(end.x, end.y, write(end.value), { class: `label ${end.style}` }));
    }
    const rule = svg("line", { class: "rule", y1: frame.top, y2: frame.bottom, x1: -9, x2: -9 });
    root.append(rule);
    const show = (place) => {
      current = Math.max(0, Math.min(xs.length - 1, place));
      const at = xs[current];
      rule.setAttribute("x1", sx(at));
      rule.setAttribute("x2", sx(at));
      const values = spec.series.flatMap((s) => s.points.filter((p) => p.x === at).map((p) => [s.name, p]));
      readout.replaceChildren(
        `${spec.x} ${formatNumber(at)}: `,
        ...values.flatMap(([name, p], i) => [
          i ? "; " : "",
          spec.series.length > 1 ? bdi(name) : "",
          spec.series.length > 1 ? " " : "",
          write(p.y),
          p.low != null && p.high != null ? ` [${write(p.low)}, ${write(p.high)}]` : "",
        ]),
      );
    };
    root.addEventListener("pointermove", (event) => {
      const x = event.clientX - root.getBoundingClientRect().left;
      show(xs.reduce((best, at, i) => (Math.abs(sx(at) - x) < Math.abs(sx(xs[best]) - x) ? i : best), 0));
    });
    root.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: xs.length - 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      show(step);
    });
    holder.replaceChildren(root);
  });
  return figure;
}

function inWords(spec, write) {
  const lines = spec.series.map(({ name, points }) =>
    points.length
      ? `${name}: from ${[points[0], points.at(-1)].map((p) => `${write(p.y)} at ${formatNumber(p.x)}`).join(" to ")}`
      : `${name}: nothing`,
  );
  return `${spec.title}, ${spec.unit}, by ${spec.x}. ${lines.join("; ")}. Arrow keys read single values.`;
}
