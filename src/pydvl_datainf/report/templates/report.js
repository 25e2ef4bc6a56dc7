"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const LONG = 200; // characters from which a text is folded
const SHORT = 24; // characters up to which a text needs no room to wrap
const ENDS = ["helpful", "harmful"];
const LENGTHS = [5, 10, 25, 50, 100, { label: "all", value: -1 }]; // rows on a page

// Values

const NUMERIC = new Set(["number", "integer", "influence", "scientific"]);
const numeric = (kind) => NUMERIC.has(kind);

/** JSON lacks some numbers, which are texts in it. */
function sortKey(kind, value) {
  if (!numeric(kind)) return kind === "truth" ? Number(value) : value;
  const number = Number(value);
  return Number.isNaN(number) ? -Infinity : number;
}

function exponential(number) {
  const [digits, exponent] = Math.abs(number).toExponential(2).split("e");
  return number === 0 ? "0" : `${digits}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
}

function plain(kind, value) {
  if (kind === "truth") return value ? "yes" : "no";
  if (typeof value !== "number" || kind === "integer") return String(value);
  if (kind === "scientific") return exponential(value);
  if (kind === "number") return String(Number(value.toPrecision(4)));
  return (value < 0 ? "-" : value > 0 ? "+" : "") + exponential(value);
}

// What DataTables puts into a cell or searches is HTML to it; ours is text.
const escaped = (text) =>
  text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function textNode(text) {
  if (text === "") return element("em", "muted", "(empty)");
  const made = element("span", "text", text);
  made.dir = "auto";
  return made;
}

function imageNode(name, images) {
  const figure = element("span", "image");
  if (Object.hasOwn(images, name)) {
    const image = element("img");
    image.src = images[name];
    image.alt = "";
    figure.append(image);
  }
  figure.append(textNode(name));
  return figure;
}

/** The content of a cell; long texts are folded behind a button. */
function contentOf(kind, value, images) {
  if (kind === "image") return [imageNode(value, images)];
  if (kind !== "text") return [plain(kind, value)];
  if (value.length <= LONG) return [textNode(value)];
  const more = element("button", "more", "more");
  more.type = "button";
  more.setAttribute("aria-expanded", "false");
  more.addEventListener("click", () => {
    const open = more.parentElement.classList.toggle("open");
    more.setAttribute("aria-expanded", String(open));
    more.textContent = open ? "less" : "more";
  });
  const box = element("div", "folded");
  box.append(textNode(value), more);
  return [box];
}

// Columns

/** A column of a table: `of` gives the value of a row. */
function column(title, kind, of, settings = {}) {
  return {
    title: escaped(title).replaceAll("_", "_<wbr>"), // so that long names can be broken
    name: title,
    kind,
    of,
    type: numeric(kind) || kind === "truth" ? "num" : "string",
    className: numeric(kind) ? "right" : `kind-${kind}`,
    data: (row, wanted) => {
      const value = of(row);
      if (wanted === "sort" || wanted === "type") return sortKey(kind, value);
      return wanted === "filter" ? escaped(plain(kind, value)) : "";
    },
    createdCell: (cell, _, row) => {
      cell.dataset.name = title;
      cell.replaceChildren(...contentOf(kind, of(row), settings.images));
    },
    ...settings,
  };
}

/** A column of influences with bars as long as the largest of `scale()` allows. */
function bars(title, of, scale) {
  const made = column(title, "influence", of, { className: "right influence" });
  made.createdCell = (cell, _, row) => {
    const value = of(row);
    const bar = element("span", value < 0 ? "bar negative" : "bar positive");
    const share = Math.abs(value) / (scale() || 1);
    bar.style.width = `${Math.round(100 * Math.min(1, share))}%`;
    const track = element("span", "track");
    track.append(bar);
    cell.dataset.name = title;
    cell.replaceChildren(element("span", "number", plain("influence", value)), track);
  };
  return made;
}

/** What is known of the samples of a side, of which `index` gives the number. */
const told = (side, index, settings = () => ({})) => {
  const { ids, columns, images } = data[side];
  return [ids, ...columns].map((known) => {
    const short = known.kind === "text" && known.values.every(({ length }) => length <= SHORT);
    return column(known.name, known.kind, (row) => known.values[index(row)], {
      ...(short && { className: "short" }),
      images,
      ...settings(known),
    });
  });
};

function table(id, columns, rows, what, settings = {}, empty = `no ${what}`) {
  return new DataTable(`#${id}`, {
    columns,
    data: rows,
    autoWidth: false,
    deferRender: true,
    pageLength: 10,
    lengthMenu: LENGTHS,
    layout: { topStart: "pageLength", topEnd: "search", bottomStart: "info", bottomEnd: "paging" },
    drawCallback() {
      const { pages } = this.api().page.info();
      const paging = this.api().table().container().querySelector(".dt-paging");
      paging.hidden = pages <= 1;
    },
    language: {
      search: "Search:",
      lengthMenu: "_MENU_ rows",
      info: `_START_ to _END_ of _TOTAL_ ${what}`,
      infoEmpty: `no ${what}`,
      infoFiltered: "(searched in _MAX_)",
      emptyTable: empty,
      zeroRecords: `no ${what} found`,
    },
    ...settings,
  });
}

