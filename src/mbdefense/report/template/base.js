"use strict";
// What every page's script needs.
const shared = (() => {
  const $ = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const say = (text) => { $("said").textContent = text; };

  // Theme: the system's until the reader chooses.
  const theme = $("theme");
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const label = () => {
    theme.textContent = dark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", `Switch to the ${dark() ? "light" : "dark"} theme`);
  };
  theme.hidden = false;
  label();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("mbdefense-theme", document.documentElement.dataset.theme); } catch { /* no storage */ }
    label();
  });

  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff9-\ufffb]|(?<=[\ufe00-\ufe0f])[\ufe0e\ufe0f]|[\ufe0e\ufe0f](?=[\ufe00-\ufe0f])|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|[\u{1bca0}-\u{1bca3}\u{1d173}-\u{1d17a}\u{e0000}-\u{e01ef}]/gu;

  // One text as nodes: characters that cannot be seen become their code, what was searched for is marked.
  const visible = (target, text, wanted) => {
    const plain = (part) => {
      let at = 0;
      for (const match of part.matchAll(HIDDEN)) {
        if (match.index > at) target.append(part.slice(at, match.index));
        const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
        target.append(make("span", "code", `U+${code}`));
        at = match.index + match[0].length;
      }
      if (at < part.length) target.append(part.slice(at));
    };
    const low = text.toLowerCase();
    let at = 0;
    // Where lower case has another length, places in it are not places in the text.
    if (wanted && low.length === text.length) {
      for (let next = low.indexOf(wanted); next >= 0; next = low.indexOf(wanted, at)) {
        plain(text.slice(at, next));
        target.append(make("mark", "", text.slice(next, next + wanted.length)));
        at = next + wanted.length;
      }
    }
    plain(text.slice(at));
  };

  return { $, make, say, visible };
})();
