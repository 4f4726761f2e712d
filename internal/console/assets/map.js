// Maps on a canvas, in Web Mercator, drawn from data of this server alone: the
// track of one device, and all devices as they move. Tiles only where the operator
// named a server.

const late = 1, gap = 2, noFix = 4, jump = 8, future = 16, faulty = 32;
const size = 256; // of a tile
const limit = 85.05113;

const project = (lat, lon) => {
  const y = Math.sin((Math.max(-limit, Math.min(limit, lat)) * Math.PI) / 180);
  return [lon / 360 + 0.5, 0.5 - Math.log((1 + y) / (1 - y)) / (4 * Math.PI)];
};
const unproject = (x, y) => [(Math.atan(Math.sinh(Math.PI * (1 - 2 * y))) * 180) / Math.PI, (x - 0.5) * 360];
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const utc = (ms) => new Date(ms).toISOString().replace("T", " ").replace("Z", " UTC");

class View {
  constructor(box) {
    this.box = box;
    this.canvas = box.querySelector("canvas");
    this.output = box.querySelector("output");
    this.context = this.canvas.getContext("2d");
    this.x = 0.5; this.y = 0.4; this.zoom = 2;
    this.tiles = box.dataset.tiles ? new Map() : null;
    this.dirty = false;
    this.draw = () => {};
    this.hover = () => "";
    const point = new Map();
    this.canvas.addEventListener("pointerdown", (e) => { point.set(e.pointerId, e); this.canvas.setPointerCapture(e.pointerId); });
    this.canvas.addEventListener("pointerup", (e) => point.delete(e.pointerId));
    this.canvas.addEventListener("pointercancel", (e) => point.delete(e.pointerId));
    this.canvas.addEventListener("pointermove", (e) => {
      const before = point.get(e.pointerId);
      if (before) {
        this.moved = true;
        this.x -= (e.clientX - before.clientX) / this.scale();
        this.y -= (e.clientY - before.clientY) / this.scale();
        point.set(e.pointerId, e);
        this.redraw();
        return;
      }
      const r = this.canvas.getBoundingClientRect();
      this.output.textContent = this.hover(e.clientX - r.left, e.clientY - r.top);
    });
    this.canvas.addEventListener("pointerleave", () => { this.output.textContent = ""; });
    this.canvas.addEventListener("wheel", (e) => {
      e.preventDefault();
      const r = this.canvas.getBoundingClientRect();
      this.zoomBy(-e.deltaY / 300, e.clientX - r.left, e.clientY - r.top);
    }, { passive: false });
    this.canvas.addEventListener("keydown", (e) => {
      const step = 60 / this.scale();
      const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[e.key];
      if (move) { this.x += move[0]; this.y += move[1]; } else if (e.key === "+" || e.key === "=") this.zoomBy(0.5); else if (e.key === "-") this.zoomBy(-0.5); else return;
      e.preventDefault();
      this.redraw();
    });
    for (const b of box.querySelectorAll("[data-zoom]")) b.addEventListener("click", () => this.zoomBy(Number(b.dataset.zoom)));
    new ResizeObserver(() => this.redraw()).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  scale() { return size * 2 ** this.zoom; }

  zoomBy(by, px = this.canvas.clientWidth / 2, py = this.canvas.clientHeight / 2) {
    const [ax, ay] = this.at(px, py);
    this.moved = true;
    this.zoom = Math.max(0.5, Math.min(20, this.zoom + by));
    const [bx, by2] = this.at(px, py);
    this.x += ax - bx; this.y += ay - by2;
    this.redraw();
  }

  at(px, py) { return [this.x + (px - this.canvas.clientWidth / 2) / this.scale(), this.y + (py - this.canvas.clientHeight / 2) / this.scale()]; }

  screen(lat, lon) {
    const [x, y] = project(lat, lon);
    return [(x - this.x) * this.scale() + this.canvas.clientWidth / 2, (y - this.y) * this.scale() + this.canvas.clientHeight / 2];
  }

  fit(list) { // of [lat, lon]
    if (!list.length) return;
    let [x0, y0, x1, y1] = [1, 1, 0, 0];
    for (const [lat, lon] of list) {
      const [x, y] = project(lat, lon);
      x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, y); y1 = Math.max(y1, y);
    }
    this.x = (x0 + x1) / 2; this.y = (y0 + y1) / 2;
    const w = Math.max(50, this.canvas.clientWidth - 60), h = Math.max(50, this.canvas.clientHeight - 60);
    this.zoom = Math.max(0.5, Math.min(17, Math.log2(Math.min(w / size / Math.max(1e-7, x1 - x0), h / size / Math.max(1e-7, y1 - y0)))));
    this.redraw();
  }