// The test samples, and what helped and hurt the chosen one

const STACKED = matchMedia("(max-width: 60rem)"); // the list above what it chooses, see the style
const tests = data.test.ids.values.map((_, i) => i);
let chosen = 0;

/** Of few training samples those at one end need not all be what it is called. */
const IS = { helpful: (influence) => influence > 0, harmful: (influence) => influence < 0 };
const NOTHING = {
  helpful: "Nothing helped: no training sample has a positive influence.",
  harmful: "Nothing harmed: no training sample has a negative influence.",
};

const rowsOf = (test, end) => {
  const { rows, influences } = data.tops[end];
  return rows[test]
    .map((row, i) => ({ test, end, rank: i + 1, row, influence: influences[test][i] }))
    .filter(({ influence }) => IS[end](influence));
};

const largestOf = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

const largest = () => largestOf(ENDS.flatMap((end) => data.tops[end].influences[chosen]));

/** In the list of test samples only some columns have room; a search looks at all. */
const wordy = ({ kind }) => kind === "text" || kind === "image";
const known = data.test.columns;
const listed = [
  data.test.ids,
  known.find(({ name }) => name === "label") ?? known.find((column) => !wordy(column)),
  known.find(({ kind }) => kind === "image"),
  known.findLast(({ kind }) => kind === "text"),
];

const list = table(
  "tests-table",
  told("test", (row) => row, (column) => ({ visible: listed.includes(column) })),
  tests,
  `${data.query}s`,
  {
    order: [],
    createdRow: (row, test) => {
      const cell = row.cells[0];
      const button = element("button", "pick");
      button.type = "button";
      const id = String(data.test.ids.values[test]);
      button.append(textNode(id));
      button.setAttribute("aria-label", `Choose ${data.query} ${id}`);
      cell.replaceChildren(button);
      row.addEventListener("click", (event) => {
        if (event.target.closest(".more")) return;
        choose(test);
        if (STACKED.matches) document.querySelector(".detail").scrollIntoView();
      });
      mark(row, test);
    },
  },
);

/** What leaving out a sample adds to the loss, where retraining showed that sizes are right. */
const added = data.unit === null ? [] : ["loss without it"];
const changes = added.map((name) =>
  column(name, "influence", ({ influence }) => influence * data.unit, { className: "right" }),
);

/** Whether a sample that helps or harms is suspicious by itself. */
const suspicions = data.beside.map((name) =>
  column(name, data.kinds[name], ({ row }) => data.measures[name][row]),
);

const neighbours = Object.fromEntries(
  ENDS.map((end) => [
    end,
    table(
      `${end}-table`,
      [
        bars("influence", ({ influence }) => influence, largest),
        ...changes,
        ...suspicions,
        ...told("train", ({ row }) => row),
      ],
      [],
      "training samples",
      { order: [[0, end === "helpful" ? "desc" : "asc"]] },
      NOTHING[end],
    ),
  ]),
);

function mark(row, test) {
  row.classList.toggle("chosen-row", test === chosen);
  row.querySelector(".pick")?.setAttribute("aria-pressed", String(test === chosen));
}

function showFacts() {
  const facts = document.getElementById("chosen-facts");
  facts.replaceChildren();
  for (const { name, kind, values } of data.test.columns) {
    const value = element("dd");
    value.append(...contentOf(kind, values[chosen], data.test.images));
    facts.append(element("dt", "", name), value);
  }
}

function choose(test, remember = true) {
  chosen = test;
  const id = String(data.test.ids.values[test]);
  const title = document.getElementById("chosen-title");
  title.replaceChildren(`${data.query[0].toUpperCase()}${data.query.slice(1)} `, textNode(id));
  showFacts();
  for (const end of ENDS) neighbours[end].clear().rows.add(rowsOf(test, end)).draw();
  list.rows().every(function () {
    if (this.node()) mark(this.node(), this.data());
  });
  document.getElementById("previous").disabled = test === 0;
  document.getElementById("next").disabled = test === tests.length - 1;
  if (remember) rememberIn(`#test=${encodeURIComponent(id)}`);
}

function rememberIn(address) {
  try {
    history.replaceState(null, "", address);
  } catch {
    // Some browsers keep the address of a file as it is.
  }
}

/** Turns the list to the page of the chosen one, if the search leaves it there. */
function reveal() {
  const place = list.rows({ search: "applied" }).data().toArray().indexOf(chosen);
  const { length } = list.page.info();
  if (place >= 0) list.page(Math.floor(place / length)).draw("page");
}

function step(by) {
  choose(Math.min(tests.length - 1, Math.max(0, chosen + by)));
  reveal();
}

