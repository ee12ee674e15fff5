// A text field that suggests codes while one types, and the codes chosen so far as chips.
import { el, note, post, RequestError } from "./core.js";

let count = 0;

// codes: array of {code, title, match}, changed in place; `ask(text)` gives [{code, title}].
export function codeField({ label, codes, ask, changed, disabled = false, hint = "" }) {
  const id = `field-${++count}`;
  const chosen = el("ul", { class: "codes", "aria-label": `${label}, chosen` });
  const list = el("ul", { class: "options", id: `${id}-list`, role: "listbox", hidden: true });
  const input = el("input", {
    id, type: "text", role: "combobox", autocomplete: "off", spellcheck: "false",
    "aria-expanded": "false", "aria-controls": `${id}-list`, "aria-autocomplete": "list",
    placeholder: disabled ? "" : "type a name or a code", disabled,
  });
  let options = [], at = -1, timer = 0, turn = 0;

  const draw = () => chosen.replaceChildren(...codes.map((one, i) => el("li", {
    class: one.match === null ? "unknown" : null,
    title: one.match === null ? "The model does not know this code." : one.title || one.code,
  }, el("b", {}, one.code), one.match === null ? " unknown" : one.title ? ` ${one.title}` : "",
  disabled ? null : el("button", {
    type: "button", "aria-label": `remove ${one.code}`,
    onclick: () => { codes.splice(i, 1); draw(); changed(); input.focus(); },
  }, "×"))));

  const close = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    at = -1;
  };
  const mark = (next) => {
    at = next;
    [...list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === at)));
    if (at < 0) return;
    input.setAttribute("aria-activedescendant", `${id}-${at}`);
    list.children[at].scrollIntoView({ block: "nearest" });
  };
  const add = (one) => {
    if (one.code && !codes.some((other) => other.code === one.code)) codes.push(one);
    input.value = "";
    close();
    draw();
    changed();
  };
  const show = (found) => {
    options = found;
    list.replaceChildren(...(found.length ? found.map((one, i) => el("li", {
      id: `${id}-${i}`, role: "option", "aria-selected": "false",
      onmousedown: (event) => { event.preventDefault(); add({ ...one, match: one.code }); },
    }, el("b", {}, one.code), ` ${one.title}`))
      : [el("li", { class: "none" }, "Nothing fits; Enter adds it as it is.")]));
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    at = -1;
    if (found.length) mark(0);
  };
  const search = async () => {
    const mine = ++turn, text = input.value.trim();
    if (!text) { close(); return; }
    try {
      const found = await ask(text);
      if (mine === turn && input.value.trim()) show(found);
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      list.replaceChildren(el("li", { class: "none" }, error.message));
      list.hidden = false;
    }
  };
  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, 120); });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!options.length || list.hidden) return;
      const step = event.key === "ArrowDown" ? 1 : -1;
      mark((at + step + options.length) % options.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      const text = input.value.trim();
      if (!list.hidden && at >= 0) add({ ...options[at], match: options[at].code });
      else if (text) add({ code: text, title: "", match: null });
    } else if (event.key === "Escape") close();
    else if (event.key === "Backspace" && !input.value && codes.length) {
      codes.pop();
      draw();
      changed();
    }
  });
  draw();
  return el("div", { class: "field" }, el("label", { for: id }, label), chosen,
    el("div", { class: "combo" }, input, list), hint ? note(hint) : null);
}

export const askCodes = (run, kind) => (text) => post("/api/codes", { run, kind, text });
