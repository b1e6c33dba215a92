(() => {
  const { $, make, say, visible } = shared;
  const data = JSON.parse($("data").textContent);
  const key = `mbdefense-pick-${data.rows.map((row) => row.sha256.slice(0, 8)).join("")}`;

  // Every decision in the order of time: [row, "accepted" or "rejected", when]. Of a row the last one counts.
  let decisions = [];
  try { decisions = JSON.parse(localStorage.getItem(key)) || []; } catch { /* no storage, or not ours */ }
  const keep = () => {
    try { localStorage.setItem(key, JSON.stringify(decisions)); } catch { /* no storage: they last as long as the page */ }
  };
  const verdicts = () => new Map(decisions.map(([row, verdict, at]) => [row, { verdict, at }]));
  const NAMES = { prompt: "Prompt", answer: "Answer", rejected: "Rejected answer" };
  let at = 0;

  const show = () => {
    const row = data.rows[at];
    const known = verdicts();
    const verdict = known.get(at)?.verdict;
    $("row-heading").textContent = `Row ${at + 1} of ${data.rows.length}`;
    $("place").replaceChildren();
    visible($("place"), `${row.file}:${row.line}, id ${row.id} `, "");
    $("place").append(make("span", `pill ${{ accepted: "good", rejected: "bad" }[verdict] ?? ""}`, verdict ?? "undecided"));
    $("shown").replaceChildren(...row.texts.map(([part, text]) => {
      const box = make("div", "side");
      const body = make("div", "text");
      body.dir = "auto";
      visible(body, text, "");
      box.append(make("h3", "", NAMES[part]), body);
      return box;
    }));
    for (const one of row.noted) {
      const note = make("p", "fine");
      visible(note, one, "");
      $("shown").append(note);
    }
    const more = make("details");
    const raw = make("pre");
    visible(raw, row.text, "");
    more.append(make("summary", "", "The row as it is saved"), raw);
    $("shown").append(more);

    const given = [...known.values()].map((one) => one.verdict);
    const accepted = given.filter((one) => one === "accepted").length;
    const left = data.rows.length - given.length;
    const enough = accepted >= data.wanted ? ": enough" : "";
    $("count").textContent =
      `${accepted} of ${data.wanted} accepted${enough}, ${given.length - accepted} rejected, ${left} left`;
    $("save-rows").disabled = accepted === 0;
    $("save-record").disabled = given.length === 0;
    $("undo").disabled = decisions.length === 0;
    $("previous").disabled = at === 0;
    $("next").disabled = at + 1 === data.rows.length;
  };

  const go = (to) => {
    at = Math.min(Math.max(to, 0), data.rows.length - 1);
    show();
  };
  const decide = (verdict) => {
    decisions.push([at, verdict, new Date().toISOString()]);
    keep();
    say(`Row ${at + 1} ${verdict}`);
    const known = verdicts();
    const open = data.rows.findIndex((_, row) => row > at && !known.has(row));
    go(open >= 0 ? open : at);
  };
  const undo = () => {
    const last = decisions.pop();
    if (!last) return;
    keep();
    say(`Row ${last[0] + 1} as it was before`);
    go(last[0]);
  };
  const ACTIONS = {
    a: () => decide("accepted"), r: () => decide("rejected"), u: undo, j: () => go(at + 1), k: () => go(at - 1),
  };
  const BUTTONS = { accept: "a", reject: "r", undo: "u", next: "j", previous: "k" };
  for (const [name, letter] of Object.entries(BUTTONS)) $(name).addEventListener("click", ACTIONS[letter]);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select");
    const action = ACTIONS[event.key];
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat || !action) return;
    event.preventDefault();
    action();
  });

  const save = (name, type, text) => {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  };
  $("save-rows").addEventListener("click", () => {
    const known = verdicts();
    const rows = data.rows.filter((_, row) => known.get(row)?.verdict === "accepted");
    save("clean.jsonl", "application/x-ndjson", rows.map((row) => `${row.text}\n`).join(""));
  });
  $("save-record").addEventListener("click", () => {
    const rows = [...verdicts()].sort(([a], [b]) => a - b).map(([row, { verdict, at: when }]) => {
      const { file, line, id, sha256 } = data.rows[row];
      return { file, line, id, sha256, decision: verdict, at: when };
    });
    const record = { by: $("by").value.trim(), saved: new Date().toISOString(), files: data.files, seed: data.seed, rows };
    save("accepted.json", "application/json", `${JSON.stringify(record, null, 1)}\n`);
  });
  show();
})();