function fromAddress() {
  const found = location.hash.match(/^#test=(.*)$/);
  if (!found) return -1;
  try {
    return data.test.ids.values.map(String).indexOf(decodeURIComponent(found[1]));
  } catch {
    return -1; // no such escape
  }
}

document.getElementById("previous").addEventListener("click", () => step(-1));
document.getElementById("next").addEventListener("click", () => step(1));
addEventListener("hashchange", () => {
  const test = fromAddress();
  if (test >= 0) choose(test);
  if (test >= 0) reveal();
});
choose(Math.max(0, fromAddress()), false);
reveal();

// Suspicious training samples, and blocks

const measured = Object.entries(data.measures).map(([name, values], i) => {
  if (i > 0) return column(name, data.kinds[name], (row) => values[row]);
  const scale = largestOf(data.suspects.map((row) => values[row]));
  return bars(name, (row) => values[row], () => scale);
});
table(
  "suspects-table",
  [...measured, ...told("train", (row) => row)],
  data.suspects,
  "training samples",
  { order: [[0, "asc"]] },
);

const blocks = data.blocks.names.map((_, i) => i);
const blockColumns = [
  column("block", "text", (i) => data.blocks.labels[i]),
  column("width", "integer", (i) => data.blocks.widths[i]),
];
if (data.blocks.damping)
  blockColumns.push(column("damping λ", "scientific", (i) => data.blocks.damping[i]));
if (data.blocks.shares)
  blockColumns.push(column("share of influence", "number", (i) => data.blocks.shares[i]));
if (data.blocks.errors)
  blockColumns.push(
    column("cosine to exact", "number", (i) => data.blocks.cosines[i]),
    column("relative error", "number", (i) => data.blocks.errors[i]),
  );
table("blocks-table", blockColumns, blocks, "blocks", { order: [] });

// Downloads

// What programs skip before a formula, or do not show: controls, formats, blanks, marks by themselves.
const SKIPPED = String.raw`\s\p{C}\p{Z}\p{M}\p{Default_Ignorable_Code_Point}\u2800`;
const SIGNS = String.raw`=+\-@|\u2212\ufe62\ufe63\ufe66\ufe6b\uff0b\uff0d\uff1d\uff20`;

/** A text that begins like a formula would be one to a spreadsheet, whatever it skips before it. */
const FORMULA = new RegExp(`^[${SKIPPED}]*[${SIGNS}]|^[\\t\\r]`, "u");

/** One that takes semicolons for separators ends cells in the middle of texts, quoted or not. */
const GAP = new RegExp(`[;"${SKIPPED}]+(?=([${SIGNS}])?)`, "gu");
const ENDS_CELL = /[;\p{Cc}\u2028\u2029]/u;

const guarded = (text) => {
  const inside = text.replace(GAP, (gap, formula) =>
    formula && ENDS_CELL.test(gap) ? `${gap}'` : gap,
  );
  return FORMULA.test(text) ? `'${inside}` : inside;
};

/** Texts are quoted, all of them: some programs end cells at more than commas. */
function csvCell(value, kind) {
  if (numeric(kind) || kind === "truth") return String(value);
  return `"${guarded(String(value)).replaceAll('"', '""')}"`;
}

/** Lines of CSV: each column has a name, a kind and a function of a row. */
const csv = (columns, rows) =>
  [
    columns.map(({ name }) => csvCell(name, "text")),
    ...rows.map((row) => columns.map(({ kind, of }) => csvCell(of(row), kind))),
  ]
    .map((cells) => `${cells.join(",")}\r\n`)
    .join("");

const renamed = (columns, prefix) =>
  columns.map(({ name, kind, of }) => ({ name: `${prefix}_${name}`, kind, of }));

const influenceColumns = [
  { name: "test_id", kind: data.test.ids.kind, of: ({ test }) => data.test.ids.values[test] },
  { name: "end", kind: "text", of: ({ end }) => end },
  { name: "rank", kind: "integer", of: ({ rank }) => rank },
  { name: "influence", kind: "influence", of: ({ influence }) => influence },
  ...renamed(told("train", ({ row }) => row), "train"),
];

const influencesOf = (test) => ENDS.flatMap((end) => rowsOf(test, end));

const DOWNLOADS = {
  chosen: () => csv(influenceColumns, influencesOf(chosen)),
  influences: () => csv(influenceColumns, tests.flatMap(influencesOf)),
  tests: () => csv(told("test", (row) => row), tests),
  suspects: () => csv([...measured, ...told("train", (row) => row)], data.suspects),
  labels: () =>
    csv(
      data.labels.columns.map((name, i) => ({
        name,
        kind: i === 0 ? "text" : "number",
        of: (row) => row[i],
      })),
      data.labels.rows,
    ),
  blocks: () =>
    csv([column("path", "text", (i) => data.blocks.names[i]), ...blockColumns], blocks),
};

function download(name) {
  // With a mark by which spreadsheets know UTF-8.
  const content = new Blob(["\ufeff", DOWNLOADS[name]()], { type: "text/csv;charset=utf-8" });
  const url = URL.createObjectURL(content);
  const link = element("a");
  link.href = url;
  link.download = `${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

for (const button of document.querySelectorAll("[data-csv]"))
  button.addEventListener("click", () => download(button.dataset.csv));
