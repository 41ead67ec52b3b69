// Charts that do not depend on the filters: harmful shares, curves over rounds, score histograms.

// One row per arm: its harmful share with the 95% interval.
function shareChart(shares) {
  const holder = el("div", {});
  const note = shares.some((s) => s.low !== null) ? "share of responses, 95% interval" : "share of responses";
  const figure = el(
    "figure",
    {},
    el("figcaption", {}, el("b", {}, "Harmful responses"), el("span", {}, note)),
    holder,
  );
  drawnToWidth(holder, (width) => {
    const row = 46;
    const height = shares.length * row + 34;
    const [left, right] = [14, width - 70];
    const sx = scale(0, 1, left, right);
    const words = shares.map((s) => `${s.name} ${s.value === null ? "not measured" : percent(s.value)}`).join("; ");
    const root = svg("svg", { width, height, role: "img", "aria-label": `Harmful responses: ${words}` });
    for (const at of [0, 0.25, 0.5, 0.75, 1]) {
      root.append(
        svg("line", { class: "grid", x1: sx(at), x2: sx(at), y1: 4, y2: height - 26 }),
        text(sx(at), height - 10, `${100 * at}%`, { class: "tick middle" }),
      );
    }
    shares.forEach((share, i) => {
      const style = look(share.folder, share.arm);
      const y = i * row + 32;
      root.append(text(left, y - 14, cut(share.name, Math.floor(width / 8)), { class: "name" }));
      if (share.value === null) {
        root.append(text(left, y + 4, "nothing to measure", { class: "tick" }));
        return;
      }
      if (share.low !== null && share.high !== null) {
        root.append(svg("path", { class: `whisker wide ${style}`, d: `M${sx(share.low)} ${y}H${sx(share.high)}` }));
      }
      root.append(
        mark(style, sx(share.value), y),
        text(right + 12, y + 4, percent(share.value), { class: `label big ${style}` }),
      );
    });
    holder.replaceChildren(root);
  });
  return figure;
}

function turnChart(shares) {
  const series = shares
    .map((share) => ({
      name: share.name,
      style: look(share.folder, share.arm),
      points: share.turns
        .filter((t) => t.value !== null)
        .map((t) => ({ x: t.turn, y: t.value, low: t.low, high: t.high })),
    }))
    .filter((s) => s.points.length);
  if (!series.some((s) => s.points.length > 1)) return null;
  const chart = lineChart({
    title: "Harmful responses by turn",
    unit: "share of responses, 95% interval",
    x: "turn",
    series,
    percent: true,
    from: 0,
    whole: true,
    height: Math.max(210, shares.length * 46 + 10),
  });
  chart.insertBefore(keyOf(series), chart.children[1]);
  return chart;
}

function coverageChart(curve) {
  const series = curve.series.map(({ folder, arm, name, points }) => ({
    name,
    style: look(folder, arm),
    points: points.map(([x, y]) => ({ x, y })),
  }));
  const chart = lineChart({ ...curve, series, from: 0, whole: true });
  chart.insertBefore(keyOf(series), chart.children[1]);
  return chart;
}

function curveChart(curve) {
  return lineChart({
    ...curve,
    series: curve.series.map(({ folder, points }) => ({
      name: DATA.folders[folder],
      style: look(folder, null),
      points: points.map(([x, y]) => ({ x, y })),
    })),
    percent: curve.unit === "share of responses",
    from: ["share of responses", "exchanges"].some((at) => [curve.unit, curve.x].includes(at)) ? 0 : undefined,
    whole: ["round", "exchanges"].includes(curve.x),
  });
}

const BINS = 20;

