"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const createElement = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const cssVariable = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Theme: follows the system until the button is pressed.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const charts = [];
  const setTheme = (name) => {
    root.dataset.theme = name;
    charts.forEach((draw) => draw());
  };
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
  let screenTheme = null;
  addEventListener("beforeprint", () => { screenTheme = root.dataset.theme; setTheme("light"); });
  addEventListener("afterprint", () => { if (screenTheme) setTheme(screenTheme); });

  // Tables: sort by any column, find rows, show one budget.
  const parseNumber = (text) => {
    const match = text.replace(/,/g, "").match(/[-+]?\d+(\.\d+)?/);
    return match ? Number(match[0]) : NaN;
  };
  const compareBy = (column) => (a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[column].firstChild ? row.cells[column].textContent.trim() : "");
    if (column === 0) return x.localeCompare(y);
    const [m, n] = [parseNumber(x), parseNumber(y)];
    if (Number.isNaN(m) && Number.isNaN(n)) return x.localeCompare(y);
    return Number.isNaN(m) ? Infinity : Number.isNaN(n) ? -Infinity : m - n;
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    const block = table.closest(".block");
    const body = table.tBodies[0];
    const original = [...body.rows];
    const rows = original.filter((row) => !row.classList.contains("group"));
    const find = block.querySelector(".find");
    const group = block.querySelector("select.group");
    let sorted = false;
    const show = () => {
      const text = find.value.toLowerCase();
      const chosenGroup = group ? group.value : "";
      const visibleGroups = new Set();
      let count = 0;
      rows.forEach((row) => {
        const match = (!text || row.cells[0].textContent.toLowerCase().includes(text)) && (!chosenGroup || row.dataset.group === chosenGroup);
        row.hidden = !match;
        if (match) { visibleGroups.add(row.dataset.group); count += 1; }
      });
      original.forEach((row) => {
        if (row.classList.contains("group")) row.hidden = sorted || !visibleGroups.has(row.dataset.group);
      });
      block.querySelector(".count").textContent = count === rows.length ? "" : `${count} of ${rows.length} rows`;
    };
    table.tHead.querySelectorAll("th").forEach((head, column) => {
      head.firstElementChild.addEventListener("click", () => {
        const order = { none: column ? "descending" : "ascending", descending: column ? "ascending" : "none", ascending: column ? "none" : "descending" };
        const next = order[head.getAttribute("aria-sort")];
        table.tHead.querySelectorAll("th").forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", next);
        sorted = next !== "none";
        table.classList.toggle("sorted", sorted);
        const sign = next === "descending" ? -1 : 1;
        const by = compareBy(column);
        const missingLast = (a, b) => {
          const difference = by(a, b);
          return Number.isFinite(difference) ? sign * difference : Math.sign(difference);
        };
        body.append(...(sorted ? [...rows].sort(missingLast) : original));
        show();
      });
    });
    find.addEventListener("input", show);
    if (group) group.addEventListener("change", show);
  });

  // A click on a score shows the command that reruns its cell.
  const cellDialog = document.getElementById("cell");
  const addFact = (list, name, value) => {
    const pair = createElement("div");
    pair.append(createElement("dt", "", name), createElement("dd", "", value));
    list.append(pair);
  };
  const describeCell = (id) => {
    const cell = data.cells[id];
    const box = createElement("div");
    box.append(createElement("h3", "", `${cell.method}${cell.budget === "all" ? "" : ` @ ${cell.budget}`} on ${cell.task}`));
    const pre = createElement("pre");
    pre.append(createElement("code", "", cell.command));
    const copy = createElement("button", "", "Copy");
    copy.type = "button";
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(cell.command);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(pre);
      }
    });
    const facts = createElement("dl", "facts");
    addFact(facts, "score", cell.score);
    addFact(facts, "samples", `${cell.samples}, ${cell.failed} failed`);
    addFact(facts, "visual tokens", cell.tokens);
    addFact(facts, "seed", cell.seed);
    addFact(facts, "seconds", cell.seconds);
    addFact(facts, "finished", cell.finished);
    addFact(facts, "run", cell.run);
    addFact(facts, "cell", cell.id);
    box.append(pre, copy, createElement("p", "hint", "Run it in a new folder: in the folder of this run, the finished cell is skipped."), facts);
    return box;
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.cell");
    if (!button) return;
    cellDialog.querySelector(".body").replaceChildren(...button.dataset.cells.split(" ").map(describeCell));
    cellDialog.showModal();
  });
  document.querySelectorAll("dialog").forEach((dialog) => {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  });

  // The chart. plotly renders some HTML tags in its labels, so names are escaped.
  const escapeHtml = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  // plotly does not make room for a long legend: the chart grows by its rows, beside the plot or, if narrow, below it.
  const LEGEND_ROW = 20;
  const measureLegend = (names, width, narrow) => {
    const longest = Math.max(...names.map((name) => name.length));
    const columns = narrow ? Math.max(1, Math.floor((width - 64) / (7 * longest + 46))) : 1;
    return Math.ceil(names.length / columns) * LEGEND_ROW;
  };
  const drawChart = (element, axis, bars) => {
    const narrow = element.clientWidth < 560;
    const legend = measureLegend(["Pareto front", ...axis.series.map((series) => series.label)], element.clientWidth, narrow);
    const height = narrow ? 380 + legend : Math.max(470, legend + 100);
    element.style.height = `${height}px`;
    const traces = axis.series.map((series) => {
      const column = (number) => series.points.map((point) => point[number]);
      const trace = {
        type: "scatter", mode: series.points.length > 1 ? "lines+markers" : "markers", name: escapeHtml(series.label),
        x: column(0), y: column(1),
        marker: { color: series.colour, symbol: series.symbol, size: 10, line: { color: series.colour, width: /open/.test(series.symbol) ? 2 : 0 } },
        line: { color: series.colour, dash: series.dash, width: 1.5 },
        text: series.points.map(([at, value, low, high, budget]) =>
          escapeHtml(`${series.label}${budget === "all" ? "" : ` @ ${budget}`}: ${value.toFixed(1)} %${low === null ? "" : ` (${low.toFixed(1)} to ${high.toFixed(1)})`}, at ${Number(at.toPrecision(4))}`)),
        hovertemplate: "%{text}<extra></extra>",
      };
      if (bars && series.points.every((point) => point[2] !== null)) {
        trace.error_y = {
          type: "data", symmetric: false, color: series.colour, thickness: 1, width: 3,
          array: series.points.map((point) => point[3] - point[1]), arrayminus: series.points.map((point) => point[1] - point[2]),
        };
      }
      return trace;
    });
    traces.unshift({
      type: "scatter", mode: "lines", name: "Pareto front", hoverinfo: "skip",
      x: axis.front.map((point) => point[0]), y: axis.front.map((point) => point[1]),
      line: { color: cssVariable("--line"), width: 7, shape: "hv" },
    });
    const axes = { gridcolor: cssVariable("--grid"), zeroline: false, linecolor: cssVariable("--line"), automargin: true };
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: cssVariable("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
      margin: { l: 56, r: 8, t: 8, b: narrow ? 60 + legend : 48 },
      xaxis: { ...axes, title: { text: escapeHtml(narrow ? axis.name.replace(/ \(2 per.*| without.*|, median/, "") : axis.name) } },
      yaxis: { ...axes, title: { text: "average retention (%)" } },
      height,
      legend: narrow ? { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, maxheight: legend + LEGEND_ROW, font: { size: 12 } } : { x: 1.02, y: 1 },
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 100, y1: 100, line: { color: cssVariable("--soft"), dash: "dot", width: 1.2 } }],
      annotations: [{ xref: "paper", x: 1, xanchor: "right", y: 100, yanchor: "bottom", text: "unpruned", showarrow: false, font: { color: cssVariable("--soft"), size: 12 } }],
      hoverlabel: { bgcolor: cssVariable("--card"), font: { color: cssVariable("--ink") } },
    };
    Plotly.react(element, traces, layout, { displayModeBar: false, responsive: true });
  };
  document.querySelectorAll(".part[data-part]").forEach((part) => {
    const axes = data.charts[part.dataset.part].axes;
    if (!axes.length) return;
    const select = part.querySelector("select.axis");
    const bars = part.querySelector("input.bars");
    bars.parentElement.hidden = !axes.some((axis) => axis.series.some((series) => series.points.some((point) => point[2] !== null)));
    const draw = () => drawChart(part.querySelector(".chart"), axes[select.value], bars.checked);
    select.addEventListener("change", draw);
    bars.addEventListener("change", draw);
    charts.push(draw);
    draw();
  });

  // Samples.
  const PAGE = 24;
  const RIGHT = 0.5;
  const unpackBits = (packed) => {
    const [size, text] = packed.split(":");
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return Array.from({ length: Number(size) }, (_, at) => (bytes[at >> 3] >> (at & 7)) & 1);
  };
  const findGrid = (size, fit, width, height) => {
    if (fit === "stretch") { const side = Math.floor(Math.sqrt(Math.min(size, 576))); return [side, side]; }
    let best = [1, size];
    for (let rows = 1; rows <= size; rows += 1) {
      if (size % rows) continue;
      const off = (pair) => Math.abs(Math.log((pair[1] / pair[0]) / (width / height)));
      if (off([rows, size / rows]) < off(best)) best = [rows, size / rows];
    }
    return best;
  };
  const drawKept = (canvas, image, packed, fit) => {
    const bits = unpackBits(packed);
    const [rows, columns] = findGrid(bits.length, fit, image.naturalWidth, image.naturalHeight);
    const scale = Math.max(1, Math.ceil(300 / image.naturalWidth));
    canvas.width = image.naturalWidth * scale;
    canvas.height = image.naturalHeight * scale;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    context.fillStyle = "rgba(0, 0, 0, 0.8)";
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        if (bits[row * columns + column]) continue;
        const [x, y] = [Math.round(column * canvas.width / columns), Math.round(row * canvas.height / rows)];
        context.fillRect(x, y, Math.round((column + 1) * canvas.width / columns) - x, Math.round((row + 1) * canvas.height / rows) - y);
      }
    }
  };
  const isRight = (answer) => answer !== null && answer[1] !== null && answer[1] >= RIGHT;
  const isWrong = (answer) => answer !== null && answer[1] !== null && answer[1] < RIGHT;

  const sampleDialog = document.getElementById("sample");
  const buildTile = (label, answer, image, fit) => {
    const box = createElement("div", "tile");
    const [text, points, packed, tokens, others] = answer;
    if (packed) {
      const canvas = createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `patches kept by ${label}`);
      image.decode().then(() => drawKept(canvas, image, packed, fit));
      box.append(canvas);
    } else {
      box.append(createElement("div", "blank", "no patches to show: every row is merged"));
    }
    const reply = createElement("div", `answer ${points === null ? "" : points >= RIGHT ? "good" : "bad"}`);
    reply.textContent = `${points === null ? "" : points >= RIGHT ? "\u2713 " : "\u2717 "}${text === "" ? "(empty)" : text}`;
    const small = createElement("small", "", [points !== null && points > 0 && points < 1 ? `${points} points` : "", tokens === null ? "" : `${tokens} tokens`, others ? `${others} no patch (merged or zeros)` : ""].filter(Boolean).join(", "));
    box.append(createElement("strong", "", label), reply, small);
    return box;
  };
  const openSample = (browser, sample) => {
    const body = sampleDialog.querySelector(".body");
    const head = createElement("div", "head");
    const image = createElement("img");
    image.src = browser.images[sample.image];
    image.alt = "the sample's image";
    const text = createElement("div");
    text.append(createElement("p", "hint", `${sample.task}, sample ${sample.doc}`), createElement("p", "question", sample.question));
    const truth = createElement("p");
    truth.append("Truth: ", createElement("strong", "", sample.truth));
    text.append(truth);
    head.append(image, text);
    const controls = createElement("div", "controls");
    const label = createElement("label", "", "Budget ");
    const select = createElement("select");
    const budgets = [...new Set(browser.rows.map((row) => row.split(" @ ")[1] || ""))].filter(Boolean);
    [["", "all"], ...budgets.map((budget) => [budget, budget])].forEach(([value, name]) => {
      const option = createElement("option", "", name);
      option.value = value;
      select.append(option);
    });
    label.append(select);
    controls.append(label, createElement("span", "", "Patches are those that the last decoder layer reads."));
    const tiles = createElement("div", "tiles");
    const fill = () => {
      tiles.replaceChildren(...browser.rows.flatMap((row, number) => {
        const answer = sample.rows[number];
        const budget = row.split(" @ ")[1] || "";
        return answer === null || (select.value && budget && budget !== select.value) ? [] : [buildTile(row, answer, image, browser.fit)];
      }));
    };
    select.addEventListener("change", fill);
    fill();
    body.replaceChildren(head, controls, tiles);
    sampleDialog.showModal();
    sampleDialog.scrollTop = 0;
  };
  const buildBar = (right, total) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("width", "100%");
    svg.setAttribute("height", "4");
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    rect.setAttribute("height", "4");
    rect.setAttribute("width", `${total ? 100 * right / total : 0}%`);
    rect.setAttribute("fill", cssVariable("--good"));
    svg.append(rect);
    const bar = createElement("span", "bar");
    bar.append(svg);
    return bar;
  };
  const buildCard = (browser, sample) => {
    const button = createElement("button", "card");
    button.type = "button";
    const image = createElement("img");
    image.src = browser.images[sample.image];
    image.alt = "";
    const text = createElement("span");
    const answers = sample.rows.filter((answer) => answer !== null);
    const right = answers.filter(isRight).length;
    text.append(
      createElement("span", "q", sample.question), createElement("span", "t", sample.truth),
      createElement("span", "s", `${sample.task}, ${right} of ${answers.length} right`), buildBar(right, answers.length),
    );
    button.append(image, text);
    button.addEventListener("click", () => openSample(browser, sample));
    return button;
  };
  document.querySelectorAll(".part[data-part] .browser").forEach((block) => {
    const browser = data.browsers[block.closest(".part").dataset.part];
    if (!browser.samples.length) return;
    const pick = (name) => block.querySelector(name);
    const [task, right, wrong, text] = [".task", ".right", ".wrong", ".text"].map(pick);
    const add = (select, value, name) => {
      const option = createElement("option", "", name);
      option.value = value;
      select.append(option);
    };
    [...new Set(browser.samples.map((sample) => sample.task))].forEach((name) => add(task, name, name));
    browser.rows.forEach((name, number) => { add(right, number, name); add(wrong, number, name); });
    let [page, matching] = [0, browser.samples];
    const show = () => {
      const pages = Math.max(1, Math.ceil(matching.length / PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      pick(".cards").replaceChildren(...matching.slice(page * PAGE, (page + 1) * PAGE).map((sample) => buildCard(browser, sample)));
      pick(".count").textContent = `${matching.length} of ${browser.samples.length} samples`;
      pick(".page").textContent = `${page + 1} of ${pages}`;
      pick(".before").disabled = page === 0;
      pick(".after").disabled = page === pages - 1;
    };
    const filter = () => {
      const words = text.value.toLowerCase();
      matching = browser.samples.filter((sample) =>
        (!task.value || sample.task === task.value)
        && (right.value === "" || isRight(sample.rows[right.value]))
        && (wrong.value === "" || isWrong(sample.rows[wrong.value]))
        && (!words || `${sample.question}\n${sample.truth}\n${sample.rows.map((answer) => answer ? answer[0] : "").join("\n")}`.toLowerCase().includes(words)));
      page = 0;
      show();
    };
    [task, right, wrong].forEach((select) => select.addEventListener("change", filter));
    text.addEventListener("input", filter);
    pick(".before").addEventListener("click", () => { page -= 1; show(); });
    pick(".after").addEventListener("click", () => { page += 1; show(); });
    show();
  });
})();