  redraw() {
    if (this.dirty) return;
    this.dirty = true;
    requestAnimationFrame(() => {
      this.dirty = false;
      const ratio = devicePixelRatio || 1, w = this.box.clientWidth, h = this.box.clientHeight;
      if (this.canvas.width !== Math.round(w * ratio) || this.canvas.height !== Math.round(h * ratio)) {
        this.canvas.width = Math.round(w * ratio); this.canvas.height = Math.round(h * ratio);
      }
      const c = this.context;
      c.setTransform(ratio, 0, 0, ratio, 0, 0);
      c.clearRect(0, 0, w, h);
      this.tiles ? this.drawTiles(w, h) : this.drawGrid(w, h);
      this.draw(c);
      this.drawScale(c, w, h);
    });
  }

  drawTiles(w, h) {
    const z = Math.max(0, Math.min(19, Math.round(this.zoom))), n = 2 ** z, s = this.scale() / n;
    const [x0, y0] = this.at(0, 0), [x1, y1] = this.at(w, h);
    for (let x = Math.floor(x0 * n); x <= Math.floor(x1 * n); x++) for (let y = Math.max(0, Math.floor(y0 * n)); y <= Math.min(n - 1, Math.floor(y1 * n)); y++) {
      const key = `${z}/${((x % n) + n) % n}/${y}`;
      let tile = this.tiles.get(key);
      if (!tile) {
        if (this.tiles.size > 400) this.tiles.clear();
        tile = new Image();
        tile.onload = () => this.redraw();
        tile.src = this.box.dataset.tiles.replace("{z}", z).replace("{x}", ((x % n) + n) % n).replace("{y}", y);
        this.tiles.set(key, tile);
      }
      if (tile.complete && tile.naturalWidth) this.context.drawImage(tile, (x / n - this.x) * this.scale() + w / 2, (y / n - this.y) * this.scale() + h / 2, s + 0.5, s + 0.5);
    }
  }

  // drawGrid draws lines of latitude and longitude with their degrees.
  drawGrid(w, h) {
    const c = this.context, [top, left] = unproject(...this.at(0, 0)), [bottom, right] = unproject(...this.at(w, h));
    const rough = (right - left) / Math.max(2, w / 160);
    const step = [45, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005].find((s) => s <= rough) ?? 0.0002;
    const digits = Math.max(0, Math.ceil(-Math.log10(step)));
    c.strokeStyle = color("--line"); c.fillStyle = color("--soft"); c.lineWidth = 1; c.font = "11px system-ui, sans-serif"; c.textAlign = "left";
    for (let lon = Math.ceil(left / step) * step; lon < right; lon += step) {
      const [x] = this.screen(0, lon);
      c.beginPath(); c.moveTo(x, 0); c.lineTo(x, h); c.stroke();
      c.fillText(Math.abs(lon).toFixed(digits) + (lon < 0 ? "°W" : "°E"), x + 3, 11);
    }
    for (let lat = Math.ceil(bottom / step) * step; lat < top; lat += step) {
      const [, y] = this.screen(lat, 0);
      c.beginPath(); c.moveTo(0, y); c.lineTo(w, y); c.stroke();
      c.fillText(Math.abs(lat).toFixed(digits) + (lat < 0 ? "°S" : "°N"), 3, y - 3);
    }
  }

  drawScale(c, w, h) {
    const [lat] = unproject(this.x, this.y);
    const metre = this.scale() / (40075016 * Math.cos((lat * Math.PI) / 180));
    const length = [1e6, 5e5, 2e5, 1e5, 5e4, 2e4, 1e4, 5000, 2000, 1000, 500, 200, 100, 50, 20, 10, 5].find((m) => m * metre < 140) ?? 2;
    const px = length * metre;
    c.strokeStyle = c.fillStyle = color("--ink"); c.lineWidth = 2;
    c.beginPath(); c.moveTo(w - 14 - px, h - 18); c.lineTo(w - 14 - px, h - 12); c.lineTo(w - 14, h - 12); c.lineTo(w - 14, h - 18); c.stroke();
    c.font = "11px system-ui, sans-serif"; c.textAlign = "right";
    c.fillText(length >= 1000 ? length / 1000 + " km" : length + " m", w - 14, h - 22);
  }
}

