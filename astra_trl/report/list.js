// The list of matching exchanges. Only the visible ones are in the document.

const ROW_HEIGHT = 66;
const LIST = $("list");

function scoreBadge(row) {
  const state = STATE[row];
  const content =
    state <= HARMFUL
      ? HARM[row].toFixed(2)
      : { [FAILED]: "failed", [UNSCORED]: "n/s", [EMPTY]: "empty", [UNMEASURED]: "text" }[state];
  const title = harmInWords(row);
  return el("span", { class: `badge s${state} h${heat(row)}`, title }, state === HARMFUL ? "▲ " : "", content);
}

// A step of five from harmless to harmful.
const heat = (row) => (STATE[row] <= HARMFUL ? Math.min(4, Math.floor(HARM[row] * 5)) : "");

class ExchangeList {
  constructor(choose) {
    this.rows = new Int32Array(0);
    this.selected = -1; // a place in the list
    this.space = el("div", { class: "space", role: "presentation" });
    LIST.append(this.space);
    LIST.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(LIST);
    LIST.addEventListener("click", (event) => {
      const place = Math.floor((event.clientY - this.space.getBoundingClientRect().top) / ROW_HEIGHT);
      if (place >= 0 && place < this.rows.length) choose(this.rows[(this.selected = place)], "click");
    });
    LIST.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(LIST.clientHeight / ROW_HEIGHT) - 1);
      const { selected: at, rows } = this;
      const to = {
        ArrowDown: at + 1,
        ArrowUp: at - 1,
        PageDown: at + page,
        PageUp: at - page,
        Home: 0,
        End: rows.length - 1,
      }[event.key];
      if (event.key === "Enter" && at >= 0) choose(rows[at], "enter");
      else if (to !== undefined && rows.length)
        choose(rows[(this.selected = Math.max(0, Math.min(rows.length - 1, to)))], "key");
      else return;
      event.preventDefault();
    });
  }

  show(rows) {
    this.rows = rows;
    this.space.style.height = `${rows.length * ROW_HEIGHT}px`;
    LIST.scrollTop = 0;
    this.draw();
  }

  // Marks a row, and scrolls to it if the list holds it.
  mark(row) {
    if (this.rows[this.selected] !== row) this.selected = this.rows.indexOf(row);
    if (this.selected >= 0) {
      const top = this.selected * ROW_HEIGHT;
      if (top < LIST.scrollTop) LIST.scrollTop = top;
      else if (top + ROW_HEIGHT > LIST.scrollTop + LIST.clientHeight)
        LIST.scrollTop = top + ROW_HEIGHT - LIST.clientHeight;
    }
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(LIST.scrollTop / ROW_HEIGHT) - 3);
    const last = Math.min(this.rows.length, Math.ceil((LIST.scrollTop + LIST.clientHeight) / ROW_HEIGHT) + 3);
    const shown = [];
    for (let place = first; place < last; place++) shown.push(this.option(place));
    this.space.replaceChildren(...shown);
    const active = this.selected >= first && this.selected < last ? `option-${this.selected}` : null;
    if (active) LIST.setAttribute("aria-activedescendant", active);
    else LIST.removeAttribute("aria-activedescendant");
  }

  option(place) {
    const row = this.rows[place];
    const option = el(
      "div",
      {
        role: "option",
        id: `option-${place}`,
        "aria-selected": String(place === this.selected),
        "aria-setsize": this.rows.length,
        "aria-posinset": place + 1,
      },
      scoreBadge(row),
      el(
        "span",
        { class: "words" },
        el("span", { class: "clip" }, bdi(cut(probeOf(row), 200))),
        el("span", { class: "clip answer" }, bdi(cut(responseOf(row), 200))),
        el("span", { class: "clip where" }, bdi(sourceOf(row).name), ` · ${placeOf(row)}`),
      ),
    );
    option.style.top = `${place * ROW_HEIGHT}px`;
    return option;
  }
}
