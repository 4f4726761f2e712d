// Live parts, ages of times, confirmations. The pages work without it, and stand still then.

// The policy of the server forbids text as markup but for what passes here: parts
// of pages that the server rendered.
const policy = globalThis.trustedTypes?.createPolicy("console", { createHTML: (s) => s });
const markup = (s) => (policy ? policy.createHTML(s) : s);

const units = [["d", 86400], ["h", 3600], ["min", 60]];

function age(ms) {
  const s = ms / 1000;
  const ago = (t) => (s < 0 ? "in " + t : t + " ago");
  const a = Math.abs(s);
  if (a < 1.5) return "now";
  for (const [unit, n] of units) if (a >= 2 * n || (n === 60 && a >= 120)) return ago(Math.floor(a / n) + " " + unit);
  return ago(Math.floor(a) + " s");
}

// skew is how far the server's clock is ahead of this machine's.
let skew = 0;

export function showAges(root = document) {
  const now = Date.now() + skew;
  for (const t of root.querySelectorAll("time[datetime]")) {
    const text = age(now - Date.parse(t.dateTime));
    if (t.textContent !== text) t.textContent = text;
  }
}

// What is pressed stays until it is released, so that the click reaches it.
let held = null; // states that came meanwhile, null while nothing is pressed
addEventListener("pointerdown", () => { held ??= new Map(); }, true);
for (const released of ["pointerup", "pointercancel"]) {
  addEventListener(released, () => setTimeout(() => {
    const states = held ?? [];
    held = null;
    for (const [id, html] of states) replace(id, html);
  }), true);
}

// replace shows a new state of a part. What has the focus keeps it, and what the
// reader opened or typed stays.
function replace(id, html) {
  if (held) {
    held.set(id, html);
    return;
  }
  const part = document.getElementById(id);
  if (!part || part.contains(document.activeElement) && document.activeElement.matches("input, textarea, select")) return;
  const focused = part.contains(document.activeElement) ? [...part.querySelectorAll("a, button, summary, [tabindex]")].indexOf(document.activeElement) : -1;
  const open = [...part.querySelectorAll("details")].map((d) => d.open);
  const scrolled = [...part.querySelectorAll(".scroll")].map((s) => s.scrollLeft);
  part.innerHTML = markup(html);
  part.querySelectorAll("details").forEach((d, i) => { if (open[i] !== undefined) d.open = open[i]; });
  part.querySelectorAll(".scroll").forEach((s, i) => { s.scrollLeft = scrolled[i] ?? 0; });
  if (focused >= 0) part.querySelectorAll("a, button, summary, [tabindex]")[focused]?.focus({ preventScroll: true });
  showAges(part);
}

function live(address) {
  const sign = document.getElementById("live");
  let heard = 0;
  const say = (level, text) => { if (sign) { sign.className = "state " + level; sign.textContent = text; } };
  const source = new EventSource(address);
  const listened = () => { heard = Date.now(); say("ok", "live"); };
  source.onopen = listened;
  source.onmessage = (e) => {
    listened();
    for (const [id, value] of Object.entries(JSON.parse(e.data))) {
      if (id.startsWith("data:")) document.dispatchEvent(new CustomEvent(id, { detail: JSON.parse(value) }));
      else replace(id, value);
    }
  };
  source.onerror = () => {
    say("bad", source.readyState === EventSource.CLOSED ? "not live: reload the page" : "this instance does not answer");
    document.body.dataset.live = "lost";
  };
  setInterval(() => {
    if (heard && Date.now() - heard > 20000) say("warn", "nothing heard for " + Math.floor((Date.now() - heard) / 1000) + " s");
  }, 1000);
}

// said fills in a sentence what a form has: [name] is a field, or else a data attribute of
// the form, [text +name] nothing unless the field has a value, [name|with +name|without]
// one or the other.
function said(sentence, form) {
  const value = (name) => {
    const field = form.elements[name];
    const text = field?.value ?? form.dataset[name] ?? "";
    return field?.type === "datetime-local" ? text.replace("T", " ") : text;
  };
  const put = (text) => text.replace(/\+(\w+)/g, (_, name) => value(name));
  return sentence.replace(/\[([^[\]]+)\]/g, (_, inner) => {
    const [name, yes, no] = inner.split("|");
    if (yes !== undefined) return value(name) ? put(yes) : no;
    const optional = /\+(\w+)/.exec(inner);
    if (optional) return value(optional[1]) ? put(inner) : "";
    return value(name);
  });
}

// What is shown live is the same for all who watch: the token of a page is added here.
addEventListener("submit", (e) => {
  if (e.target.matches(".next") && !e.target.elements.token) {
    const token = document.createElement("input");
    token.type = "hidden";
    token.name = "token";
    token.value = document.body.dataset.token;
    e.target.append(token);
  }
}, true);

// A row of the positions fills in the form that flags them.
document.addEventListener("click", (e) => {
  const from = e.target.closest("[data-fill]");
  const field = from && document.querySelector("#wrong-stretch [name=" + from.dataset.fill + "]");
  if (!field) return;
  field.value = from.dataset.value;
  from.blur();
});

// ask confirms an action: its sentence says what it is about before it is sent.
document.addEventListener("submit", (e) => {
  const form = e.target;
  if (e.submitter?.formNoValidate) { // it changes nothing, and needs no reason; what is missing is said at its field
    const missing = [...form.elements].some((f) => !["reason", "confirmed"].includes(f.name) && !f.reportValidity());
    if (missing) e.preventDefault();
    return;
  }
  const sentence = e.submitter?.dataset.confirm ?? form.dataset.confirm;
  if (sentence && !globalThis.confirm(said(sentence, form))) e.preventDefault();
});

setInterval(showAges, 1000);
showAges();
if (document.body.dataset.events) live(document.body.dataset.events);