function rings(f) {
  const g = f.geometry.type === "Feature" ? f.geometry.geometry : f.geometry;
  switch (g?.type) {
    case "Polygon": return g.coordinates;
    case "MultiPolygon": return g.coordinates.flat();
    case "LineString": return [g.coordinates];
    case "Point": {
      const [lon, lat] = g.coordinates, ring = [];
      for (let i = 0; i <= 48; i++) {
        const a = (i / 48) * 2 * Math.PI;
        ring.push([lon + (f.radius * Math.sin(a)) / (111195 * Math.cos((lat * Math.PI) / 180)), lat + (f.radius * Math.cos(a)) / 111195]);
      }
      return [ring];
    }
  }
  return [];
}

function drawFences(view, c, fences) {
  c.strokeStyle = color("--c2"); c.lineWidth = 1.5; c.font = "11px system-ui, sans-serif"; c.textAlign = "center";
  for (const f of fences) {
    c.beginPath();
    let first;
    for (const ring of f.rings) ring.forEach(([lon, lat], i) => {
      const [x, y] = view.screen(lat, lon);
      first ??= [x, y];
      i ? c.lineTo(x, y) : c.moveTo(x, y);
    });
    if (f.kind !== "gate") { c.globalAlpha = 0.1; c.fillStyle = color("--c2"); c.fill("evenodd"); c.globalAlpha = 1; }
    c.stroke();
    if (first) { c.fillStyle = color("--c2"); c.fillText(f.name || f.id, first[0], first[1] - 5); }
  }
}

async function track(box) {
  const view = new View(box);
  box.view = view;
  let data;
  for (let tries = 0; ; tries++) {
    const answer = await fetch(box.dataset.track);
    if (answer.ok) { data = await answer.json(); break; }
    view.output.textContent = await answer.text();
    if (tries === 10) return;
    await new Promise((done) => setTimeout(done, 2000));
  }
  view.output.textContent = "";
  const shown = data.points.filter((p) => !(p[4] & (noFix | future | faulty)));
  const fences = (data.fences ?? []).map((f) => ({ ...f, rings: rings(f) }));
  box.dataset.shown = shown.length;
  box.dataset.crossings = data.crossings.length;
  box.dataset.fences = fences.length;
  view.draw = (c) => {
    drawFences(view, c, fences);
    c.strokeStyle = color("--c0"); c.lineWidth = 2; c.lineJoin = "round";
    c.beginPath();
    shown.forEach((p, i) => {
      const [x, y] = view.screen(p[1], p[2]);
      if (!i || p[4] & gap) c.moveTo(x, y); else c.lineTo(x, y);
    });
    c.stroke();
    c.setLineDash([3, 5]); c.strokeStyle = color("--soft"); c.lineWidth = 1;
    shown.forEach((p, i) => {
      if (!i || !(p[4] & gap)) return;
      c.beginPath(); c.moveTo(...view.screen(shown[i - 1][1], shown[i - 1][2])); c.lineTo(...view.screen(p[1], p[2])); c.stroke();
    });
    c.setLineDash([]);
    const dots = shown.length < 1500;
    for (const p of shown) {
      const [x, y] = view.screen(p[1], p[2]);
      if (p[4] & jump) {
        c.strokeStyle = color("--bad"); c.lineWidth = 2;
        c.beginPath(); c.moveTo(x - 4, y - 4); c.lineTo(x + 4, y + 4); c.moveTo(x + 4, y - 4); c.lineTo(x - 4, y + 4); c.stroke();
      } else if (p[4] & late || dots) {
        c.fillStyle = color(p[4] & late ? "--c3" : "--c0");
        c.beginPath(); c.arc(x, y, p[4] & late ? 3.5 : 2, 0, 7); c.fill();
      }
    }
    for (const k of data.crossings) {
      const [x, y] = view.screen(k.lat, k.lon);
      c.fillStyle = color("--c1"); c.strokeStyle = color("--card"); c.lineWidth = 1;
      c.beginPath(); c.moveTo(x, y - 7); c.lineTo(x + 6, y + 5); c.lineTo(x - 6, y + 5); c.closePath(); c.fill(); c.stroke();
    }
    const last = shown.at(-1);
    if (last) {
      const [x, y] = view.screen(last[1], last[2]);
      c.strokeStyle = color("--ink"); c.lineWidth = 2;
      c.beginPath(); c.arc(x, y, 7, 0, 7); c.stroke();
    }
  };
  const names = [[late, "late"], [gap, "after a gap"], [jump, "jump"]];
  view.hover = (px, py) => {
    let best, near = 14;
    const look = (lat, lon, what) => {
      const [x, y] = view.screen(lat, lon), d = Math.hypot(x - px, y - py);
      if (d < near) { near = d; best = what; }
    };
    for (const p of shown) look(p[1], p[2], { p });
    for (const k of data.crossings) look(k.lat, k.lon, { k });
    if (!best) return "";
    if (best.k) {
      const k = best.k;
      return `${k.kind} ${k.fence}, version ${k.version}\nat ${utc(k.at)}` + (k.earlier ? `\nbetween ${utc(k.earlier)}\nand ${utc(k.later)}: ±${((k.later - k.earlier) / 2000).toFixed(1)} s` : "\nthe first fix there");
    }
    const p = best.p, marks = names.filter(([bit]) => p[4] & bit).map(([, name]) => name);
    return `${utc(p[0])}\n${p[1].toFixed(6)}, ${p[2].toFixed(6)}, ${p[3]} km/h\nentry ${Math.floor(p[5])}-…, arrived ${utc(p[5])}` + (marks.length ? "\n" + marks.join(", ") : "");
  };
  const area = shown.length ? shown.map((p) => [p[1], p[2]]) : fences.flatMap((f) => f.rings.flat().map(([lon, lat]) => [lat, lon]));
  view.fit(area);
  view.redraw();
}