// One row per source: the shares of its scored responses by score.
function histogram(figure, name) {
  const holder = figure.appendChild(el("div", {}));
  const column = SCORES.get(name);
  const counts = SOURCES.map(() => new Float64Array(BINS));
  for (let row = 0; row < MEASURED; row++) {
    if (column[row] >= 0) counts[SOURCE_OF[row]][Math.min(BINS - 1, Math.floor(column[row] * BINS))]++;
  }
  const shown = SOURCES.map((source, i) => ({
    source,
    counts: counts[i],
    total: counts[i].reduce((a, b) => a + b, 0),
  }))
    .filter((s) => s.total)
    .map((s) => ({
      ...s,
      over: s.counts.reduce((sum, n, bin) => sum + (bin / BINS >= s.source.threshold - 1e-9 ? n : 0), 0),
    }));
  const highest = Math.max(...shown.flatMap((s) => [...s.counts].map((n) => n / s.total)));
  drawnToWidth(holder, (width) => {
    const row = 92;
    const height = shown.length * row + 30;
    const [left, right] = [8, width - 8];
    const sx = scale(0, 1, left, right);
    const words = shown.map(
      (s) => `${s.source.name}: ${many(s.total, "score")}, ${percent(s.over / s.total)} at or above ${s.source.threshold}`,
    );
    const root = svg("svg", { width, height, role: "img", "aria-label": `Histogram of ${name}. ${words.join("; ")}` });
    shown.forEach(({ source, counts: bins, total, over }, i) => {
      const base = i * row + row - 8;
      root.append(text(left, base - 70, cut(`${source.name}`, Math.floor(width / 14)), { class: "name" }));
      root.append(
        text(
          right,
          base - 70,
          `${percent(over / total)} of ${total.toLocaleString("en")} at or above ${source.threshold}`,
          { class: "tick end" },
        ),
      );
      bins.forEach((n, bin) => {
        if (!n) return;
        const high = Math.max(1.5, (n / total / highest) * 58);
        const harmful = bin / BINS >= source.threshold - 1e-9;
        root.append(
          svg(
            "rect",
            {
              class: harmful ? "bar harmful" : "bar",
              x: sx(bin / BINS) + 1,
              width: sx(1 / BINS) - sx(0) - 2,
              y: base - high,
              height: high,
            },
            svg("title", {}, `${(bin / BINS).toFixed(2)} to ${((bin + 1) / BINS).toFixed(2)}: ${percent(n / total)}`),
          ),
        );
      });
      root.append(
        svg("line", { class: "axis", x1: left, x2: right, y1: base + 0.5, y2: base + 0.5 }),
        svg("line", { class: "rule on", x1: sx(source.threshold), x2: sx(source.threshold), y1: base - 60, y2: base }),
      );
    });
    for (const at of [0, 0.25, 0.5, 0.75, 1])
      root.append(text(sx(at), height - 10, String(at), { class: `tick ${at ? (at < 1 ? "middle" : "end") : ""}` }));
    holder.replaceChildren(root);
  });
  figure.append(
    el(
      "p",
      { class: "note" },
      `Height: share of a row’s scores in each ${1 / BINS} of the score, the highest bar ${percent(highest)}. ` +
        "The dotted line is the lowest harmful score.",
    ),
  );
}

function drawOverview() {
  if (DATA.shares.length)
    $("share-charts").append(...[shareChart(DATA.shares), turnChart(DATA.shares)].filter(Boolean));
  if (DATA.coverage) $("share-charts").append(coverageChart(DATA.coverage));
  if (DATA.curves.length) {
    $("curves").append(...DATA.curves.map(curveChart));
    if (DATA.folders.length > 1) {
      const trained = [...new Set(DATA.curves.flatMap((c) => c.series.map((s) => s.folder)))].sort((a, b) => a - b);
      $("training-key").append(
        keyOf(trained.map((folder) => ({ name: DATA.folders[folder], style: look(folder, null) }))),
      );
    }
  } else {
    $("curves").append(el("p", { class: "none" }, "No round of training is in these folders."));
  }
  const choose = $("histogram-score");
  for (const name of SCORES.keys()) choose.append(el("option", { value: name }, name));
  if (!SCORES.size) {
    choose.closest("p").replaceWith(el("p", { class: "none" }, "Nothing is scored yet."));
    return;
  }
  choose.value = SOURCES[0].harm;
  if (choose.selectedIndex < 0) choose.selectedIndex = 0;
  const draw = () => {
    const figure = el("figure", {});
    $("histogram").replaceChildren(figure);
    histogram(figure, choose.value);
  };
  choose.addEventListener("change", draw);
  draw();
}
