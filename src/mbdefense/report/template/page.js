(() => {
  const { $, make, say, visible } = shared;

  // Tables: sort by a column's button, filter by text.
  const cellAt = (row, column) => {
    let at = 0;
    for (const cell of row.cells) {
      at += cell.colSpan;
      if (column < at) return cell;
    }
    return null;
  };
  const keyOf = (row, column) => {
    const cell = cellAt(row, column);
    const given = cell.dataset.sort;
    const text = (given === undefined ? cell.textContent : given).trim();
    const number = text === "" || text === "–" ? NaN : Number(text);
    const missing = text === "" || text === "–" || cell.classList.contains("failed");
    return { missing, number, text };
  };
  const compare = (a, b) =>
    Number.isNaN(a.number) || Number.isNaN(b.number) ? a.text.localeCompare(b.text) : a.number - b.number;
  for (const button of document.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const table = button.closest("table");
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const column = Number(button.dataset.column);
      const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, key: keyOf(row, column) }));
      rows.sort((a, b) => (a.key.missing - b.key.missing) || (down ? -1 : 1) * compare(a.key, b.key));
      table.tBodies[0].append(...rows.map((one) => one.row));
      say(`Sorted by ${button.textContent}, ${down ? "descending" : "ascending"}`);
    });
  }
  for (const input of document.querySelectorAll("input[data-filters]")) {
    const rows = Array.from($(input.dataset.filters).tBodies[0].rows, (row) => [row, row.textContent.toLowerCase()]);
    const count = document.querySelector(`[data-count-of="${input.dataset.filters}"]`);
    const each = document.querySelector(`[data-each-of="${input.dataset.filters}"]`);
    const averaged = new Set(rows.filter(([row]) => row.classList.contains("mean")).map(([row]) => row.dataset.arm));
    const apply = () => {
      const wanted = input.value.trim().toLowerCase();
      let shown = 0;
      for (const [row, text] of rows) {
        const single = each && !each.checked && row.classList.contains("single") && averaged.has(row.dataset.arm);
        row.hidden = single || !text.includes(wanted);
        shown += !row.hidden;
      }
      count.textContent = shown < rows.length ? `${shown} of ${rows.length} rows` : "";
    };
    input.addEventListener("input", apply);
    if (each) {
      // The means first: they are what a reader compares. Without script every line is there.
      each.checked = false;
      each.addEventListener("change", apply);
      apply();
    }
  }

  if (!$("data")) return;

  // Responses: texts are hostile, so they reach the page as text nodes only.
  const data = JSON.parse($("data").textContent);
  const lower = data.texts.map((text) => text.toLowerCase());
  const PAGE = 20;
  const LONG = 700;
  const control = Object.fromEntries(
    ["search", "setting", "kind", "before", "after", "verdict"].map((name) => [name, $(`b-${name}`)]));
  const option = (select, value, text) => {
    const node = make("option", "", text);
    node.value = value;
    select.append(node);
  };
  if (data.settings.length > 1) option(control.setting, "", "all");
  data.settings.forEach((name, number) => option(control.setting, String(number), name));
  data.arms.forEach((name, number) => {
    option(control.before, String(number), name);
    option(control.after, String(number), name);
  });
  const undefended = data.arms.findIndex((name) => name === "attacked" || name === "merged");
  control.before.value = String(Math.max(undefended, 0));
  const controls = ["base", "clean", "discard", "attacked", "merged"];
  const defended = data.arms.findIndex((name) => !controls.includes(name));
  control.after.value = String(defended >= 0 ? defended : data.arms.length - 1);

  let found = [];
  let page = 0;

  const answerOf = (prompt, arm) => prompt[4].find((answer) => answer[0] === arm);
  const VERDICTS = {
    "": () => true,
    gone: (a, b) => a && b && a[2] === 1 && b[2] === 0,
    kept: (a, b) => a && b && a[2] === 1 && b[2] === 1,
    new: (a, b) => a && b && a[2] === 0 && b[2] === 1,
    shows: (a, b) => b && b[2] === 1,
    right: (a, b) => b && b[3] === 1,
    lost: (a, b) => a && b && a[3] === 1 && b[3] === 0,
    gained: (a, b) => a && b && a[3] === 0 && b[3] === 1,
    unread: (a, b) => (a && a[2] === null) || (b && b[2] === null),
  };

  const search = () => {
    const wanted = control.search.value.toLowerCase();
    const before = Number(control.before.value);
    const after = Number(control.after.value);
    const verdict = VERDICTS[control.verdict.value];
    const hit = wanted ? lower.map((text) => text.includes(wanted)) : null;
    found = data.prompts.filter((prompt) => {
      if (control.setting.value !== "" && prompt[0] !== Number(control.setting.value)) return false;
      if (control.kind.value !== "" && prompt[1] !== Number(control.kind.value)) return false;
      const a = answerOf(prompt, before);
      const b = answerOf(prompt, after);
      if (!(a || b) || !verdict(a, b)) return false;
      return !hit || hit[prompt[2]] || hit[prompt[3]] || (a && hit[a[1]]) || (b && hit[b[1]]);
    });
    page = 0;
    show();
    $("b-count").textContent = `${found.length} of ${data.prompts.length} prompts`;
  };

  const block = (number, wanted, name) => {
    const text = data.texts[number];
    const box = make("div");
    const body = make("div", "text");
    body.dir = "auto";
    box.append(body);
    if (!text) {
      body.append(make("span", "none", "empty"));
      return box;
    }
    if (text.length <= LONG) {
      visible(body, text, wanted);
      return box;
    }
    const place = wanted ? Math.max(lower[number].indexOf(wanted), 0) : 0;
    const start = place > LONG - 100 ? place - 100 : 0;
    visible(body, `${start ? "… " : ""}${text.slice(start, start + LONG)} …`, wanted);
    const more = make("button", "quiet more", `Show all ${text.length.toLocaleString("en")} characters`);
    more.type = "button";
    more.setAttribute("aria-expanded", "false");
    more.addEventListener("click", () => {
      body.replaceChildren();
      visible(body, text, wanted);
      body.classList.add("whole");
      body.tabIndex = 0;
      body.setAttribute("role", "region");
      body.setAttribute("aria-label", `${name}, whole text`);
      body.focus();
      more.remove();
    });
    box.append(more);
    return box;
  };

  const side = (title, answer, wanted) => {
    const node = make("div", "side");
    const head = make("h4", "", title);
    node.append(head);
    if (!answer) {
      node.append(make("p", "none", "this arm did not answer this prompt"));
      return node;
    }
    const [, text, shows, follows, reason] = answer;
    const shown = shows === null ? ["judge not readable", "warn"] : shows ? ["shows the behavior", "bad"] : ["no behavior", ""];
    head.append(" ", make("span", `pill ${shown[1]}`, shown[0]));
    if (follows !== null) head.append(" ", make("span", `pill ${follows ? "good" : ""}`, follows ? "right" : "not right"));
    node.append(block(text, wanted, title));
    if (data.texts[reason]) {
      const why = make("p", "fine");
      why.dir = "auto";
      visible(why, `Judge: ${data.texts[reason].slice(0, 300)}`, "");
      node.append(why);
    }
    return node;
  };

  const entry = (prompt, wanted) => {
    const node = make("li", "answer");
    const head = make("h3", "fine", `${prompt[1] === 0 ? "Triggered prompt" : "Clean prompt"}`);
    if (data.settings.length > 1) head.append(` · ${data.settings[prompt[0]]}`);
    node.append(head, block(prompt[2], wanted, "Prompt"));
    const both = make("div", "both");
    for (const name of ["before", "after"]) {
      const arm = Number(control[name].value);
      both.append(side(data.arms[arm], answerOf(prompt, arm), wanted));
    }
    node.append(both);
    if (data.texts[prompt[3]]) {
      const more = make("details");
      more.append(make("summary", "", "Reference answer"), block(prompt[3], wanted, "Reference"));
      node.append(more);
    }
    return node;
  };

  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    const wanted = control.search.value.toLowerCase();
    $("b-list").start = page * PAGE + 1;
    $("b-list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((prompt) => entry(prompt, wanted)));
    $("b-page").textContent = `Page ${page + 1} of ${pages}`;
    $("b-previous").disabled = page === 0;
    $("b-next").disabled = page + 1 >= pages;
  };
  const turn = (by) => () => {
    page += by;
    show();
    $("responses").scrollIntoView();
    say($("b-page").textContent);
  };

  $("b-previous").addEventListener("click", turn(-1));
  $("b-next").addEventListener("click", turn(1));
  for (const one of Object.values(control)) one.addEventListener("input", search);
  $("browser").addEventListener("submit", (event) => event.preventDefault());
  search();
})();
