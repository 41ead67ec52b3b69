// Likelihood against harm of the matching exchanges: a point leads to its conversation.

const CELL = 12; // pixels: points are looked up by the cell they fall into

class Scatter {
  constructor(holder, choose) {
    this.choose = choose;
    this.canvas = el("canvas", {
      tabindex: 0,
      role: "application",
      "aria-label": "Likelihood against harm",
      "aria-describedby": "scatter-help",
      "aria-roledescription": "scatter plot",
    });
    this.readout = el("p", { class: "readout", "aria-live": "polite" });
    this.note = el("span", {});
    this.frame = el("div", { class: "canvas" }, this.canvas);
    holder.append(
      el(
        "figure",
        {},
        this.frame,
        el(
          "p",
          { class: "note", id: "scatter-help" },
          this.note,
          " A point leads to its conversation: click it, or step through the points by arrow keys and press Enter.",
        ),
        this.readout,
      ),
    );
    this.rows = new Int32Array(0);
    this.at = -1;
    this.width = 0;
    drawnToWidth(this.frame, (width) => {
      this.width = width;
      this.draw();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.canvas.addEventListener("pointermove", (event) => this.point(this.near(event)));
    this.canvas.addEventListener("click", (event) => {
      const at = this.near(event);
      if (at >= 0) choose(this.rows[at], "point");
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  show(rows, name) {
    this.name = name;
    this.scores = SCORES.get(name) ?? HARM;
    this.rows = rows.filter((row) => this.scores[row] >= 0 && !Number.isNaN(LOGPROB[row]));
    this.left = rows.length - this.rows.length;
    this.byX = this.x = this.cells = null; // until it is drawn
    this.at = -1;
    this.readout.replaceChildren();
    this.drawSoon();
  }

  // At most once per frame.
  drawSoon() {
    cancelAnimationFrame(this.frameAsked);
    this.frameAsked = requestAnimationFrame(() => this.draw());
  }

  draw() {
    if (!this.width || !this.scores) return;
    const { canvas, rows, scores, width } = this;
    const height = Math.round(Math.min(340, Math.max(220, width * 0.4)));
    const ratio = devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = `12px ${style.fontFamily}`;
    let [low, high] = [Infinity, -Infinity];
    const different = new Set();
    for (const row of rows) {
      low = Math.min(low, LOGPROB[row]);
      high = Math.max(high, LOGPROB[row]);
      if (different.size < 9) different.add(scores[row]);
    }
    if (!rows.length) [low, high] = [-1, 0];
    const spread = rows.length > 8 && different.size < 9 ? 0.035 : 0;
    const pad = (high - low || 1) * 0.03;
    const frame = { left: 40, right: width - 10, top: 18, bottom: height - 38 };
    const sx = scale(low - pad, high + pad, frame.left, frame.right);
    const sy = scale(-0.05, 1.05, frame.bottom, frame.top);
    pen.fillStyle = colour("--muted");
    pen.strokeStyle = colour("--line");
    for (const at of [0, 0.25, 0.5, 0.75, 1]) {
      pen.beginPath();
      pen.moveTo(frame.left, sy(at));
      pen.lineTo(frame.right, sy(at));
      pen.stroke();
      pen.textAlign = "right";
      pen.fillText(String(at), frame.left - 6, sy(at) + 4);
    }
    pen.textAlign = "left";
    pen.fillText(cut(this.name, 60), frame.left + 2, 11);
    pen.textAlign = "center";
    for (const at of low === high ? [low] : ticks(low, high, width / 90))
      pen.fillText(formatNumber(at), sx(at), frame.bottom + 15);
    pen.fillText("log-probability of the probe, nats per token", (frame.left + frame.right) / 2, height - 6);
    this.x = new Float32Array(rows.length);
    this.y = new Float32Array(rows.length);
    this.cells = null;
    const few = rows.length < 2000;
    pen.globalAlpha = few ? 0.75 : rows.length < 10000 ? 0.45 : 0.25;
    const [calmInk, harmInk] = [colour("--c1"), colour("--harm")];
    const thresholds = SOURCES.map((source) => source.threshold);
    for (const harmfulOnes of [false, true]) {
      pen.fillStyle = harmfulOnes ? harmInk : calmInk;
      for (let i = 0; i < rows.length; i++) {
        const row = rows[i];
        if (scores[row] >= thresholds[SOURCE_OF[row]] !== harmfulOnes) continue;
        // Equal scores lie on one line: each point then has a place of its own beside it.
        const aside = spread ? (((row * 2654435761) % 4096) / 4096 - 0.5) * 2 * spread : 0;
        const [x, y] = [sx(LOGPROB[row]), sy(scores[row] + aside)];
        this.x[i] = x;
        this.y[i] = y;
        if (!few) pen.fillRect(x - 1.5, y - 1.5, 3, 3);
        else if (harmfulOnes) {
          pen.beginPath();
          pen.moveTo(x, y - 4.5);
          pen.lineTo(x + 4.5, y + 3.5);
          pen.lineTo(x - 4.5, y + 3.5);
          pen.fill();
        } else {
          pen.beginPath();
          pen.arc(x, y, 3, 0, 7);
          pen.fill();
        }
      }
    }
    pen.globalAlpha = 1;
    this.note.replaceChildren(
      `${many(rows.length, "exchange")}, score: `,
      bdi(this.name),
      this.left ? `; ${this.left.toLocaleString("en")} without a score or a log-probability are not drawn` : "",
      spread ? "; equal scores are spread a little, so that each can be seen." : ".",
    );
    if (this.at >= 0) {
      pen.strokeStyle = colour("--ink");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(this.x[this.at], this.y[this.at], 7, 0, 7);
      pen.stroke();
    }
  }

  near(event) {
    if (!this.x) return -1;
    if (!this.cells) {
      this.cells = new Map();
      for (let i = 0; i < this.rows.length; i++) {
        const cell = Math.floor(this.x[i] / CELL) * 4096 + Math.floor(this.y[i] / CELL);
        if (!this.cells.get(cell)?.push(i)) this.cells.set(cell, [i]);
      }
    }
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [best, least] = [-1, CELL * CELL];
    for (let i = -1; i <= 1; i++) {
      for (let j = -1; j <= 1; j++) {
        for (const at of this.cells.get((Math.floor(x / CELL) + i) * 4096 + Math.floor(y / CELL) + j) ?? []) {
          const distance = (this.x[at] - x) ** 2 + (this.y[at] - y) ** 2;
          if (distance < least) [best, least] = [at, distance];
        }
      }
    }
    return best;
  }

  point(at) {
    this.canvas.style.cursor = at >= 0 ? "pointer" : "";
    if (at < 0 || at === this.at) return;
    this.at = at;
    const row = this.rows[at];
    this.readout.replaceChildren(
      bdi(cut(probeOf(row), 90)),
      ` ${harmInWords(row)}, ${formatNumber(LOGPROB[row])} nats per token; ${placeOf(row)}, `,
      bdi(sourceOf(row).name),
    );
    this.drawSoon();
  }

  key(event) {
    if (!this.rows.length || !this.x) return;
    if (!this.byX) {
      this.byX = Int32Array.from(this.rows, (_, i) => i).sort(
        (a, b) => this.x[a] - this.x[b] || this.y[a] - this.y[b],
      );
      this.place = -1;
    }
    const last = this.byX.length - 1;
    const leap = Math.max(1, Math.round(last / 20));
    const to = {
      ArrowRight: this.place + 1,
      ArrowLeft: this.place - 1,
      ArrowUp: this.place + leap,
      ArrowDown: this.place - leap,
      Home: 0,
      End: last,
    }[event.key];
    if (event.key === "Enter" && this.at >= 0) this.choose(this.rows[this.at], "point");
    else if (to !== undefined) this.point(this.byX[(this.place = Math.max(0, Math.min(last, to)))]);
    else return;
    event.preventDefault();
  }
}
