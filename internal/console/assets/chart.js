// The values of a chart under the pointer. They are read from the drawn curves, so
// that nothing more is sent every second; a curve is 100 units high and 720 wide.

const tip = document.createElement("p");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

// near returns the height in units of a curve where the pointer is: of its nearest
// point, or nothing where it has a gap.
function near(path, x) {
  let best, least = 8;
  for (const [, px, py] of path.getAttribute("d").matchAll(/[ML](-?[\d.]+) (-?[\d.]+)/g)) {
    const d = Math.abs(px - x);
    if (d < least) [best, least] = [Number(py), d];
  }
  return best;
}

const number = (v) => v.toLocaleString("en", { maximumFractionDigits: v < 1 ? 2 : v < 10 ? 1 : 0 });

document.addEventListener("pointermove", (e) => {
  const chart = e.target.closest?.("svg.chart[data-until]");
  tip.hidden = !chart;
  if (!chart) return;
  const box = chart.getBoundingClientRect();
  const part = Math.min(1, Math.max(0, (e.clientX - box.left) / box.width));
  const { until, span, top, unit } = chart.dataset;
  const at = new Date(Number(until) - (1 - part) * Number(span));
  const values = [...chart.querySelectorAll("path.line")].map((path) => {
    const y = near(path, part * 720);
    return path.dataset.name + " " + (y === undefined ? "unknown" : number((1 - y / 100) * Number(top)) + " " + unit);
  });
  tip.textContent = [at.toISOString().slice(11, 19) + " UTC", ...values].join(" · ");
  tip.style.left = Math.min(e.clientX + 12, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = e.clientY + 16 + "px";
});
document.addEventListener("pointerleave", () => { tip.hidden = true; });
