"use strict";
// Shows the readings of list.js. Nothing here asks a network for anything; each image is a script beside the page.
const collegium = (() => {
  const byId = (id) => document.getElementById(id);
  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const MOST_KEPT = 6;
  const SMALLEST_SHOWN = 512;
  let terms = null;
  const entries = [];
  let shown = [];
  let rows = new Map();
  let current = null;
  let image = null;
  let order = { key: "place", falling: false };
  const waiting = new Map();
  const kept = new Map();
  const state = { level: 0.5, width: 1, slice: 0, map: 0, overlay: true, opacity: 1 };

  // What list.js and the images' files call.

  const begin = (found) => { terms = found; };
  const entry = (found) => { entries.push({ ...found, place: entries.length }); };
  const end = () => { prepare(); };
  const received = (id, found) => { waiting.get(id)?.(found); waiting.delete(id); };

  // The list.

  const highest = (one) => Math.max(...one.probabilities);
  const valueOf = (one, key) => {
    if (key === "name") return one.name;
    if (key === "place") return one.place;
    if (one.code) return -1;
    return key === "highest" ? highest(one) : one.probabilities[Number(key)];
  };
  const matches = (one, filter) => {
    const [kind, ...rest] = filter.split(":");
    if (kind === "unread") return Boolean(one.code);
    if (kind === "overridden") return !one.code && one.overrides.length > 0;
    if (kind === "reached" || kind === "below") {
      const point = one.code ? undefined : one.points[Number(rest[0])];
      return point !== undefined && point.reached === (kind === "reached");
    }
    return true;
  };

  const prepare = () => {
    const filter = byId("filter");
    const add = (value, text) => { const made = element("option", text); made.value = value; filter.append(made); };
    add("all", "all");
    const first = entries.find((one) => !one.code && one.points.length);
    (first ? first.points : []).forEach((point, number) => {
      const of = terms.outputs.length > 1 ? ` of ${point.output}` : "";
      add(`reached:${number}`, `reaches “${point.name}”${of}`);
      add(`below:${number}`, `below “${point.name}”${of}`);
    });
    if (entries.some((one) => !one.code && one.overrides.length)) add("overridden", "overridden");
    if (entries.some((one) => one.code)) add("unread", "not read");
    filter.addEventListener("change", () => fill());
    byId("search").addEventListener("input", () => fill());
    for (const button of document.querySelectorAll("#list thead button")) {
      button.addEventListener("click", () => sortBy(button.dataset.key));
    }
    byId("rows").addEventListener("keydown", onListKey);
    prepareStage();
    fill();
    if (shown.length) select(shown[0], { focus: true });
  };

  const sortBy = (key) => {
    const numeric = key !== "name";
    order = order.key === key ? { key, falling: !order.falling } : { key, falling: numeric };
    fill();
  };

  const fill = () => {
    const wanted = byId("search").value.trim().toLowerCase();
    const filter = byId("filter").value || "all";
    const sign = order.falling ? -1 : 1;
    shown = entries.filter((one) => matches(one, filter) && one.name.toLowerCase().includes(wanted));
    shown.sort((one, other) => {
      const [a, b] = [valueOf(one, order.key), valueOf(other, order.key)];
      return (a < b ? -sign : a > b ? sign : 0) || one.place - other.place;
    });
    for (const button of document.querySelectorAll("#list thead button")) {
      const own = button.dataset.key === order.key;
      button.closest("th").setAttribute("aria-sort", own ? (order.falling ? "descending" : "ascending") : "none");
    }
    rows = new Map();
    const body = byId("rows");
    body.replaceChildren(...shown.map((one) => { const row = rowOf(one); rows.set(one, row); return row; }));
    const of = shown.length === entries.length ? "" : ` of ${entries.length}`;
    byId("count").textContent = `${shown.length}${of} ${entries.length === 1 ? "input" : "inputs"}`;
    if (current && rows.has(current)) mark(current);
    else if (shown.length) mark(shown[0], false);
  };

  const rowOf = (one) => {
    const row = element("tr");
    row.tabIndex = -1;
    row.setAttribute("aria-selected", "false");
    const name = element("th", one.name);
    name.scope = "row";
    row.append(name);
    for (const key of terms.columns) {
      row.append(element("td", one.code ? "–" : valueOf(one, key).toFixed(3), "figure"));
    }
    const cell = element("td");
    if (one.code) cell.append(element("span", "not read", "tag bad"));
    else {
      if (one.overrides.length) cell.append(element("span", "overridden", "tag bad"), " ");
      for (const point of one.points.filter((found) => found.reached)) {
        const text = terms.outputs.length > 1 ? `${point.output}: ${point.name}` : point.name;
        cell.append(element("span", text, "tag"), " ");
      }
      if (terms.columns[0] === "highest") {
        cell.append(terms.outputs[one.probabilities.indexOf(highest(one))]);
      }
    }
    row.append(cell);
    row.addEventListener("click", () => select(one, { focus: true }));
    return row;
  };

  const mark = (one, selected = true) => {
    for (const row of rows.values()) {
      if (row.tabIndex === 0) row.tabIndex = -1;
      if (row.getAttribute("aria-selected") === "true") row.setAttribute("aria-selected", "false");
    }
    const row = rows.get(one);
    row.tabIndex = 0;
    if (selected) row.setAttribute("aria-selected", "true");
    return row;
  };

  const move = (steps, options) => {
    if (!shown.length) return;
    const from = current && rows.has(current) ? shown.indexOf(current) : -1;
    const to = Math.min(shown.length - 1, Math.max(0, from + steps));
    select(shown[to], options);
  };

  const onListKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    if (event.key in steps) move(steps[event.key], { focus: true });
    else if (event.key === "Enter" && image) byId("stage").focus();
    else if (event.key === "o") toggleOverlay();
    else return;
    event.preventDefault();
  };

  const select = (one, { focus = false } = {}) => {
    current = one;
    const row = mark(one);
    if (focus) row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
    const place = shown.indexOf(one) + 1;
    byId("title").textContent = one.frame === null || one.frame === undefined ? one.name : `${one.name}, frame ${one.frame + 1}`;
    byId("spoken").textContent = `${place} of ${shown.length}: ${one.name}. ` +
      (one.code ? `Not read: ${one.sentence}` : terms.outputs.map((name, number) => `${name} ${one.probabilities[number].toFixed(3)}`).join(", "));
    tell(one);
    show(one);
  };

  // What is said of one input.

  const tell = (one) => {
    const box = byId("alarms");
    box.replaceChildren();
    if (one.code) {
      const alarm = element("section", undefined, "alarm");
      alarm.append(element("h3", one.numFiles > 1 ? `Not read: ${one.numFiles} files` : "Not read"), element("p", one.sentence));
      const reason = element("p", "Reason: ");
      reason.append(element("code", one.code));
      if (one.overridable) reason.append(". It can be let through with ", element("code", `--override ${one.code}`), ", which every output then says.");
      alarm.append(reason);
      box.append(alarm);
    } else if (one.overrides.length) {
      const alarm = element("section", undefined, "alarm");
      alarm.append(element("h3", "Overridden: the model was not trained for this input"));
      const list = element("ul");
      for (const sentence of one.overrides) list.append(element("li", sentence));
      alarm.append(list);
      box.append(alarm);
    }
    byId("figures").hidden = Boolean(one.code);
    byId("statements").replaceChildren();
    const body = byId("probabilities");
    body.replaceChildren();
    if (one.code) return;
    terms.outputs.forEach((name, number) => {
      const row = element("tr");
      const head = element("th");
      head.scope = "row";
      if (terms.structures.length) {
        const key = element("span", undefined, "key");
        const place = terms.structures.indexOf(name);
        key.style.background = `rgb(${terms.structureColours[place].join(",")})`;
        head.append(key, " ");
      }
      head.append(name);
      row.append(head, element("td", one.probabilities[number].toFixed(4), "figure"));
      const told = element("td");
      const points = one.points.filter((point) => point.output === name);
      for (const point of points) {
        const line = element("div");
        line.append(element("span", point.reached ? "reached" : "not reached", point.reached ? "tag" : "tag plain"),
          ` ${point.name}, from ${point.threshold.toPrecision(3)}`);
        told.append(line);
      }
      if (!points.length) told.append("–");
      row.append(told);
      if (terms.ensemble) {
        const spread = one.spreads[name];
        row.append(element("td", spread ? `${spread.low.toFixed(3)} to ${spread.high.toFixed(3)}, deviation ${spread.deviation.toFixed(3)}` : "–"));
      }
      body.append(row);
    });
    for (const [name, sentence] of Object.entries(one.statements)) {
      byId("statements").append(element("p", terms.outputs.length > 1 ? `${name}: ${sentence}` : sentence));
    }
  };

  // The image.

  const bytesOf = async (text) => {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  };

  const load = (one) => {
    if (!kept.has(one.id)) {
      kept.set(one.id, new Promise((resolve, reject) => {
        waiting.set(one.id, resolve);
        const script = document.createElement("script");
        script.src = `images/${one.id}.js`;
        script.onload = () => script.remove();
        script.onerror = () => { script.remove(); kept.delete(one.id); waiting.delete(one.id); reject(new Error("missing")); };
        document.head.append(script);
      }).then(unpacked));
      while (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
    }
    return kept.get(one.id);
  };

  const unpacked = async (found) => ({
    ...found,
    pixels: found.channels === 1 ? new Uint16Array(await bytesOf(found.pixels)) : new Uint8Array(await bytesOf(found.pixels)),
    mask: found.mask === null ? null : new Uint8Array(await bytesOf(found.mask)),
    maps: await Promise.all(found.maps.map(async (map) => ({ ...map, values: new Uint8Array(await bytesOf(map.values)) }))),
  });

  const show = async (one) => {
    byId("viewer").hidden = Boolean(one.code);
    image = null;
    if (one.code) return;
    let found;
    try {
      found = await load(one);
    } catch {
      byId("told").textContent = `images/${one.id}.js, which holds the image, is missing or damaged; run predict again.`;
      return;
    }
    if (current !== one) return;
    image = found;
    state.slice = found.first;
    state.map = Math.min(state.map, Math.max(0, found.maps.length - 1));
    const grey = found.channels === 1;
    byId("window").hidden = !grey;
    byId("colour").hidden = grey;
    byId("slices").hidden = found.depth === 1;
    byId("slice").max = found.depth;
    byId("over").hidden = !found.maps.length && !found.mask;
    byId("which").hidden = found.maps.length < 2;
    byId("map").replaceChildren(...found.maps.map((map, number) => {
      const made = element("option", `${map.heading}, ${map.output}`);
      made.value = number;
      return made;
    }));
    byId("map").value = state.map;
    draw();
    const next = shown[shown.indexOf(one) + 1];
    if (next && !next.code) load(next).catch(() => {});
  };

  const scaled = (share) => terms.grey.low + share * (terms.grey.high - terms.grey.low);
  const written = (value) => `${Number(value.toPrecision(3))}${terms.grey.unit}`;

  const draw = () => {
    if (!image) return;
    const { rows: height, columns: width, depth, channels } = image;
    const places = height * width;
    const times = Math.max(1, Math.ceil(SMALLEST_SHOWN / Math.max(height, width)));
    const canvas = byId("canvas");
    canvas.width = width * times;
    canvas.height = height * times;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    const layer = (paint) => {
      const small = document.createElement("canvas");
      small.width = width;
      small.height = height;
      const data = small.getContext("2d").createImageData(width, height);
      paint(data.data);
      small.getContext("2d").putImageData(data, 0, 0);
      context.drawImage(small, 0, 0, canvas.width, canvas.height);
    };
    const start = state.slice * places;
    const low = state.level - state.width / 2;
    layer((data) => {
      for (let place = 0; place < places; place += 1) {
        for (let channel = 0; channel < 3; channel += 1) {
          data[4 * place + channel] = channels === 1
            ? (255 * (image.pixels[start + place] / 65535 - low)) / state.width
            : image.pixels[channel * depth * places + start + place];
        }
        data[4 * place + 3] = 255;
      }
    });
    const map = image.maps[state.map];
    if (state.overlay && map) {
      layer((data) => {
        for (let place = 0; place < places; place += 1) {
          const value = map.values[start + place];
          data.set(terms.colours[value], 4 * place);
          data[4 * place + 3] = state.opacity * terms.mostOpaque * value;
        }
      });
    }
    if (state.overlay && image.mask) outline(context, times, start);
    say(map);
  };

  const outline = (context, times, start) => {
    const { rows: height, columns: width, mask } = image;
    const at = (row, column) => mask[start + row * width + column];
    context.globalAlpha = state.opacity;
    const thick = Math.max(1, Math.round(times / 2));
    for (let row = 0; row < height; row += 1) {
      for (let column = 0; column < width; column += 1) {
        const value = at(row, column);
        if (!value) continue;
        const [left, top, side] = [column * times, row * times, times];
        context.fillStyle = `rgb(${terms.structureColours[value - 1].join(",")})`;
        if (row > 0 && at(row - 1, column) !== value) context.fillRect(left, top, side, thick);
        if (row < height - 1 && at(row + 1, column) !== value) context.fillRect(left, top + side - thick, side, thick);
        if (column > 0 && at(row, column - 1) !== value) context.fillRect(left, top, thick, side);
        if (column < width - 1 && at(row, column + 1) !== value) context.fillRect(left + side - thick, top, thick, side);
      }
    }
    context.globalAlpha = 1;
  };

  const say = (map) => {
    byId("level").value = state.level;
    byId("width").value = state.width;
    byId("slice").value = state.slice + 1;
    byId("overlay").checked = state.overlay;
    byId("opacity").value = state.opacity;
    const [level, width] = [written(scaled(state.level)), written(scaled(state.width) - scaled(0))];
    byId("levelText").textContent = level;
    byId("widthText").textContent = width;
    byId("sliceText").textContent = `${state.slice + 1} of ${image.depth}`;
    byId("opacityText").textContent = `${Math.round(state.opacity * 100)} %`;
    const size = `${image.columns} × ${image.rows}`;
    const parts = [`${image.depth > 1 ? `Slice ${state.slice + 1} of ${image.depth}, ` : ""}${size} points, as it entered the model.`];
    byId("legend").hidden = !(state.overlay && map);
    if (map) {
      byId("end").textContent = map.end.toFixed(2);
      byId("meaning").textContent = `${map.heading} of “${map.output}”: a value is the ${map.words}. Largest of this ${image.depth > 1 ? "volume" : "image"}: ${map.largest.toFixed(2)}.` +
        (map.largest === 0 ? " Nothing in it speaks for this output." : "");
    }
    byId("told").textContent = parts.join(" ");
    byId("canvas").setAttribute("aria-label", `${current.name}. ${parts.join(" ")} ${image.channels === 1 ? `Level ${level}, width ${width}.` : ""} Overlay ${state.overlay ? "on" : "off"}.`);
  };

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const windowed = (level, width) => {
    if (image?.channels !== 1) return;
    state.level = clamp(level, 0, 1);
    state.width = clamp(width, 0.01, 1);
    draw();
  };
  const sliced = (number) => {
    if (!image) return;
    state.slice = clamp(number, 0, image.depth - 1);
    draw();
  };
  const toggleOverlay = () => { state.overlay = !state.overlay; draw(); };
  const reset = () => { state.opacity = 1; state.level = 0.5; state.width = 1; draw(); };

  const onStageKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 0.1 : 0.02;
    const acts = {
      ArrowLeft: () => windowed(state.level, state.width - step),
      ArrowRight: () => windowed(state.level, state.width + step),
      ArrowUp: () => windowed(state.level + step, state.width),
      ArrowDown: () => windowed(state.level - step, state.width),
      PageUp: () => sliced(state.slice - 1),
      PageDown: () => sliced(state.slice + 1),
      j: () => move(1),
      k: () => move(-1),
      o: toggleOverlay,
      r: reset,
      Escape: () => rows.get(current)?.focus(),
    };
    if (!(event.key in acts)) return;
    acts[event.key]();
    event.preventDefault();
  };

  const prepareStage = () => {
    const stage = byId("stage");
    stage.addEventListener("keydown", onStageKey);
    let from = null;
    stage.addEventListener("pointerdown", (event) => {
      from = { x: event.clientX, y: event.clientY, level: state.level, width: state.width };
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      if (from) windowed(from.level - (event.clientY - from.y) / 400, from.width + (event.clientX - from.x) / 400);
    });
    stage.addEventListener("pointerup", () => { from = null; });
    stage.addEventListener("pointercancel", () => { from = null; });
    stage.addEventListener("wheel", (event) => {
      if (!image || image.depth === 1) return;
      sliced(state.slice + Math.sign(event.deltaY));
      event.preventDefault();
    }, { passive: false });
    byId("level").addEventListener("input", (event) => windowed(Number(event.target.value), state.width));
    byId("width").addEventListener("input", (event) => windowed(state.level, Number(event.target.value)));
    byId("slice").addEventListener("input", (event) => sliced(Number(event.target.value) - 1));
    byId("overlay").addEventListener("change", toggleOverlay);
    byId("opacity").addEventListener("input", (event) => { state.opacity = Number(event.target.value); draw(); });
    byId("map").addEventListener("change", (event) => { state.map = Number(event.target.value); draw(); });
    byId("reset").addEventListener("click", reset);
    const bar = byId("bar");
    bar.width = 256;
    bar.height = 1;
    const context = bar.getContext("2d");
    terms.colours.forEach((colour, place) => {
      context.fillStyle = `rgb(${colour.join(",")})`;
      context.fillRect(place, 0, 1, 1);
    });
  };

  return { begin, entry, end, received };
})();