// all shows the devices as they move: the newest position of each that the server
// passed on, with a short tail.
function all(box) {
  const view = new View(box);
  box.view = view;
  const devices = new Map(), most = 5000, tail = 12;
  const count = document.getElementById("live-count");
  let fitted = false;
  document.addEventListener("data:live", (e) => {
    const u = e.detail;
    for (const line of u.moves.split("\n")) {
      const [, id] = /^(?:\S+ ){4}(.*)$/.exec(line) ?? [];
      const [lat, lon, at, speed] = line.split(" ", 4).map(Number);
      if (id === undefined || !(Math.abs(lat) <= 90 && Math.abs(lon) <= 180 && Number.isFinite(at) && Number.isFinite(speed))) continue;
      let d = devices.get(id);
      if (!d) {
        if (devices.size >= most) devices.delete(devices.keys().next().value);
        d = { tail: [] };
      }
      devices.delete(id); // the newest are last
      d.tail.push([lat, lon]);
      if (d.tail.length > tail) d.tail.shift();
      Object.assign(d, { at, speed, seen: Date.now() });
      devices.set(id, d);
    }
    box.dataset.shown = devices.size;
    if (count) count.textContent = `${devices.size} devices shown of ${u.known} that moved in the last 15 minutes; ${u.dropped} updates left out just now, at most ${u.limit} are sent at a time`;
    if (!fitted && !view.moved && devices.size) { fitted = devices.size > 20 || u.ticks > 5; view.fit([...devices.values()].map((d) => d.tail.at(-1))); }
    view.redraw();
  });
  view.draw = (c) => {
    for (const d of devices.values()) {
      const old = Date.now() - d.seen > 30000;
      c.strokeStyle = color(old ? "--wait" : "--c0"); c.lineWidth = 1.5;
      c.beginPath();
      d.tail.forEach(([lat, lon], i) => { const p = view.screen(lat, lon); i ? c.lineTo(...p) : c.moveTo(...p); });
      c.stroke();
      const [x, y] = view.screen(...d.tail.at(-1));
      c.fillStyle = color(old ? "--soft" : "--c0");
      c.beginPath(); c.arc(x, y, 4, 0, 7); c.fill();
    }
  };
  view.hover = (px, py) => {
    let best, near = 14;
    for (const [id, d] of devices) {
      const [x, y] = view.screen(...d.tail.at(-1)), r = Math.hypot(x - px, y - py);
      if (r < near) { near = r; best = [id, d]; }
    }
    return best ? `${best[0]}\n${utc(best[1].at)}, ${best[1].speed} km/h` : "";
  };
  view.redraw();
}

for (const box of document.querySelectorAll(".map")) box.dataset.track ? track(box) : all(box);
