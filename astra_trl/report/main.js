// All views together: a row that is selected in one is shown in all.

drawOverview();

const tree = new TreeView($("tree"), choose);
const list = new ExchangeList(choose);
const scatter = new Scatter($("scatter"), choose);

// Shows a row. A pointer or Enter moves to the conversation; arrow keys do not.
function choose(row, how) {
  tree.show(row);
  showDialogue(row, choose);
  list.mark(row);
  if (how !== "start") history.replaceState(null, "", `#exchange-${row}`);
  const title = $("dialogue-title");
  const place = title.getBoundingClientRect();
  const narrow = $("list").getBoundingClientRect().bottom < place.top;
  if (["point", "enter"].includes(how) || (how === "click" && narrow)) {
    title.focus({ preventScroll: true });
    const inSight = place.top > 0 && place.bottom < innerHeight / 2;
    if (!inSight) $("tree-title").scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "start" });
  }
}

if (!MEASURED) {
  for (const part of [FILTERS, $("count"), document.querySelector(".scatter"), document.querySelector(".explorer")])
    part.hidden = true;
  $("conversations").append(el("p", { class: "none" }, "No exchange is in these folders yet."));
} else {
  if (DATA.in_files > MEASURED) {
    $("thinned").hidden = false;
    $("thinned").textContent =
      `The folders hold ${many(DATA.in_files, "exchange")}. Here are ${MEASURED.toLocaleString("en")}: ` +
      "whole trees, evenly spaced.";
  }
  watchFilters((rows, query) => {
    $("count").textContent = `${rows.length.toLocaleString("en")} of ${many(MEASURED, "exchange")}`;
    list.show(rows);
    scatter.show(rows, query.score);
    list.selected = -1;
  });
  const linked = Number(/^#exchange-(\d+)$/.exec(location.hash)?.[1] ?? -1);
  choose(linked >= 0 && linked < ROWS.parent.length ? linked : list.rows[0], "start");
}
